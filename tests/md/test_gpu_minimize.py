"""Minimizations of atoms that live on a GPU: the host's results, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dphpc.md.engine import Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.parallel.comm import Communicator
from tests.md.test_gpu_engine import ALL, NVE, Runs, equal, kind_of, looks, runs_in_one_folder
from tests.ops.emulation.device import EmulatedDevice

pytestmark = pytest.mark.two_ranks

MINIMIZE = {"ensemble": "minimize", "steps": 14}


@pytest.fixture
def runs(comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return rattled_runs(comm, tmp_path, monkeypatch)


def rattled_runs(comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Of silicon whose atoms are not in their places."""
    runs = runs_in_one_folder(comm, tmp_path, monkeypatch)
    if comm.rank == 0:
        atoms = bulk("Si", "diamond", a=5.43, cubic=True)
        atoms.rattle(0.15, seed=2)
        write(runs.folder / "rattled.extxyz", atoms, parallel=False)
    comm.barrier()
    return runs


def plan(runs: Runs, *stages: dict[str, Any]) -> dict[str, Any]:
    return {"structure": str(runs.folder / "rattled.extxyz"), "stages": list(stages)}


@pytest.mark.parametrize("before", [[], [{**NVE, "steps": 4}]], ids=["first", "after dynamics"])
def test_a_minimization_is_the_hosts(runs: Runs, device: Any, before: list[dict[str, Any]]) -> None:
    stages = {**plan(runs, *before, MINIMIZE, ALL[2] | {"steps": 5}), "skin_A": 0.1}
    gpu, host = (runs(kind, device, **stages) for kind in (GpuEngine, Engine))
    for name, values in host.items():
        np.testing.assert_allclose(gpu[name], values, rtol=1e-9, atol=1e-9, err_msg=name)
    assert host["kinetic_eV"][-1] > 1.0, "velocities are drawn when dynamics begin"


@pytest.mark.parametrize("coupling", ["isotropic", "triclinic"])
def test_a_box_is_relaxed_as_on_the_host(runs: Runs, emulated: EmulatedDevice, coupling: str) -> None:
    """Between dynamics, whose steps are done in windows."""
    relax, nve = {**MINIMIZE, "pressure_bar": 5e4, "coupling": coupling}, {**NVE, "steps": 6}
    stages = plan(runs, nve, relax, nve)
    gpu, host = (runs(kind, emulated, **stages) for kind in (GpuEngine, Engine))
    assert len(np.unique(host["volume_A3"])) > 3
    equal(gpu, host)


def test_its_end_is_the_hosts(runs: Runs, emulated: EmulatedDevice) -> None:
    found = []
    for kind in (GpuEngine, Engine):
        found.append(runs(kind, emulated, **plan(runs, {**MINIMIZE, "steps": 300, "force_tolerance_eV_A": 0.2})))
        assert runs.result.converged
        assert not found[-1]["velocities"].any()
    equal(*found)


def test_it_goes_on_in_the_middle_with_the_same_bits(runs: Runs, emulated: EmulatedDevice) -> None:
    whole = runs(GpuEngine, emulated, **plan(runs, MINIMIZE))
    runs(GpuEngine, emulated, **plan(runs, {**MINIMIZE, "steps": 6}))
    half = runs.folder / "half.h5"
    (runs.folder / "restart.h5").rename(half)
    rest = runs(GpuEngine, emulated, **{**plan(runs, MINIMIZE), "structure": str(half)})
    assert runs.result.steps == 8
    for name in ("positions", "velocities", "images"):
        assert np.array_equal(rest[name], whole[name])
        assert whole[name].any()


def test_a_step_that_is_done_again_is_done_from_the_same_state(
    runs: Runs, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, thrown_away = [], []
    for haste in (1.25, 0.02):  # at the second, lists that had their day are used
        with looks(monkeypatch, 16, haste):
            found.append(runs(GpuEngine, emulated, **plan(runs, {**MINIMIZE, "steps": 40}), skin_A=0.15))
        thrown_away.append(runs.engine.thrown_away)
    assert thrown_away[1] > thrown_away[0]
    equal(*found)


@pytest.mark.mpi
def test_any_number_of_ranks_minimizes_with_the_same_bits(
    runs: Runs, comm: Communicator, emulated: EmulatedDevice
) -> None:
    relax = {**MINIMIZE, "steps": 6, "pressure_bar": 5e4, "coupling": "triclinic"}
    stages = {**plan(runs, MINIMIZE, {**NVE, "steps": 3}, relax), "replicate": [2, 1, 1]}
    found = runs(kind_of(comm), emulated, comm, **stages)
    if comm.rank == 0:
        equal(found, runs(GpuEngine, emulated, **stages))
    comm.barrier()
