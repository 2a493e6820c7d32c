"""The embedding networks as one table over their scalar argument.

G(s̃) is a function of one number, so each network is replaced by quintic Hermite pieces, which are C² and have the
network's value, first and second derivative at the knots.  Training reads the same table as MD: gradients flow through
the linear map from knot values to local coefficients and from there to the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.model.networks import Network

_HERMITE = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0, 0],
        [-10, -6, -1.5, 10, -4, 0.5],
        [15, 8, 1.5, -15, 7, -1.0],
        [-6, -3, -0.5, 6, -3, 0.5],
    ]
)
"""Coefficients in t = (s − left)/h from (G, hG′, h²G″) of the left and of the right knot."""

MAX_PARTS = 4
"""Most parts of a grid; `kernels/shared/radial_grid.h` has the same number."""

FEWEST_INTERVALS = 32
"""Intervals that the fit of a table begins with."""

CELLS = 64
"""Cells into which a table's range is divided for the fit; a part of the grid begins where a cell does."""

EXTENSION = 32
"""Intervals by which a table grows at a time; as they are evaluated together, they have the same bits on any rank."""

_ROUNDING = 1e-9
"""Below this an error that more intervals do not reduce is rounding error; that of G′ grows with their number."""

_BLOCK = 512
"""Intervals whose errors are measured at a time, so that their numbers stay in the caches."""


