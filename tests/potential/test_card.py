"""Whole models on a card, and runs that use one: against DeePMD-kit's numbers and against the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dphpc.core.device import find_device
from dphpc.core.errors import InputError
from dphpc.md.run import run_md
from dphpc.model.model_file import read_model
from dphpc.parallel.comm import Serial
from dphpc.potential.deep import DeepPotential
from dphpc.potential.deep_pot import DeepPot
from tests.models import random_model, random_structure
from tests.ops.emulation.device import EmulatedDevice
from tests.parallel.conftest import comm, mpirun, pytest_runtest_makereport  # noqa: F401

GOLDEN = Path(__file__).parents[1] / "golden"
SILICON = Path(__file__).parents[2] / "examples" / "silicon" / "silicon.dp"

with h5py.File(GOLDEN / "golden.h5") as _file:
    CASES = [(name, next(iter(_file[name]))) for name in _file]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory) -> EmulatedDevice:
    return EmulatedDevice(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session", params=["emulated", "card"])
def device(request):
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    try:
        return find_device("cuda")
    except InputError as error:
        pytest.skip(f"no card to try the kernels on: {error.what}")


@pytest.mark.parametrize(("name", "structure"), CASES)
def test_deepmd_models(device, name, structure):
    with h5py.File(GOLDEN / "golden.h5") as file:
        case = file[name][structure]
        model = read_model(GOLDEN / "models" / str(file[name].attrs.get("file", f"{name}.dp")))
        given = {k: case[k][()] if k in case else None for k in ("coords", "cells", "atom_types", "fparam", "aparam")}
    if model.table is None and any(net.has_kinks for net in model.descriptor.networks):
        with pytest.raises(InputError, match="compress the model"):
            DeepPot(model, device=device)
        return
    first = slice(None, 1)  # one frame is enough
    coords, types, fparam, aparam = (given[k] for k in ("coords", "atom_types", "fparam", "aparam"))
    cells = None if given["cells"] is None else given["cells"][first]
    types = types[first] if types.ndim == 2 else types
    inputs = {"fparam": fparam if fparam is None or fparam.ndim == 1 else fparam[first]}
    inputs["aparam"] = aparam if aparam is None or aparam.ndim < 3 else aparam[first]
    found, expected = (
        DeepPot(model, device=where).eval(coords[first], cells, types.astype(int), atomic=True, **inputs)
        for where in (device, "cpu")
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=2e-10)  # measured 5e-11: forces are multiples of 4e-12


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 2e-10), ("mixed", 2e-5), ("float32", 2e-5)])
def test_precisions(device, precision, tolerance):
    x, cell, types = random_structure()
    model = random_model(1)
    found, expected = (
        DeepPot(model, precision, where).eval(x[None], cell[None], types, atomic=True) for where in (device, "cpu")
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1.0))


def test_a_pair_beyond_the_table_extends_it(device):
    model = random_model(1)
    x, cell, types = random_structure()
    x[1] = x[0] + [0.3, 0.0, 0.0]
    found, expected = (DeepPot(model, device=where) for where in (device, "cpu"))
    for a, b in zip(*(dp.eval(x[None], cell[None], types) for dp in (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=2e-10)  # measured 1e-11
    assert found.potential._table.upper > DeepPot(model).potential._table.upper


@pytest.mark.mpi
def test_md_has_the_same_bits_on_any_number_of_ranks(emulated, comm, tmp_path):  # noqa: F811
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
