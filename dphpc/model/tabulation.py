"""How a descriptor's networks are tabulated: over s̃, or where they have gates over s, by `gated_table`.

`tabulation_of` decides it; compression, evaluation and training ask no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dphpc.model import gated_table
from dphpc.model.descriptor import SeE2A
from dphpc.model.networks import Network
from dphpc.model.radial_table import MAX_PARTS, Doubles, Grid, Measure, RadialTable, fitted_table

FAR_TOLERANCE = 1e-6
"""Error of G and dG/ds beyond the training data's range."""

DISTANCES = 1024
"""Number of distances at which the error of dG/dr is measured."""

MAX_INTERVALS = 16384
"""Most intervals, those inside and those beyond the training data's range each."""


class Tabulation(Protocol):
    """One of the two ways.

    Attributes
    ----------
    networks
        The networks in float64, as functions of the argument x that all their grids are of.
    scales
        x = scale·s̃ for each network.
    errors
        Names of the two errors of a table that `error` gives.
    equal_steps
        Whether a table of equal steps is a good one.
    """

    networks: Sequence[Network]
    scales: Sequence[float]
    errors: tuple[str, str]
    equal_steps: bool

    def x_range(self, nearest: float) -> tuple[float, float]:
        """The range of x for distances from `nearest` (Å) to rcut."""
        ...

    def fitted(self, nearest: float, tolerance: float, max_intervals: int) -> Grid:
        """A grid for these distances with an error of forces below `tolerance`, as `compress` describes it.

        It has fewer than `MAX_PARTS` parts.
        """
        ...

    def exact(self, nearest: float, tolerance: float, max_intervals: int) -> RadialTable:
        """A table over s̃ for these distances, all of whose errors are below `tolerance`."""
        ...

    def training_grid(self, lower: float, upper: float, tolerance: float, max_intervals: int) -> Grid:
        """A grid from `lower` to `upper` with a `training_error` below `tolerance`."""
        ...

    def training_error(self, grid: Grid) -> float:
        """The error that a training limits."""
        ...

    def error(self, grid: Grid, nearest: float) -> tuple[float, float]:
        """The largest `errors` of a table on the grid, for distances from `nearest` (Å) on."""
        ...


def tabulation_of(d: SeE2A) -> Tabulation:
    """The way in which a descriptor's networks, with their present weights, are tabulated."""
    return Gated(d) if d.gated else Plain(d)


def over_own_arguments(how: Tabulation, table: RadialTable) -> RadialTable:
    """A table over x as one over each network's own s̃; the coefficients do not change."""
    grids = zip(table.grids, how.scales, strict=True)
    return RadialTable(tuple(grid.in_units_of(scale) for grid, scale in grids), table.coefficients)


class Plain:
    """Networks without gates, over s̃."""

    errors = ("G", "dG/ds")
    equal_steps = True

    def __init__(self, d: SeE2A) -> None:
        self.d = d
        self.networks: Sequence[Network] = [net.astype(np.float64) for net in d.networks]
        self.scales: Sequence[float] = [1.0] * len(self.networks)

    def x_range(self, nearest: float) -> tuple[float, float]:
        """See `Tabulation`."""
        return self.d.s_range(nearest)

    def fitted(self, nearest: float, tolerance: float, max_intervals: int) -> Grid:
        """See `Tabulation`."""
        measure = pair_error(self.d, self.networks, nearest)
        limits = *self.x_range(nearest), tolerance, max_intervals
        return fitted_table(self.networks, *limits, measure, MAX_PARTS - 1).grids[0]

    def exact(self, nearest: float, tolerance: float, max_intervals: int) -> RadialTable:
        """See `Tabulation`; one part of the grid is left for `continued`."""
        limits = *self.x_range(nearest), tolerance, max_intervals
        return fitted_table(self.networks, *limits, most_parts=MAX_PARTS - 1)

    def training_grid(self, lower: float, upper: float, tolerance: float, max_intervals: int) -> Grid:
        """See `Tabulation`."""
        return fitted_table(self.networks, lower, upper, tolerance, max_intervals).grids[0]

    def training_error(self, grid: Grid) -> float:
        """The larger of the largest |ΔG| and |ΔG′|."""
        return max(self.error(grid, 0.0))

    def error(self, grid: Grid, nearest: float) -> tuple[float, float]:
        """See `Tabulation`."""
        return RadialTable.from_networks(self.networks, grid).error(self.networks)


