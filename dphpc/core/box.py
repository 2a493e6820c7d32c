"""The simulation cell: three row vectors and which directions repeat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError
from dphpc.core.exact_sum import round_to

MIN_HEIGHT = 0.5
"""Least distance (Å) between opposite faces in a periodic direction; a thinner box is taken for a mistake of units."""

MAX_COORDINATE = 1e7
"""Greatest coordinate (Å); one beyond is taken for a mistake, and float64 would keep too few of its decimals."""

MARGIN = 1.0
"""Å of room around the atoms in a direction without a vector."""

MOST_TILTED = 0.6
"""Part of a box vector by which another may lean along it before `Box.ways_upright` finds one that leans less.

Above a half, where two choices lean as much, so that a box near there does not go back and forth.
"""

ON_FACE = 1e-9
"""Fraction of a box within which an atom may be on a face: rounding cannot tell on which side."""

_MAX_SHIFT = 2.0**31


@dataclass(frozen=True)
class Box:
    """A parallelepiped with the lattice vectors as rows.

    Parameters
    ----------
    matrix
        (3, 3) Å, rows a, b, c.
    periodic
        Which of the three directions repeat.  In a direction that does not, the box only says where
        the atoms are expected; atoms may leave it.
    origin
        (3,) Å, the corner from which fractional coordinates count.

    Raises
    ------
    DataError
        The vectors are not finite or span no volume.
    """

    matrix: Doubles
    periodic: tuple[bool, bool, bool] = (True, True, True)
    origin: Doubles = field(default_factory=lambda: np.zeros(3))

    def __post_init__(self) -> None:
        matrix = np.ascontiguousarray(self.matrix, dtype=np.float64).reshape(3, 3)
        if not np.all(np.isfinite(matrix)) or abs(np.linalg.det(matrix)) < 1e-6:
            raise DataError(f"the box {matrix.tolist()} spans no volume", expected="three independent vectors in Å")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "origin", np.asarray(self.origin, dtype=np.float64).reshape(3))

    @classmethod
    def around(cls, positions: Doubles) -> Box:
        """An open (non-periodic) box that encloses `positions` (n, 3) Å with `MARGIN`."""
        if len(positions) == 0:
            return cls(np.eye(3), (False, False, False))
        low, high = positions.min(axis=0) - MARGIN, positions.max(axis=0) + MARGIN
        return cls(np.diag(high - low), (False, False, False), low)

    @classmethod
    def of_cell(cls, cell: Doubles, periodic: Sequence[bool] | NDArray, positions: Doubles) -> Box:
        """The box of an ASE cell, in which vectors may be missing.

        Parameters
        ----------
        cell
            (3, 3) Å, rows a, b, c; a row of zeros is a missing vector, and gets one that encloses the positions with
            `MARGIN`.
        periodic
            (3,) which directions repeat.
        positions
            (n, 3) Å.

        Raises
        ------
        DataError
            A direction repeats and has no vector, or the vectors span no volume.
        """
        missing = np.all(cell == 0.0, axis=1)
        px, py, pz = (bool(p) for p in periodic)
        for name, repeats, absent in zip("abc", (px, py, pz), missing.tolist(), strict=True):
            if repeats and absent:
                raise DataError(
                    f"the structure repeats along {name}, but its cell has no vector there",
                    remedy="give the cell a vector, or let the direction be open",
                )
        if missing.all():
            return cls.around(positions)
        if not missing.any():
            return cls(cell, (px, py, pz))
        from ase.geometry import complete_cell  # rarely needed, and slow to import

        matrix = complete_cell(cell)
        units = matrix / np.linalg.norm(matrix, axis=1)[:, None]
        along = positions @ units.T
        low, high = along.min(axis=0) - MARGIN, along.max(axis=0) + MARGIN
        matrix[missing] = units[missing] * (high - low)[missing, None]
        return cls(matrix, (px, py, pz), origin=(units * low[:, None])[missing].sum(axis=0))

    @cached_property
    def volume(self) -> float:
        """Volume in Å³."""
        return float(abs(np.linalg.det(self.matrix)))

    @cached_property
    def inverse(self) -> Doubles:
        """(3, 3): positions − origin times this gives fractional coordinates."""
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    @cached_property
    def heights(self) -> Doubles:
        """(3,) Å: distance between opposite faces."""
        return 1.0 / np.linalg.norm(self.inverse, axis=0)

    @property
    def lengths(self) -> str:
        """The lengths of the vectors, as messages name them."""
        return " × ".join(f"{x:.4g}" for x in np.linalg.norm(self.matrix, axis=1)) + " Å"

    @cached_property
    def angles(self) -> Doubles:
        """(3,) degrees: between b and c, a and c, a and b."""
        a, b, c = self.matrix / np.linalg.norm(self.matrix, axis=1)[:, None]
        return np.degrees(np.arccos(np.clip([b @ c, a @ c, a @ b], -1.0, 1.0)))

    @cached_property
    def spacing(self) -> float:
        """Å, a power of two whose multiples, up to four boxes away, are added and subtracted without rounding."""
        extent = float((np.abs(self.origin) + np.abs(self.matrix).sum(axis=0)).max())
        return 2.0 ** (math.ceil(math.log2(4.0 * extent)) - 51)

    def rounded(self, spacing: float) -> Box:
        """The box with vectors and origin at multiples of a power of two."""
        return replace(self, matrix=round_to(self.matrix, spacing), origin=round_to(self.origin, spacing))

    @cached_property
    def is_cuboid(self) -> bool:
        """Whether the vectors lie along x, y and z."""
        return bool(np.array_equal(self.matrix, np.diag(np.diag(self.matrix))))

    def ways_upright(self) -> NDArray[np.int32]:
        """(3, 3) integers: times these the box vectors span the same lattice, and lean by at most `MOST_TILTED`.

        b may lose multiples of a, and c of b and a, where both are periodic.  How far b leans along a is measured by a,
        and how far c leans along b by the part of b that is upright on a: by xy/lx, yz/ly and xz/lx in LAMMPS' words.
        """
        ways, vectors = np.eye(3, dtype=np.int32), self.matrix.copy()
        a, b = vectors[0], vectors[1] - vectors[0] * (_dot(vectors[1], vectors[0]) / _dot(vectors[0], vectors[0]))
        for k, axis, upright in ((1, 0, a), (2, 1, b), (2, 0, a)):
            lean = _dot(vectors[k], upright) / _dot(upright, upright)
            if self.periodic[k] and self.periodic[axis] and abs(lean) > MOST_TILTED:
                ways[k] -= round(lean) * ways[axis]
                vectors[k] -= round(lean) * vectors[axis]
        return ways

    def combined(self, ways: NDArray[np.int32]) -> Box:
        """The box with combinations of its vectors, given as rows of integers (3, 3)."""
        return replace(self, matrix=sum(ways[:, k, None] * self.matrix[k] for k in range(3)))

    def least_stretch(self, before: Box) -> float:
        """The least factor of any distance, where another box became this one, and points with it."""
        return float(np.linalg.norm(before.inverse @ self.matrix, -2))

    def orders_images_as(self, before: Box, distance: float) -> bool:
        """Whether images of a point, those up to `distance` (Å) from each other, had the same order in another box.

        They are ordered by x, then y, then z, as in the rows of a neighbor list.
        """
        ranges = [
            np.arange(-most, most + 1) if repeats else np.zeros(1)
            for most, repeats in zip((distance / self.heights).astype(int), self.periodic, strict=True)
        ]
        if all(len(numbers) == 1 for numbers in ranges):
            return True
        apart = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
        apart = apart[np.linalg.norm(apart @ self.matrix, axis=1) <= distance]
        now, then = (np.sign(apart @ box.matrix) @ [9, 3, 1] > 0 for box in (self, before))
        return np.array_equal(now, then)

    def replicated(self, replicate: Sequence[int]) -> Box:
        """The box repeated along its vectors."""
        return replace(self, matrix=self.matrix * np.array(replicate)[:, None])

    def on_grid(self, replicate: Sequence[int] = (1, 1, 1)) -> Box:
        """The nearest box that, once replicated, has its vectors at multiples of its own `spacing`."""
        spacing = self.replicated(replicate).spacing
        box = self.rounded(spacing)
        # Rounding may bring the box to the next power of two.
        return box if box.replicated(replicate).spacing == spacing else box.on_grid(replicate)

    def to_fractional(self, positions: Doubles) -> Doubles:
        """Fractional coordinates (n, 3) of Cartesian positions (n, 3)."""
        return (positions - self.origin) @ self.inverse

    def fractional(self, positions: Doubles, axis: int) -> Doubles:
        """One fractional coordinate (n,) of positions (n, 3), whose bits depend on the atom's own position alone."""
        # A matrix product may round an atom differently in another place of the array.
        first, *others = ((positions[:, k] - self.origin[k]) * self.inverse[k, axis] for k in range(3))
        for part in others:
            first += part
        return first

    def wrap_shifts(self, positions: Doubles, tolerance: float = 0.0) -> NDArray[np.int32]:
        """(n, 3) whole cells by which each position lies outside the box, 0 where not periodic.

        A position that lies below a face by no more than `tolerance`, a fraction of the box, counts as on it.  So a
        position on a face gives the same result whichever of the two opposite faces it is rounded to.

        Raises
        ------
        DataError
            A position lies more cells away than fit into 32 bits.
        """
        shifts = np.zeros((len(positions), 3), np.int32)
        for axis in range(3):
            if self.periodic[axis]:
                cells = np.floor(self.fractional(positions, axis) + tolerance)
                farthest = np.abs(cells).max(initial=0.0)
                if farthest >= _MAX_SHIFT:  # never NaN
                    raise DataError(f"a position lies {farthest:.3g} cells outside the box", expected="positions in Å")
                shifts[:, axis] = cells
        return shifts

    def carried_to(self, box: Box, positions: Doubles) -> Doubles:
        """Positions (n, 3) with the same fractional coordinates in another box; the bits of each depend on it alone."""
        carried = np.empty_like(positions)
        a, b, c = (self.fractional(positions, axis) for axis in range(3))
        for k, ((ak, bk, ck), corner) in enumerate(zip(box.matrix.T, box.origin, strict=True)):
            carried[:, k] = a * ak + b * bk + c * ck + corner
        return carried

    def wrapped(self, positions: Doubles, images: NDArray[np.int32]) -> tuple[Doubles, NDArray[np.int32]]:
        """The positions moved into the box along its periodic directions, and the images (n, 3) that belong to them.

        Both are the same whichever image of an atom is given, also for one on a face.
        """
        shifts = self.wrap_shifts(positions, ON_FACE)
        return positions - shifts @ self.matrix, images + shifts

    def wrap(self, positions: Doubles) -> Doubles:
        """The positions moved into the box along its periodic directions."""
        return positions - self.wrap_shifts(positions) @ self.matrix


def _dot(a: Doubles, b: Doubles) -> float:
    """a·b, with the same bits whatever the machine's libraries."""
    x, y, z = (a * b).tolist()
    return float(x + y + z)
