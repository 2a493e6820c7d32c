"""The box cut into bricks, one per rank.

A brick is a product of three intervals of fractional coordinates, so a triclinic box has skewed
bricks.  Along a direction that does not repeat, the outermost bricks reach to infinity.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.parallel.comm import NOBODY

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Domain:
    """Which part of the box a rank owns.

    Attributes
    ----------
    grid
        Bricks along each box vector.
    cuts
        For each direction the (grid + 1,) planes between bricks, from 0 to 1; the same on all ranks.
    """

    box: Box
    grid: Grid
    rank: int
    cuts: tuple[NDArray[np.float64], ...]

    @classmethod
    def even(cls, box: Box, n_ranks: int, rank: int) -> Domain:
        """Bricks of equal size, in the grid with the least surface."""
        grid = choose_grid(box, n_ranks)
        return cls(box, grid, rank, tuple(np.linspace(0.0, 1.0, g + 1) for g in grid))

    @property
    def coordinates(self) -> tuple[int, ...]:
        """This brick's place in the grid."""
        return tuple(int(c) for c in np.unravel_index(self.rank, self.grid))

    def interval(self, axis: int) -> tuple[float, float]:
        """The brick's faces along one direction, as fractional coordinates."""
        c = self.coordinates[axis]
        return float(self.cuts[axis][c]), float(self.cuts[axis][c + 1])

    def place(self, fractional: NDArray[np.float64], axis: int) -> NDArray[np.intp]:
        """Coordinate in the grid of the brick that owns each fractional coordinate (n,)."""
        return np.searchsorted(self.cuts[axis][1:-1], fractional, side="right")

    def partner(self, axis: int, distance: int) -> int:
        """The rank `distance` bricks away along a direction, or `NOBODY` beyond an open face."""
        where = list(self.coordinates)
        where[axis] += distance
        if not self.box.periodic[axis] and not 0 <= where[axis] < self.grid[axis]:
            return NOBODY
        where[axis] %= self.grid[axis]
        return int(np.ravel_multi_index(where, self.grid))

    def crosses(self, axis: int, direction: int) -> bool:
        """Whether a step to the next brick (`direction` ±1) passes the end of the box."""
        return self.coordinates[axis] == (self.grid[axis] - 1 if direction > 0 else 0)

    def hops(self, axis: int, reach: float) -> int:
        """How many bricks away atoms within `reach` (Å) of a brick can be; the same on all ranks."""
        if not self.box.periodic[axis] and self.grid[axis] == 1:
            return 0
        thinnest = float(np.diff(self.cuts[axis]).min())
        hops = int(np.ceil(reach / self.box.heights[axis] / thinnest))
        return hops if self.box.periodic[axis] else min(hops, self.grid[axis] - 1)

    def around(self, reach: float) -> list[int]:
        """Ranks that may have atoms within `reach` (Å) of this brick, without this one; each is in the other's list."""
        near = []
        for axis, c in enumerate(self.coordinates):
            g, hops = self.grid[axis], self.hops(axis, reach)
            places = range(c - hops, c + hops + 1)
            near.append({p % g for p in places} if self.box.periodic[axis] else {p for p in places if 0 <= p < g})
        ranks = {int(np.ravel_multi_index(place, self.grid)) for place in itertools.product(*near)}
        return sorted(ranks - {self.rank})

    def ghost_ratio(self, reach: float) -> float:
        """Ghosts per local atom that a uniform density would give a brick of average size."""
        ratio = 1.0
        for axis in range(3):
            if self.box.periodic[axis] or self.grid[axis] > 1:
                ratio *= 1.0 + 2.0 * reach / self.box.heights[axis] * self.grid[axis]
        return ratio - 1.0


def choose_grid(box: Box, n_ranks: int) -> Grid:
    """The grid of `n_ranks` bricks with the smallest total surface."""
    faces = box.volume / box.heights

    def surface(grid: Grid) -> float:
        # A direction in one piece that does not repeat needs no exchange at all.
        cuts = [g if g > 1 or p else 0 for g, p in zip(grid, box.periodic, strict=True)]
        return float(np.dot(faces, cuts))

    grids = [
        (x, y, n_ranks // x // y)
        for x in range(1, n_ranks + 1)
        if n_ranks % x == 0
        for y in range(1, n_ranks // x + 1)
        if n_ranks // x % y == 0
    ]
    # Of equals the one cut last along x: its bricks are contiguous planes of z.
    return min(grids, key=lambda grid: (round(surface(grid), 9), grid))
