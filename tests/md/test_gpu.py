"""Runs whose forces come from a GPU."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dphpc.core.errors import InputError
from dphpc.md import run
from dphpc.md.run import run_md
from dphpc.parallel.comm import Serial
from dphpc.potential.deep import DeepPotential

pytestmark = pytest.mark.two_ranks

SILICON = Path(__file__).parents[2] / "examples" / "silicon" / "silicon.dp"


@pytest.mark.mpi
def test_md_has_the_same_bits_on_any_number_of_ranks(emulated, comm, tmp_path):
    folder = Path(comm.bcast(str(tmp_path)))
    if comm.rank == 0:
        write(folder / "si.extxyz", bulk("Si", "diamond", a=5.43, cubic=True), parallel=False)
    comm.barrier()

    def restart_of(ranks, device, name):
        potential = DeepPotential.from_file(SILICON, device=device)
        restart = folder / f"{name}.h5"
        settings = {
            "structure": str(folder / "si.extxyz"), "replicate": [2, 2, 1], "skin_A": 0.3, "n_threads": 1,
            "velocities": {"temperature_K": 1500, "seed": 3}, "stages": [{"ensemble": "nve", "steps": 6}],
            "thermo": {"file": None}, "restart": {"every": 1000, "file": str(restart)},
        }  # fmt: skip
        run_md(settings, comm=ranks, potential=potential)
        with h5py.File(restart) as file:
            return {k: item[:] for k, item in file["atoms"].items()}

    several = restart_of(comm, emulated, "several")
    if comm.rank == 0:
        alone, on_cpu = restart_of(Serial(), emulated, "alone"), restart_of(Serial(), None, "cpu")
        for k, values in alone.items():
            assert np.array_equal(several[k], values)
            np.testing.assert_allclose(values, on_cpu[k], rtol=0, atol=1e-8)
    comm.barrier()


def settings_of(folder: Path) -> dict[str, Any]:
    write(folder / "si.extxyz", bulk("Si", "diamond", a=5.43, cubic=True))
    return {
        "structure": str(folder / "si.extxyz"), "model": str(SILICON), "thermo": {"file": None},
        "stages": [{"ensemble": "nve", "steps": 1}],
    }  # fmt: skip


def test_a_run_file_that_asks_for_a_gpu(emulated, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(run, "find_device", lambda *choice: asked.append(choice) or emulated)
    other = tmp_path / "other.dp"
    shutil.copy(SILICON, other)
    deviation = {"models": [str(other)], "every": 1, "file": str(tmp_path / "devi.out")}
    before = emulated.launched.count("exert")
    run_md({**settings_of(tmp_path), "device": "cuda", "deviation": deviation})
    assert asked == [("cuda", 0)]
    assert "device:    emulated GPU" in capsys.readouterr().out
    assert emulated.launched.count("exert") - before >= 4  # two models, two steps
    assert np.loadtxt(tmp_path / "devi.out")[:, 4].max() == 0.0


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    settings = settings_of(tmp_path)
    with pytest.raises(InputError, match="CuPy is not installed"):
        run_md({**settings, "device": "cuda"})
    with pytest.raises(InputError, match="CuPy is not installed"):
        run_md(settings, device="cuda")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        run_md(settings, device="gpu")
    run_md({**settings, "device": "cuda"}, device="auto")
    assert "device:    cpu, no GPU that CuPy sees" in capsys.readouterr().out
