"""Whole models on a card, DeePMD-kit's own among them, against the CPU."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from dphpc.core.errors import InputError
from dphpc.model.model_file import read_model
from dphpc.potential.deep_pot import DeepPot
from tests.models import random_model, random_structure

GOLDEN = Path(__file__).parents[1] / "golden"

with h5py.File(GOLDEN / "golden.h5") as _file:
    CASES = [(name, next(iter(_file[name]))) for name in _file]


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