class Gated:
    """Networks with gates, over s; davg is 0."""

    errors = ("s·G", "d(s·G)/dr")
    equal_steps = False

    def __init__(self, d: SeE2A) -> None:
        self.d = d
        self.scales: Sequence[float] = gated_table.scales(d)
        self.networks: Sequence[Network] = gated_table.of_s(d, [net.astype(np.float64) for net in d.networks])

    def x_range(self, nearest: float) -> tuple[float, float]:
        """See `Tabulation`."""
        return gated_table.s_range(self.d, nearest)

    def fitted(self, nearest: float, tolerance: float, max_intervals: int) -> Grid:
        """See `Tabulation`."""
        return gated_table.fitted_grid(self.d, nearest, tolerance, max_intervals, MAX_PARTS - 1)

    def exact(self, nearest: float, tolerance: float, max_intervals: int) -> RadialTable:
        """See `Tabulation`; it covers the same s̃ for all center types."""
        grid = gated_table.fitted_grid(self.d, nearest, tolerance, max_intervals, MAX_PARTS)
        table = over_own_arguments(self, RadialTable.from_networks(self.networks, grid))
        own = [net.astype(np.float64) for net in self.d.networks]
        return continued(table, own, self.d.s_range(nearest)[1])

    def training_grid(self, lower: float, upper: float, tolerance: float, max_intervals: int) -> Grid:
        """See `Tabulation`; `lower` is 0."""
        nearest = gated_table.distance(self.d, upper)
        return gated_table.fitted_grid(self.d, nearest, tolerance, max_intervals, MAX_PARTS)

    def training_error(self, grid: Grid) -> float:
        """What `gated_table.fitted_grid` limits."""
        return gated_table.force_error(self.d, grid)

    def error(self, grid: Grid, nearest: float) -> tuple[float, float]:
        """See `Tabulation`."""
        return gated_table.error(self.d, self.networks, RadialTable.from_networks(self.networks, grid), nearest)


def continued(table: RadialTable, networks: Sequence[Network], upper: float) -> RadialTable:
    """A table continued from the networks, each of its own, until all cover `upper`.

    What is added has the wider steps of a part where no training data are, if there is a part left.
    """
    tables = [
        _continued(RadialTable((grid,), own[None, : grid.n_intervals]), network, upper)
        for grid, own, network in zip(table.grids, table.coefficients, networks, strict=True)
    ]
    most = max(t.grids[0].n_intervals for t in tables)
    padded = [np.pad(t.coefficients, ((0, 0), (0, most - t.grids[0].n_intervals), (0, 0), (0, 0))) for t in tables]
    return RadialTable(tuple(t.grids[0] for t in tables), np.concatenate(padded))


def _continued(table: RadialTable, network: Network, upper: float) -> RadialTable:
    grid = table.grids[0]
    if len(grid.counts) == MAX_PARTS or upper <= grid.upper:
        return table.extended([network], upper)
    far = fitted_table([network], grid.upper, upper, FAR_TOLERANCE, MAX_INTERVALS, most_parts=1)
    coefficients = np.concatenate((table.coefficients, far.coefficients), axis=1)
    return RadialTable((grid.followed_by(far.grids[0]),), coefficients)


def pair_error(descriptor: SeE2A, networks: Sequence[Network], nearest: float) -> Measure:
    """What measures a table by what forces see of it: the error of dG/dr at distances from `nearest` (Å) on.

    At each it is the root mean square over pairs of types and channels, in units of the root mean square of dG/dr at
    all distances.  The largest error of a single channel is no measure of forces, to which all channels add: where
    nets are steep it is a hundred times as large.
    """
    s, ds = descriptor.radial(gated_table.distances(nearest, descriptor.rcut, DISTANCES))
    pairs = [
        (i, (s - descriptor.davg[c]) / descriptor.dstd[c, 0], (ds / descriptor.dstd[c, 0])[:, None])
        for c, row in enumerate(descriptor.network_index()) for i in row
    ]  # fmt: skip
    exact = [networks[i].jet(argument)[1] * factor for i, argument, factor in pairs]
    size = np.sqrt(np.mean([np.mean(slope**2) for slope in exact])) or 1.0  # of nets that are flat
    places = np.concatenate([argument for _, argument, _ in pairs])

    def measure(table: RadialTable) -> tuple[Doubles, Doubles]:
        squares = np.zeros(DISTANCES)
        for (i, argument, factor), slope in zip(pairs, exact, strict=True):
            found = table.evaluate(argument, np.full(DISTANCES, i))[1]
            squares += np.mean((found * factor - slope) ** 2, axis=1)
        return places, np.tile(np.sqrt(squares / len(pairs)) / size, len(pairs))

    return measure
