"""Runs that go on from restarts: by another plan, with what other runs left, and killed at awkward moments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dphpc.md.run import run_md
from dphpc.parallel.comm import Communicator
from dphpc.potential.pair import LennardJones

Make = Callable[..., dict[str, Any]]

NVE = {"ensemble": "nve", "steps": 10}


def nvt(thermostat: str, steps: int = 10) -> dict[str, Any]:
    return {"ensemble": "nvt", "thermostat": thermostat, "temperature_K": 80, "steps": steps}


def files(folder: Path, suffix: str = "extxyz", every: int = 1000) -> dict[str, Any]:
    return {
        "thermo": {"every": 3, "file": str(folder / "t.csv")},
        "trajectory": {"every": 3, "file": str(folder / f"t.{suffix}")},
        "restart": {"every": every, "file": str(folder / "r.h5")},
    }


def rows(folder: Path) -> list[int]:
    """Steps in the thermo file."""
    return [int(line.split(",")[0]) for line in (folder / "t.csv").read_text().splitlines()[1:]]


def same(one: Path, other: Path) -> bool:
    """Whether two runs wrote the same thermo and trajectory files."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("t.csv", "t.extxyz"))


@pytest.mark.mpi
@pytest.mark.parametrize("thermostat", ["bussi", "nose-hoover", "langevin"])
def test_a_new_plan_keeps_what_the_old_ones_thermostat_took(
    comm: Communicator, config: Make, argon: LennardJones, thermostat: str
) -> None:
    folder = Path(config()["structure"]).parent
    one, two = files(folder / "one"), files(folder / "two")
    run_md(config(stages=[nvt(thermostat, 9), NVE], **one), comm=comm, potential=argon)
    run_md(config(stages=[nvt(thermostat, 9)], **two), comm=comm, potential=argon)
    again = {"structure": two["restart"]["file"], "replicate": None}
    run_md(config(stages=[NVE], **two, **again), comm=comm, potential=argon)
    comm.barrier()
    assert rows(folder / "two") == [0, 3, 6, 9, 12, 15, 18, 19]
    assert same(folder / "one", folder / "two")
