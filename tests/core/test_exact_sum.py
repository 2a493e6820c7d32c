"""Sums in any order."""

from __future__ import annotations

import math

import numpy as np

from dphpc.core.exact_sum import exact_sum, round_to, total


def test_a_sum_has_the_same_bits_in_any_order_and_division():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4000, 2)) * 10.0 ** rng.integers(-8, 6, (4000, 1))
    first = exact_sum(values)
    for _ in range(5):
        shuffled = rng.permutation(values)
        cuts = np.sort(rng.integers(0, 4000, 6))
        parts = sum(exact_sum(piece) for piece in np.split(shuffled, cuts))
        assert np.array_equal(parts, first)
        assert not np.array_equal(shuffled.sum(axis=0), values.sum(axis=0))
    exact = [math.fsum(column) for column in values.T]
    assert np.abs(total(first) - exact).max() < 2.0 * np.spacing(np.abs(exact).max())


def test_rounding_goes_to_the_nearest_multiple():
    x = np.random.default_rng(2).normal(size=1000) * 100.0
    rounded = round_to(x, 2.0**-20)
    assert np.array_equal(rounded, np.round(x * 2.0**20) / 2.0**20)
    assert np.array_equal(round_to(x, 0.0), x)
    assert round_to(x, 2.0**-20, out=x) is x
    assert np.array_equal(x, rounded)
