"""Constant pressure where atoms are on GPUs: the bits of the host's moves of the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dphpc.md.engine import Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.parallel.comm import Communicator
from tests.md.test_gpu_engine import Runs, equal, kind_of, looks, runs_in_one_folder
from tests.ops.emulation.device import EmulatedDevice

pytestmark = pytest.mark.two_ranks

NPT = {
    "ensemble": "npt", "temperature_K": 1500, "pressure_bar": 20000, "pressure_damping_fs": 40, "barostat_every": 6,
    "compressibility_per_bar": 1e-6, "damping_fs": 50, "steps": 20,
}  # fmt: skip


@pytest.mark.parametrize(("thermostat", "coupling"), [("nose-hoover", "isotropic"), ("langevin", "triclinic")])
def test_a_box_on_a_gpu_moves_as_on_the_host(
    thermostat: str, coupling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulated: EmulatedDevice
) -> None:
    runs, stages = Runs(tmp_path, monkeypatch), [NPT | {"thermostat": thermostat, "coupling": coupling}]
    gpu = runs(GpuEngine, emulated, stages=stages, skin_A=1.2)
    assert len(np.unique(gpu["volume_A3"])) > 3
    for name, values in runs(Engine, emulated, stages=stages, skin_A=1.2).items():
        # exp, log, sin and cos of two libraries
        np.testing.assert_allclose(gpu[name], values, rtol=1e-9, atol=1e-9, err_msg=name)  # measured 1e-15
    with looks(monkeypatch, most=1):
        equal(gpu, runs(GpuEngine, emulated, stages=stages, skin_A=1.2))


def test_a_box_that_passes_a_power_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulated: EmulatedDevice
) -> None:
    """Recorded moves know the spacing of positions."""
    runs = Runs(tmp_path, monkeypatch)
    stages = [NPT | {"thermostat": "langevin", "pressure_bar": 2e5, "steps": 24}]
    changes = {"stages": stages, "replicate": [3, 1, 1], "structure": str(tmp_path / "wide.extxyz")}
    write(tmp_path / "wide.extxyz", bulk("Si", "diamond", a=16.02 / 3, cubic=True), parallel=False)
    gpu = runs(GpuEngine, emulated, **changes)
    assert runs.engine.spacing == 2.0**-45, "that of a box between 8 and 16 Å, not of the 16.02 Å at the start"
    equal(gpu, runs(Engine, emulated, **changes))


@pytest.mark.mpi
def test_ranks_with_gpus_move_one_box(
    comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulated: EmulatedDevice
) -> None:
    runs = runs_in_one_folder(comm, tmp_path, monkeypatch)
    changes = {
        "replicate": [1, 1, 4],
        "stages": [NPT | {"thermostat": "langevin", "coupling": "triclinic", "steps": 13}],
    }
    found = runs(kind_of(comm), emulated, comm, **changes)
    if comm.rank == 0:
        equal(found, runs(GpuEngine, emulated, **changes))
    comm.barrier()
