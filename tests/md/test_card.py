"""Runs whose forces come from a card."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dphpc.core.errors import InputError
from dphpc.md.run import run_md
from dphpc.parallel.comm import Serial
from dphpc.potential.deep import DeepPotential

SILICON = Path(__file__).parents[2] / "examples" / "silicon" / "silicon.dp"


@pytest.mark.mpi
def test_md_has_the_same_bits_on_any_number_of_ranks(emulated, comm, tmp_path):
    folder = Path(comm.bcast(str(tmp_path)))
    if comm.rank == 0:
        write(folder / "si.extxyz", bulk("Si", "diamond", a=5.43, cubic=True), parallel=False)
    comm.barrier()

    def run(ranks, device, name):
        potential = DeepPotential.from_file(SILICON, device=device)
        if device is not None:
            potential._energy_ops.tile = 32
        restart = folder / f"{name}.h5"
        settings = {
            "structure": str(folder / "si.extxyz"), "replicate": [2, 2, 1], "skin_A": 0.3, "n_threads": 1,
            "velocities": {"temperature_K": 1500, "seed": 3}, "stages": [{"ensemble": "nve", "steps": 6}],
            "thermo": {"file": None}, "restart": {"every": 1000, "file": str(restart)},
        }  # fmt: skip
        run_md(settings, comm=ranks, potential=potential)
        with h5py.File(restart) as file:
            return {k: item[:] for k, item in file["atoms"].items()}

    several = run(comm, emulated, "several")
    if comm.rank == 0:
        alone, on_cpu = run(Serial(), emulated, "alone"), run(Serial(), None, "cpu")
        for k, values in alone.items():
            assert np.array_equal(several[k], values)
            np.testing.assert_allclose(values, on_cpu[k], rtol=0, atol=1e-8)
    comm.barrier()


def test_md_refuses_a_card_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    write(tmp_path / "si.extxyz", bulk("Si", "diamond", a=5.43, cubic=True))
    settings = {
        "structure": str(tmp_path / "si.extxyz"), "replicate": [2, 2, 2], "model": str(SILICON),
        "stages": [{"ensemble": "nve", "steps": 1}], "thermo": {"file": None},
    }  # fmt: skip
    with pytest.raises(InputError, match="CuPy is not installed"):
        run_md({**settings, "device": "cuda"})
    run_md({**settings, "device": "auto"})
