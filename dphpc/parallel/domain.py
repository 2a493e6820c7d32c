"""The box cut into bricks, one per rank.

A brick is a product of three intervals of fractional coordinates, so a triclinic box has skewed
bricks.  Along a direction that does not repeat, the outermost bricks reach to infinity.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.state import pieces

Grid = tuple[int, int, int]
Intervals = list[tuple[float, float]]
"""Intervals (low, high) of fractional coordinates, one for each direction."""


@dataclass(frozen=True)
class Image:
    """A brick near a given one: its offset in the grid (3,), its rank, and the shift (3,) in whole box vectors."""

    offset: tuple[int, ...]
    rank: int
    shift: tuple[int, ...]


@dataclass(frozen=True)
class Domain:
    """The part of the box that a rank owns.

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

    def interval(self, axis: int, offset: int = 0) -> tuple[float, float]:
        """The faces of this brick, or of the one `offset` places on, along one direction, as fractional coordinates."""
        shift, c = divmod(self.coordinates[axis] + offset, self.grid[axis])
        return float(self.cuts[axis][c] + shift), float(self.cuts[axis][c + 1] + shift)

    @property
    def own(self) -> Intervals:
        """The fractional coordinates that this rank owns: its brick's, without limit at the ends of the grid."""
        ends = zip(self.grid, self.coordinates, map(self.interval, range(3)), strict=True)
        return [(low if c else -math.inf, high if c + 1 < g else math.inf) for g, c, (low, high) in ends]

    def interior(self, reach: float, *, images: bool = False) -> Intervals:
        """The fractional coordinates of this brick farther than `reach` (Å) from other ranks' bricks.

        With `images` also farther than that from this brick's own periodic images.  An interval whose low end is above
        its high end is empty.
        """
        intervals = []
        for axis in range(3):
            (low, high), width = self.interval(axis), reach / self.box.heights[axis]
            near = self.grid[axis] > 1 or (images and self.box.periodic[axis])
            intervals.append((low + width, high - width) if near else (-math.inf, math.inf))
        return intervals

    def outside(self, positions: NDArray[np.float64], intervals: Intervals) -> NDArray[np.bool_]:
        """(n,) whether any fractional coordinate of positions (n, 3) lies outside its interval (low ≤ x < high)."""
        outside = np.zeros(len(positions), bool)
        for piece in pieces(len(positions)):
            for axis, (low, high) in enumerate(intervals):
                if low > -math.inf or high < math.inf:
                    x = self.box.fractional(positions[piece], axis)
                    outside[piece] |= ~((x >= low) & (x < high))
        return outside

    def place(self, fractional: NDArray[np.float64], axis: int) -> NDArray[np.intp]:
        """Coordinate in the grid of the brick that owns each fractional coordinate (n,)."""
        return np.searchsorted(self.cuts[axis][1:-1], fractional, side="right")

    def hops(self, axis: int, reach: float) -> int:
        """How many bricks away atoms within `reach` (Å) of a brick can be; the same on all ranks."""
        if not self.box.periodic[axis] and self.grid[axis] == 1:
            return 0
        thinnest = float(np.diff(self.cuts[axis]).min())
        hops = int(np.ceil(reach / self.box.heights[axis] / thinnest))
        return hops if self.box.periodic[axis] else min(hops, self.grid[axis] - 1)

    def images(self, reach: float) -> list[Image]:
        """The bricks around this one that may have atoms within `reach` (Å) of it.

        Of two bricks, each is in the other's list as often as the other in its own, and in the opposite order.
        """
        images, own, hops = [], self.coordinates, [self.hops(axis, reach) for axis in range(3)]
        for offset in itertools.product(*(range(-n, n + 1) for n in hops)):
            ways = [divmod(c + k, g) for c, k, g in zip(own, offset, self.grid, strict=True)]
            shift, (x, y, z) = zip(*ways, strict=True)
            if any(offset) and all(p or not n for p, n in zip(self.box.periodic, shift, strict=True)):
                images.append(Image(offset, (x * self.grid[1] + y) * self.grid[2] + z, shift))
        return images

    def ghost_ratio(self, reach: float) -> float:
        """Ghosts per local atom of a brick of average size at uniform density."""
        ratio = 1.0
        for axis in range(3):
            if self.box.periodic[axis] or self.grid[axis] > 1:
                ratio *= 1.0 + 2.0 * reach / self.box.heights[axis] * self.grid[axis]
        return ratio - 1.0


def choose_grid(box: Box, n_ranks: int) -> Grid:
    """The grid of `n_ranks` bricks with the smallest total surface."""
    faces = box.volume / box.heights

    def surface(grid: Grid) -> float:
        # A direction that is neither periodic nor cut needs no exchange at all.
        cuts = [g if g > 1 or p else 0 for g, p in zip(grid, box.periodic, strict=True)]
        return float(np.dot(faces, cuts))

    grids = [
        (x, y, n_ranks // x // y)
        for x in range(1, n_ranks + 1)
        if n_ranks % x == 0
        for y in range(1, n_ranks // x + 1)
        if n_ranks // x % y == 0
    ]
    # Of equal grids the one with the fewest cuts along x.
    return min(grids, key=lambda grid: (round(surface(grid), 9), grid))
