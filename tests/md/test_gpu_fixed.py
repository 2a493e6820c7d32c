"""Fixed atoms of runs whose atoms live on a GPU: the host's results, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dphpc.core.fixing import held_in
from dphpc.md.engine import Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.parallel.comm import Communicator
from tests.md.test_gpu_engine import ALL, NVE, Runs, equal, kind_of
from tests.md.test_gpu_minimize import MINIMIZE, rattled_runs
from tests.md.test_gpu_minimize import plan as of_rattled
from tests.ops.emulation.device import EmulatedDevice

pytestmark = pytest.mark.two_ranks

SOME = [{"ids": [2, 7]}, {"below_A": {"z": 0.5}, "directions": "xy"}, {"ids": [5], "directions": "z"}]


@pytest.fixture
def runs(comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return rattled_runs(comm, tmp_path, monkeypatch)


def plan(runs: Runs, *stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return of_rattled(runs, *stages) | {"fixed": SOME} | changes


def still_ones(atoms: dict[str, np.ndarray]) -> np.ndarray:
    held = held_in(atoms["fixed"])
    return np.stack([atoms[name][held] for name in ("positions", "velocities", "images")])


def test_they_stay_and_all_else_is_the_hosts(runs: Runs, device: Any) -> None:
    before = runs(Engine, device, **plan(runs, {**NVE, "steps": 0}))
    assert set(before["fixed"].tolist()) == {0, 3, 4, 7}
    stages = plan(runs, MINIMIZE, *ALL, skin_A=0.1)
    gpu, host = (runs(kind, device, **stages) for kind in (GpuEngine, Engine))
    for atoms in (gpu, host):
        assert np.array_equal(still_ones(atoms), still_ones(before))
    for name, values in host.items():
        # exp, log, sin and cos of two libraries
        np.testing.assert_allclose(gpu[name], values, rtol=1e-9, atol=1e-9, err_msg=name)
    assert np.array_equal(host["velocities"] == 0.0, held_in(host["fixed"]))


@pytest.mark.mpi
def test_any_number_of_ranks_gives_the_same_bits(runs: Runs, comm: Communicator, emulated: EmulatedDevice) -> None:
    """They keep their mark in lists that are dealt out on the GPU, in whatever order."""
    runs.velocities = {"temperature_K": 3000, "seed": 3}
    changes = {"replicate": [1, 1, 2], "skin_A": 0.2}
    stages = plan(runs, {**MINIMIZE, "steps": 5}, {**NVE, "steps": 10}, {**ALL[0], "steps": 3}, **changes)
    found = runs(kind_of(comm), emulated, comm, **stages)
    assert runs.engine.rebuilds > 1
    if comm.rank == 0:
        equal(found, runs(GpuEngine, emulated, **stages))
        first = runs(Engine, None, **stages | {"stages": [{**NVE, "steps": 0}]})
        assert np.array_equal(first["fixed"], found["fixed"])
        assert np.array_equal(still_ones(first), still_ones(found))
    comm.barrier()
