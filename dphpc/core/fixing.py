"""The directions in which an atom is fixed, as one number: 1 for x, 2 for y, 4 for z, added up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AXES = "xyz"

WHOLLY = 7
"""The number of an atom that does not move at all."""

_BITS = np.array([1, 2, 4], np.int32)


def held_in(numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(n, 3): whether atoms with these numbers (n,) are fixed along x, y and z."""
    return (numbers[:, None] & _BITS) != 0


def numbers_of(held: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(n,): the numbers of atoms that are fixed along x, y and z or not (n, 3)."""
    return np.asarray(held @ _BITS, np.int32)


def counts_of(numbers: NDArray[np.int32]) -> NDArray[np.int64]:
    """(8,): how many atoms with these numbers (n,) have each of them, from 0 on."""
    return np.bincount(numbers, minlength=WHOLLY + 1).astype(np.int64)


def number_of(axes: str) -> int:
    """The number of an atom that is fixed along the axes of a text, as "xz"."""
    return sum(1 << AXES.index(axis) for axis in axes)


def axes_of(number: int) -> list[int]:
    """The axes, 0 to 2, along which an atom with this number is fixed."""
    return [axis for axis in range(3) if number >> axis & 1]


@dataclass(frozen=True)
class FixedAtoms:
    """How many atoms of all ranks are fixed in which directions: `by_number` (8,) counts them by their numbers."""

    by_number: tuple[int, ...] = (0,) * (WHOLLY + 1)

    @property
    def n_atoms(self) -> int:
        """Number of atoms that are fixed in any direction."""
        return sum(self.by_number[1:])

    @property
    def n_wholly(self) -> int:
        """Number of atoms that do not move at all."""
        return self.by_number[WHOLLY]

    @property
    def partly(self) -> list[int]:
        """The numbers, of which there are atoms, that leave a direction free."""
        return [number for number in range(1, WHOLLY) if self.by_number[number]]

    @property
    def along(self) -> list[int]:
        """(3,): number of atoms that are fixed along x, y and z."""
        return [sum(n for number, n in enumerate(self.by_number) if axis in axes_of(number)) for axis in range(3)]


NONE_FIXED = FixedAtoms()
