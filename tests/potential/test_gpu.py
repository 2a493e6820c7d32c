"""Whole models on a GPU, DeePMD-kit's own among them, against the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import InputError
from dphpc.core.exact_sum import FORCE_SPACING, total
from dphpc.core.state import State
from dphpc.model.model_file import read_model
from dphpc.ops.energy.gpu import GpuSums, GpuSystem, virial_parts
from dphpc.ops.ghosts.cuda import CudaGhosts
from dphpc.ops.neighbors.native import build_neighbors
from dphpc.parallel.comm import Serial
from dphpc.parallel.domain import Domain
from dphpc.parallel.halo import Halo
from dphpc.potential.contract import Outputs, gpu_of
from dphpc.potential.deep import DeepPotential
from dphpc.potential.deep_pot import DeepPot
from tests.models import random_model, random_structure

GOLDEN = Path(__file__).parents[1] / "golden"

FILES = ("golden.h5", "golden_dpa1.h5")


def cases_of(golden: str) -> list[tuple[str, str, str]]:
    """File, model and first structure of each model."""
    with h5py.File(GOLDEN / golden) as file:
        return [(golden, name, next(iter(file[name]))) for name in file]


@pytest.mark.parametrize(("golden", "name", "structure"), [case for golden in FILES for case in cases_of(golden)])
def test_deepmd_models(device, golden, name, structure):
    with h5py.File(GOLDEN / golden) as file:
        case = file[name][structure]
        model = read_model(GOLDEN / "models" / str(file[name].attrs.get("file", f"{name}.dp")))
        given = {k: case[k][()] if k in case else None for k in ("coords", "cells", "atom_types", "fparam", "aparam")}
    if model.table is None and model.descriptor.kinks:
        with pytest.raises(InputError, match="cannot be evaluated on a GPU"):
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


def surrounded(model):
    """A structure with its ghosts and neighbors."""
    x, cell, types = random_structure(n_types=len(model.type_map))
    box = Box(cell)
    state = State(box, len(x))
    state.ids[:], state.types[:], state.positions[:] = np.arange(len(x)), types, box.wrap(x)
    Halo(Domain.even(box, 1, 0), Serial()).build_ghosts(state, model.descriptor.rcut)
    neighbors = build_neighbors(state.positions, state.types, state.ids, state.n_local, model.descriptor.rcut)
    return state, neighbors


@pytest.mark.parametrize("precision", ["float64", "mixed", "float32"])
@pytest.mark.parametrize("name", ["two_sided", "default_fparam", "atom_ener", "atom_exclude", "three_types"])
def test_what_stays_on_the_gpu_is_what_the_host_gets(device, name, precision):
    model = read_model(GOLDEN / "models" / f"{name}.dp")
    model.fitting.atom_ener = [-1.0, None] if name == "default_fparam" else model.fitting.atom_ener
    fparam = [0.3] * model.fitting.numb_fparam if model.fitting.numb_fparam else None
    potential = DeepPotential(model, precision, fparam, device)
    assert gpu_of(potential) is device
    state, neighbors = surrounded(model)
    counts = np.bincount(state.types[: state.n_local], minlength=model.n_types)
    potential.expect(counts)
    outputs = Outputs(np.zeros((state.n_all, 3)), force_spacing=FORCE_SPACING)
    potential.compute(state, neighbors, None, outputs)

    def up(values):
        array = device.zeros(values.size, values.dtype).reshape(values.shape)
        device.upload(values, array)
        return array

    potential.place(counts[None], CudaGhosts(device).order(up(state.types[: state.n_local]), len(counts)))
    system = GpuSystem(up(state.positions), up(state.types), *potential.list_on_gpu(neighbors))
    array = device.zeros(GpuSums.size(state.n_all, False), np.int64)
    energy = device.zeros(3, np.float64)
    sums = replace(GpuSums.within(array, state.n_all, FORCE_SPACING), energy=energy)
    for _ in range(4):  # takes memory, is launched one by one, is recorded, is replayed
        device.fill(array, 0)
        device.fill(energy, 0.0)
        key = device.address(array), device.address(system.indices), potential.version()
        device.replay(key, lambda: potential.launch(system, sums))
        assert device.download(sums.trouble)[0] == 0
        assert np.array_equal(device.download(sums.forces).reshape(-1, 3) * FORCE_SPACING, outputs.forces)
        assert np.array_equal(total(virial_parts(device.download(sums.virial), FORCE_SPACING)), outputs.virial)
        assert float(total(device.download(energy))) == outputs.energy
    assert np.abs(outputs.forces).max() > 0.01
