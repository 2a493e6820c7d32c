"""The table against the network it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.model.networks import initial_network
from dphpc.model.radial_table import Grid, RadialTable, fitted_table

NETWORKS = [initial_network([1, 25, 50, 100], "tanh", np.random.default_rng(seed)) for seed in (0, 1)]


def test_error_falls_as_the_sixth_power() -> None:
    errors = [RadialTable.from_networks(NETWORKS, Grid.uniform(-0.4, 15.0, n)).error(NETWORKS) for n in (64, 128, 256)]
    assert errors[0][0] / errors[1][0] > 40  # measured 52; 64 in the limit
    assert errors[2][0] < 5e-12  # measured 6e-13
    assert errors[2][1] < 1e-10  # measured 3e-11


def test_pieces_join_in_value_slope_and_curvature() -> None:
    grid = Grid(-0.5, (0.1, 0.4, 0.2), (40, 10, 5))
    c = RadialTable.from_networks(NETWORKS, grid).coefficients
    widths = grid.widths[:, None]
    k = np.arange(6)[:, None]
    for order in range(3):
        falling = np.prod([k - j for j in range(order)], axis=0) if order else np.ones((6, 1))
        at_end = (c * falling).sum(axis=2) / widths**order
        at_start = c[:, :, order] * [1, 1, 2][order] / widths**order
        assert at_end[:, :-1] == pytest.approx(at_start[:, 1:], abs=1e-10)


def test_slope_is_the_derivative_of_the_value() -> None:
    table = RadialTable.from_networks(NETWORKS, Grid(-0.5, (0.1, 0.4), (40, 10)))
    s, h = np.linspace(-0.45, 7.3, 97), 1e-6
    which = np.arange(97) % 2
    slope = (table.evaluate(s + h, which)[0] - table.evaluate(s - h, which)[0]) / (2 * h)
    assert table.evaluate(s, which)[1] == pytest.approx(slope, abs=1e-8)


def test_extension_keeps_what_was_there() -> None:
    table = RadialTable.from_networks(NETWORKS, Grid.uniform(0.0, 4.0, 64))
    wider = table.extended(NETWORKS, 9.0)
    assert wider.upper >= 9.0
    assert np.array_equal(wider.coefficients[:, :64], table.coefficients)
    assert wider.error(NETWORKS)[0] < 1e-9


def test_values_do_not_depend_on_how_far_a_table_reaches() -> None:
    table = RadialTable.from_networks(NETWORKS, Grid.uniform(0.0, 4.0, 64))
    far, near = table.extended(NETWORKS, 30.0), table.extended(NETWORKS, 5.0)
    again = near.extended(NETWORKS, 30.0)
    assert near.upper < far.upper == again.upper
    assert np.array_equal(far.coefficients, again.coefficients)
    assert np.array_equal(far.coefficients[:, : near.coefficients.shape[1]], near.coefficients)


def test_fitted_table_reaches_its_tolerance() -> None:
    table = fitted_table(NETWORKS, -0.4, 15.0, 1e-9)
    assert max(table.error(NETWORKS)) <= 1e-9
    fewer = RadialTable.from_networks(NETWORKS, Grid.uniform(-0.4, 15.0, int(0.85 * table.grids[0].n_intervals)))
    assert max(fewer.error(NETWORKS)) > 1e-9  # 109 intervals; 128 equal ones give 1.3e-9


def test_a_network_that_is_steep_at_one_end_has_narrow_intervals_there_alone() -> None:
    net = initial_network([1, 25, 50, 100], "tanh", np.random.default_rng(0))
    first = net.layers[0]
    assert first.b is not None
    first.w[:, :5], first.b[:5] = 6.0, 1.2  # these turn at −0.2
    table = fitted_table([net], -0.4, 15.0, 1e-9)
    grid = table.grids[0]
    assert max(table.error([net])) <= 1e-9
    assert len(grid.counts) > 1
    assert grid.upper == pytest.approx(15.0)
    assert grid.widths[-1] > 10 * grid.widths[grid.locate(np.array([-0.1]))[0][0]]
    uniform = fitted_table([net], -0.4, 15.0, 1e-9, most_parts=1)
    assert max(uniform.error([net])) <= 1e-9
    assert grid.n_intervals < 0.2 * uniform.grids[0].n_intervals


def test_networks_that_give_no_numbers_end_the_search() -> None:
    net = initial_network([1, 5], "tanh", np.random.default_rng(0))
    net.layers[0].w[0, 2] = np.nan
    assert np.isnan(fitted_table([net], 0.0, 1.0, 1e-9).coefficients).any()


def test_every_argument_finds_its_interval() -> None:
    grid = Grid(-0.5, (0.1, 0.4, 0.05, 1.0), (3, 2, 7, 1))
    s = np.concatenate((grid.knots, grid.knots[:-1] + 0.3 * grid.widths, [-3.0, 30.0]))
    index, t = grid.locate(s)
    assert np.allclose(grid.knots[index] + t * grid.widths[index], s, atol=1e-13)
    assert index[-2:].tolist() == [0, 12]
    assert ((t[:-2] >= 0.0) & (t[:-2] < 1.0 + 1e-12)).all()
