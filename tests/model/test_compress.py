"""Compression: the table's error as measured, and what it does to forces."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dphpc.core.errors import InputError, ModelFileError
from dphpc.model.compress import compress
from dphpc.model.env_mat import environment_rows
from dphpc.model.radial_table import Grid, RadialTable
from dphpc.model.tabulation import pair_error
from dphpc.potential.deep_pot import DeepPot
from tests.models import random_model, random_structure


@pytest.mark.parametrize("steepness", [1.0, 12.0])
def test_forces_change_by_less_than_promised(steepness: float) -> None:
    model = random_model(0)
    for net in model.descriptor.networks:
        for layer in net.layers[1:]:
            layer.w[:] *= steepness
    compressed, report = compress(model)
    assert max(report.error_g, report.error_slope) < 1e-7
    x, cell, types = random_structure()
    exact, found = (DeepPot(m).eval(x[None], cell[None], types) for m in (model, compressed))
    assert np.abs(found[1] - exact[1]).max() < 1e-8  # measured 4e-11, 2e-10
    assert "largest error inside" in str(report)


def test_the_error_of_pairs_is_that_of_each_distance() -> None:
    d = random_model(0, one_side=True).descriptor
    nearest, networks = 0.9, d.networks
    table = RadialTable.from_networks(networks, Grid.uniform(*d.s_range(nearest), 40))
    rows = environment_rows(
        np.column_stack([r := np.linspace(nearest, d.rcut, 30001)[:-1], 0 * r, 0 * r]), d.rcut, d.rcut_smth
    )
    slopes, errors = [], []
    for c in range(d.n_types):
        s, ds = (rows[0][:, 0] - d.davg[c]) / d.dstd[c, 0], rows[1][:, 0, 0, None] / d.dstd[c, 0]
        for i in range(d.n_types):
            which = np.full(len(s), i)
            slopes.append(networks[i].jet(s)[1] * ds)
            errors.append(table.evaluate(s, which)[1] * ds - slopes[-1])
    worst = np.sqrt(np.mean(np.square(errors), axis=(0, 2)).max() / np.mean(np.square(slopes)))
    places, found = pair_error(d, networks, nearest)(table)
    assert found.max() == pytest.approx(worst, rel=0.02)
    assert places.min() >= table.grids[0].lower
    assert places.max() <= table.upper


def test_step_is_honoured() -> None:
    coarse = compress(random_model(0), step=0.5)[1]
    fine = compress(random_model(0), step=0.05)[1]
    assert fine.n_intervals > 8 * coarse.n_intervals
    assert fine.error_g < coarse.error_g / 1000


def test_refusals() -> None:
    with pytest.raises(ModelFileError, match="kinks"):
        compress(random_model(0, activation="relu"))
    for factor in (0.5, 1e12, math.inf, math.nan):
        with pytest.raises(InputError, match="extrapolate is"):
            compress(random_model(0), extrapolate=factor)
    for step, size in ((-1.0, "small"), (1e-4, "small"), (1e3, "large"), (math.inf, "large"), (math.nan, "large")):
        with pytest.raises(InputError, match=rf"the step {step:g} is too {size}\n.*\n  expected: 0\.000\d+ to \d"):
            compress(random_model(0), step=step)