@dataclass(frozen=True)
class Grid:
    """Knots in uniform parts, one after the other from `lower` on: `counts[k]` intervals of width `steps[k]`."""

    lower: float
    steps: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def uniform(cls, lower: float, upper: float, n_intervals: int) -> Grid:
        """`n_intervals` equal intervals from `lower` to `upper`."""
        return cls(lower, ((upper - lower) / n_intervals,), (n_intervals,))

    @classmethod
    def from_numbers(cls, lower: float, *parts: float) -> Grid:
        """The grid of `numbers`; parts without an interval are left out.

        Raises
        ------
        ValueError
            There are no or too many parts, or a width is not positive.
        """
        filled = [(float(step), int(n)) for step, n in zip(parts[::2], parts[1::2], strict=True) if n]
        if not 1 <= len(filled) <= MAX_PARTS or not all(0 < step < np.inf and n > 0 for step, n in filled):
            raise ValueError(f"no grid of 1 to {MAX_PARTS} parts: {[lower, *parts]}")
        steps, counts = zip(*filled, strict=True)
        return cls(float(lower), steps, counts)

    def numbers(self) -> list[float]:
        """The grid as files hold it: `lower`, then step and number of intervals of each part."""
        return [self.lower, *itertools.chain(*zip(self.steps, self.counts, strict=True))]

    @cached_property
    def starts(self) -> tuple[float, ...]:
        """(n_parts,) where each part begins."""
        starts = [self.lower]
        for step, n in zip(self.steps[:-1], self.counts[:-1], strict=True):
            starts.append(starts[-1] + step * n)
        return tuple(starts)

    @property
    def upper(self) -> float:
        """End of the table."""
        return self.starts[-1] + self.steps[-1] * self.counts[-1]

    @property
    def n_intervals(self) -> int:
        """Intervals of all parts."""
        return sum(self.counts)

    @property
    def knots(self) -> Doubles:
        """(n_intervals + 1,) knot positions."""
        parts = zip(self.starts, self.steps, self.counts, strict=True)
        return np.concatenate([*(start + step * np.arange(n) for start, step, n in parts), [self.upper]])

    @property
    def widths(self) -> Doubles:
        """(n_intervals,) width of each interval."""
        return np.repeat(self.steps, self.counts)

    def extended(self, upper: float, at_a_time: int = 1) -> Grid:
        """The grid extended with its last step until it covers `upper`, by `at_a_time` intervals at a time."""
        if upper <= self.upper:
            return self
        more = at_a_time * int(np.ceil((upper - self.upper) / (at_a_time * self.steps[-1])))
        return replace(self, counts=(*self.counts[:-1], self.counts[-1] + more))

    def in_units_of(self, unit: float) -> Grid:
        """The grid of this one's argument divided by `unit`."""
        return Grid(self.lower / unit, tuple(step / unit for step in self.steps), self.counts)

    def followed_by(self, other: Grid) -> Grid:
        """This grid's parts and then those of `other`, which begins where this grid ends."""
        return Grid(self.lower, self.steps + other.steps, self.counts + other.counts)

    def locate(self, s: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Interval and local coordinate t of each s; beyond the ends the first or last interval is extrapolated."""
        part = np.searchsorted(self.starts[1:], s, side="right")
        counts = np.array(self.counts)
        place = (s - np.array(self.starts)[part]) / np.array(self.steps)[part]
        index = np.floor(place).clip(0, counts[part] - 1)
        return (np.cumsum(counts) - counts)[part] + index.astype(np.int64), place - index


def hermite_coefficients(grid: Grid, jets: Doubles) -> Doubles:
    """Local coefficients (k, n_intervals, 6, M) of k tables, given (3, k, n_intervals + 1, M): G, G′, G″."""
    scale = (grid.widths ** np.arange(3)[:, None])[:, None, :, None]  # derivatives by s to those by t
    sides = np.concatenate((jets[:, :, :-1] * scale, jets[:, :, 1:] * scale))
    powers = (_HERMITE @ sides.reshape(6, -1)).reshape(sides.shape)
    return np.ascontiguousarray(powers.transpose(1, 2, 0, 3))


def hermite_adjoint(grid: Grid, coefficients: Doubles) -> Doubles:
    """Gradient (3, n_intervals + 1, M) by one table's jets, given that by its coefficients (n_intervals, 6, M)."""
    scale = grid.widths ** np.arange(3)[:, None]
    sides = np.einsum("kd,ikm->dim", _HERMITE, coefficients) * np.concatenate((scale, scale))[:, :, None]
    jets = np.zeros((3, sides.shape[1] + 1, sides.shape[2]))
    jets[:, :-1] += sides[:3]
    jets[:, 1:] += sides[3:]
    return jets


class ScalarEmbedding(Protocol):
    """What a table and the networks themselves have in common."""

    @property
    def n_channels(self) -> int:
        """M."""

    @property
    def upper(self) -> float:
        """The largest argument it is good for."""

    def evaluate(self, s: NDArray[np.floating], which: NDArray[np.integer]) -> tuple[NDArray, NDArray]:
        """G and dG/ds, each (n, M), of embedding `which` (n,) at `s` (n,)."""


@dataclass(frozen=True)
class NetworkEmbedding:
    """The embedding networks themselves, for activations too rough to tabulate."""

    networks: Sequence[Network]

    @property
    def n_channels(self) -> int:
        """M."""
        return self.networks[0].n_out

    @property
    def upper(self) -> float:
        """A network has no end."""
        return np.inf

    def evaluate(self, s: NDArray[np.floating], which: NDArray[np.integer]) -> tuple[NDArray, NDArray]:
        """See `ScalarEmbedding.evaluate`."""
        value = np.empty((len(s), self.n_channels))
        slope = np.empty_like(value)
        for w in np.unique(which):
            here = which == w
            value[here], slope[here], _ = self.networks[int(w)].jet(s[here])
        return value, slope


@dataclass(frozen=True)
class RadialTable:
    """Tables of all embedding networks.

    Attributes
    ----------
    grids
        One per table.  Tables made here share one grid; in DeePMD-kit's files each network has its own.
    coefficients
        (n_tables, n_intervals, 6, M) of the powers of the local coordinate t ∈ [0, 1]; rows behind the last interval
        of a shorter grid are zero.
    """

    grids: tuple[Grid, ...]
    coefficients: NDArray[np.floating]

    @classmethod
    def from_networks(cls, networks: Sequence[Network], grid: Grid) -> RadialTable:
        """Tabulate networks of one scalar input, all over one grid."""
        knots, coefficients = grid.knots, np.empty((len(networks), grid.n_intervals, 6, networks[0].n_out))
        for own, net in zip(coefficients, networks, strict=True):  # one at a time: there may be hundreds
            own[...] = hermite_coefficients(grid, np.stack(net.jet(knots))[:, None])[0]
        return cls((grid,) * len(networks), coefficients)

    @property
    def n_channels(self) -> int:
        """M."""
        return int(self.coefficients.shape[3])

    @property
    def upper(self) -> float:
        """The largest argument that every table covers."""
        return min(grid.upper for grid in self.grids)

    def astype(self, dtype: type) -> RadialTable:
        """The table in another precision: coefficients are formed in float64 and rounded once."""
        return replace(self, coefficients=self.coefficients.astype(dtype))

    def evaluate(self, s: NDArray[np.floating], which: NDArray[np.integer]) -> tuple[NDArray, NDArray]:
        """See `ScalarEmbedding.evaluate`."""
        value = np.empty((len(s), self.n_channels), self.coefficients.dtype)
        slope = np.empty_like(value)
        for w in np.unique(which):
            here = which == w
            value[here], slope[here] = self._evaluate_one(int(w), s[here])
        return value, slope

    def _evaluate_one(self, w: int, s: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        grid = self.grids[w]
        index, t = grid.locate(s)
        c = self.coefficients[w, index]
        t = t[:, None].astype(c.dtype)
        value, slope = c[:, 5], 5.0 * c[:, 5]
        for k in (4, 3, 2, 1, 0):
            value = value * t + c[:, k]
            if k:
                slope = slope * t + k * c[:, k]
        return value, slope / grid.widths[index][:, None].astype(c.dtype)

    def errors(self, networks: Sequence[Network], n_probe: int = 4) -> Doubles:
        """(2, n_tables, n_intervals) largest error of G and of dG/ds against the networks inside each interval."""
        inside = (np.arange(n_probe) + 0.5) / n_probe
        errors = np.zeros((2, *self.coefficients.shape[:2]))
        for i, (net, grid) in enumerate(zip(networks, self.grids, strict=True)):
            probes = grid.knots[:-1, None] + grid.widths[:, None] * inside
            for first in range(0, len(probes), _BLOCK):
                s = probes[first : first + _BLOCK]
                exact = net.jet(s.ravel())
                for k, found in enumerate(self._evaluate_one(i, s.ravel())):
                    of_intervals = np.abs(found - exact[k]).reshape(len(s), -1).max(axis=1)
                    errors[k, i, first : first + len(s)] = of_intervals
        return errors

    def error(self, networks: Sequence[Network]) -> tuple[float, float]:
        """Largest error of G and of dG/ds against the networks."""
        of_value, of_slope = self.errors(networks).max(axis=(1, 2))
        return float(of_value), float(of_slope)

    def extended(self, networks: Sequence[Network], upper: float) -> RadialTable:
        """The tables extended from the networks, each with its last step, until all cover `upper`."""
        grids = tuple(grid.extended(upper, EXTENSION) for grid in self.grids)
        shape = (len(grids), max(g.n_intervals for g in grids), *self.coefficients.shape[2:])
        coefficients = np.zeros(shape, self.coefficients.dtype)
        for i, (old, new) in enumerate(zip(self.grids, grids, strict=True)):
            coefficients[i, : old.n_intervals] = self.coefficients[i, : old.n_intervals]
            for first in range(old.n_intervals, new.n_intervals, EXTENSION):
                knots = new.knots[first : first + EXTENSION + 1]
                part = Grid(float(knots[0]), new.steps[-1:], (EXTENSION,))
                jets = np.stack(networks[i].jet(knots))[:, None]
                coefficients[i, first : first + EXTENSION] = hermite_coefficients(part, jets)[0]
        return RadialTable(grids, coefficients)


Measure = Callable[[RadialTable], tuple[Doubles, Doubles]]
"""A function that returns arguments s (n,) and a table's error (n,) at each."""


def fitted_table(
    networks: Sequence[Network],
    lower: float,
    upper: float,
    tolerance: float,
    max_intervals: int = 4096,
    measure: Measure | None = None,
    most_parts: int = MAX_PARTS,
    cells: Doubles | None = None,
) -> RadialTable:
    """A table with |ΔG| and |ΔG′| below `tolerance`, of about as few intervals as that takes.

    Trained networks change fastest where pairs are far apart, so the range has up to `most_parts` parts, each with
    intervals as wide as it allows.  A part begins where a cell does; `cells` may give the cells' relative widths.
    `measure` replaces |ΔG| and |ΔG′|.  The tolerance is missed where `max_intervals` do not reach it, and where the
    error that is left is rounding error.
    """
    measure = measure or (lambda table: _errors_of_intervals(table, networks))
    cells = np.ones(CELLS) if cells is None else cells * (len(cells) / cells.sum())
    mean, ends = (upper - lower) / len(cells), np.cumsum(cells)
    density = np.full(len(cells), FEWEST_INTERVALS / len(cells))  # of intervals in the mean width of a cell
    before = np.inf
    while True:
        grid = _grid_of(lower, mean, cells, density, most_parts)
        if grid.n_intervals > max_intervals:
            density *= max_intervals / grid.n_intervals
            grid = _grid_of(lower, mean, cells, density, most_parts)
        table = RadialTable.from_networks(networks, grid)
        s, errors = measure(table)
        error = errors.max()
        rounded = error < _ROUNDING and error > before / 1.3
        if not error > tolerance or grid.n_intervals >= max_intervals or rounded:  # `not`: an error may be NaN
            return table
        before = error
        # A quintic piece's slope has an error of the width's fifth power, once the width is small.
        growth = np.clip(1.05 * (errors / tolerance) ** 0.2, 1.1, 4.0)
        cell = np.searchsorted(ends[:-1], (s - lower) / mean, side="right")
        wanted = growth * mean / grid.widths[grid.locate(s)[0]]
        missed = errors > tolerance
        np.maximum.at(density, cell[missed], wanted[missed])


def _errors_of_intervals(table: RadialTable, networks: Sequence[Network]) -> tuple[Doubles, Doubles]:
    """The `Measure` of |ΔG| and |ΔG′|, for tables of one grid."""
    grid = table.grids[0]
    return grid.knots[:-1] + 0.5 * grid.widths, table.errors(networks).max(axis=(0, 1))


def _grid_of(lower: float, mean: float, cells: Doubles, density: Doubles, most_parts: int) -> Grid:
    """The grid of fewest intervals that has `density` (n_cells,) of them in every cell, in up to `most_parts` parts.

    `cells` are the widths of the cells, which the density refers to, in units of the `mean`.
    """
    n = len(density)
    # cost[i, j]: intervals of a part of the cells i … j − 1, as many in each as the densest of them wants.
    cost = np.full((n, n + 1), np.inf)
    for i in range(n):
        cost[i, i + 1 :] = np.maximum.accumulate(density[i:]) * np.cumsum(cells[i:])
    best, edges = cost[0], [[0, j] for j in range(n + 1)]
    for _ in range(most_parts - 1):
        split = np.argmin(best[:n, None] + cost, axis=0)  # where the last part begins
        total = best[split] + cost[split, np.arange(n + 1)]
        better = total < best - 1.0
        edges = [[*edges[split[j]], j] if better[j] else edges[j] for j in range(n + 1)]
        best = np.where(better, total, best)
    parts = [slice(i, j) for i, j in itertools.pairwise(edges[n])]
    widths = [cells[part].sum() for part in parts]
    counts = [int(np.ceil(w * density[part].max() - 1e-9)) for w, part in zip(widths, parts, strict=True)]
    steps = [mean * float(w) / count for w, count in zip(widths, counts, strict=True)]
    return Grid(lower, tuple(steps), tuple(counts))
