"""Boxes that are deformed, and flipped back, where atoms are on GPUs: the bits of the host's moves of the box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk
from ase.io import write

from dphpc.md.engine import Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.parallel.comm import Communicator
from tests.md.test_gpu_engine import Runs, equal, kind_of, runs_in_one_folder
from tests.ops.emulation.device import EmulatedDevice

SHEAR: dict[str, Any] = {
    "ensemble": "nvt", "thermostat": "langevin", "temperature_K": 1500, "damping_fs": 50, "steps": 17,
    "deform_per_ps": {"xy": 1.0, "z": -0.5}, "deform_every": 6,
}  # fmt: skip


def leaning(path: Path) -> str:
    """Writes silicon whose b leans by two thirds of a."""
    atoms = bulk("Si", "diamond", a=5.43, cubic=True) * (3, 1, 1)
    vectors = atoms.cell.array.copy()
    vectors[1, 0] += 2.0 * 5.43
    atoms.set_cell(vectors)
    atoms.wrap()
    write(path, atoms, parallel=False)
    return str(path)


def test_a_box_on_a_gpu_is_deformed_and_flipped_as_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulated: EmulatedDevice
) -> None:
    runs, changes = Runs(tmp_path, monkeypatch), {"structure": leaning(tmp_path / "lean.extxyz"), "stages": [SHEAR]}
    gpu = runs(GpuEngine, emulated, **changes)
    assert runs.engine.flips == 1
    equal(gpu, runs(Engine, emulated, **changes))
    assert gpu["images"].any()
    assert gpu["gamma_deg"][-1] > 90.0 > gpu["gamma_deg"][0]


@pytest.mark.mpi
def test_ranks_with_gpus_flip_one_box(
    comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulated: EmulatedDevice
) -> None:
    if comm.size > 4:
        pytest.skip("so many GPUs take minutes to be played")
    runs = runs_in_one_folder(comm, tmp_path, monkeypatch)
    path = runs.folder / "lean.extxyz"
    if comm.rank == 0:
        leaning(path)
    comm.barrier()
    changes = {"structure": str(path), "stages": [SHEAR | {"steps": 13}], "replicate": [1, 1, 2]}
    found = runs(kind_of(comm), emulated, comm, **changes)
    assert runs.engine.flips == 1
    if comm.rank == 0:
        equal(found, runs(GpuEngine, emulated, **changes))
    comm.barrier()
