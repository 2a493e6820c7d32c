"""Directions in which atoms are fixed, as numbers."""

from __future__ import annotations

import numpy as np

from dphpc.core.fixing import FixedAtoms, axes_of, counts_of, held_in, number_of, numbers_of


def test_a_number_tells_the_directions() -> None:
    for number, axes in enumerate(["", "x", "y", "xy", "z", "xz", "yz", "xyz"]):
        assert number_of(axes) == number
        assert ["xyz"[k] for k in axes_of(number)] == list(axes)
        held = held_in(np.array([number], np.int32))
        assert held.tolist() == [[axis in axes for axis in "xyz"]]
        assert numbers_of(held).tolist() == [number]
    assert numbers_of(np.zeros((3, 3), bool)).dtype == np.int32


def test_atoms_are_counted_by_direction() -> None:
    fixed = FixedAtoms(tuple(counts_of(np.array([0, 7, 4, 4, 3, 0, 5], np.int32)).tolist()))
    assert fixed.by_number == (2, 0, 0, 1, 2, 1, 0, 1)
    assert (fixed.n_atoms, fixed.n_wholly, fixed.partly) == (5, 1, [3, 4, 5])
    assert fixed.along == [3, 2, 4]
    assert FixedAtoms(tuple(counts_of(np.zeros(0, np.int32)).tolist())) == FixedAtoms()
