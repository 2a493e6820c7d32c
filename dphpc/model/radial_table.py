"""The embedding networks as one table over their scalar argument.

G(s̃) is a function of one number, so each network is stood in for by quintic Hermite pieces (C², matched in
value, first and second derivative at the knots).  Training reads the same table as MD: gradients flow through
the linear map from knot values to local coefficients and from there to the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.model.networks import Network

Doubles = NDArray[np.float64]

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

FEWEST_INTERVALS = 32
"""Of a table that is fitted to a tolerance."""

EXTENSION = 32
"""Intervals by which a table grows at a time: always evaluated as many together, they get the same bits on any rank."""


_ROUNDING = 1e-9
"""Where an error that does not fall with more intervals is one of rounding: G′'s grows with their number."""

_BLOCK = 512
"""Intervals whose errors are measured at a time: some thousand numbers a channel stay in the caches."""


@dataclass(frozen=True)
class Grid:
    """Knots in two uniform parts: `n_fine` intervals of `step_fine` from `lower`, then `n_coarse` wider ones."""

    lower: float
    step_fine: float
    n_fine: int
    step_coarse: float = 1.0
    n_coarse: int = 0

    @classmethod
    def uniform(cls, lower: float, upper: float, n_intervals: int) -> Grid:
        """`n_intervals` equal intervals from `lower` to `upper`."""
        return cls(lower, (upper - lower) / n_intervals, n_intervals)

    @property
    def middle(self) -> float:
        """Where the coarse part begins."""
        return self.lower + self.step_fine * self.n_fine

    @property
    def upper(self) -> float:
        """End of the table."""
        return self.middle + self.step_coarse * self.n_coarse

    @property
    def n_intervals(self) -> int:
        """Intervals of both parts."""
        return self.n_fine + self.n_coarse

    @property
    def knots(self) -> NDArray[np.float64]:
        """(n_intervals + 1,) knot positions."""
        fine = self.lower + self.step_fine * np.arange(self.n_fine + 1)
        return np.concatenate((fine, self.middle + self.step_coarse * np.arange(1, self.n_coarse + 1)))

    @property
    def steps(self) -> NDArray[np.float64]:
        """(n_intervals,) width of each interval."""
        return np.repeat([self.step_fine, self.step_coarse], [self.n_fine, self.n_coarse])

    def extended(self, upper: float, at_a_time: int = 1) -> Grid:
        """The grid continued with its last step until it covers `upper`, by so many intervals at a time."""
        if upper <= self.upper:
            return self
        step = self.step_coarse if self.n_coarse else self.step_fine
        more = at_a_time * int(np.ceil((upper - self.upper) / (at_a_time * step)))
        return (
            replace(self, n_coarse=self.n_coarse + more) if self.n_coarse else replace(self, n_fine=self.n_fine + more)
        )

    def thinned(self, k: int) -> Grid:
        """The grid with every k-th knot, and as far as it takes to reach at least as far."""
        fine, coarse = -(-self.n_fine // k), -(-self.n_coarse // k)
        return Grid(self.lower, k * self.step_fine, fine, k * self.step_coarse, coarse)

    def locate(self, s: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Interval and local coordinate t of each s; beyond the ends the first or last interval goes on."""
        fine = np.floor((s - self.lower) / self.step_fine)
        coarse = self.n_fine + np.floor((s - self.middle) / self.step_coarse)
        index = np.clip(np.where(s < self.middle, fine, coarse), 0, self.n_intervals - 1).astype(np.int64)
        if self.n_coarse == 0:
            index = np.minimum(fine.clip(0), self.n_fine - 1).astype(np.int64)
        in_fine = index < self.n_fine
        t_fine = (s - self.lower) / self.step_fine - index
        t_coarse = (s - self.middle) / self.step_coarse - (index - self.n_fine)
        return index, np.where(in_fine, t_fine, t_coarse)


def hermite_coefficients(grid: Grid, jets: Doubles) -> Doubles:
    """Local coefficients (k, n_intervals, 6, M) of k tables, given (3, k, n_intervals + 1, M): G, G′, G″."""
    scale = (grid.steps ** np.arange(3)[:, None])[:, None, :, None]  # derivatives by s to those by t
    sides = np.concatenate((jets[:, :, :-1] * scale, jets[:, :, 1:] * scale))
    powers = (_HERMITE @ sides.reshape(6, -1)).reshape(sides.shape)
    return np.ascontiguousarray(powers.transpose(1, 2, 0, 3))


class ScalarEmbedding(Protocol):
    """What a table and the networks themselves have in common."""

    @property
    def n_channels(self) -> int:
        """M."""
        ...

    @property
    def upper(self) -> float:
        """The largest argument it is good for."""
        ...

    def evaluate(self, s: NDArray[np.floating], which: NDArray[np.integer]) -> tuple[NDArray, NDArray]:
        """G and dG/ds, each (n, M), of embedding `which` (n,) at `s` (n,)."""
        ...


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
        One per table; ours share one grid, DeePMD-kit's files have a grid of its own for each network.
    coefficients
        (n_tables, n_intervals, 6, M) in powers of the local coordinate t ∈ [0, 1], channels last; rows
        behind a shorter grid's last interval are zero.
    """

    grids: tuple[Grid, ...]
    coefficients: NDArray[np.floating]

    @classmethod
    def from_networks(cls, networks: Sequence[Network], grid: Grid) -> RadialTable:
        """Tabulate networks of one scalar input, all over one grid."""
        jets = np.stack([np.stack(net.jet(grid.knots)) for net in networks], axis=1)
        return cls((grid,) * len(networks), hermite_coefficients(grid, jets))

    @classmethod
    def on_grids(cls, networks: Sequence[Network], grids: Sequence[Grid]) -> RadialTable:
        """Tabulate each network over a grid of its own."""
        tables = [cls.from_networks([net], grid).coefficients[0] for net, grid in zip(networks, grids, strict=True)]
        coefficients = np.zeros((len(tables), max(len(table) for table in tables), *tables[0].shape[1:]))
        for whole, table in zip(coefficients, tables, strict=True):
            whole[: len(table)] = table
        return cls(tuple(grids), coefficients)

    @property
    def n_channels(self) -> int:
        """M."""
        return int(self.coefficients.shape[3])

    @property
    def upper(self) -> float:
        """The largest argument that every table covers."""
        return min(grid.upper for grid in self.grids)

    def astype(self, dtype: type) -> RadialTable:
        """The same table in another precision; formed in float64 and rounded once."""
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
        return value, slope / grid.steps[index][:, None].astype(c.dtype)

    def error(self, networks: Sequence[Network], n_probe: int = 4) -> tuple[float, float]:
        """Largest error of G and of dG/ds against the networks, probed inside every interval."""
        inside = (np.arange(n_probe) + 0.5) / n_probe
        worst = np.zeros(2)
        for i, (net, grid) in enumerate(zip(networks, self.grids, strict=True)):
            probes = grid.knots[:-1, None] + grid.steps[:, None] * inside
            for first in range(0, len(probes), _BLOCK):
                s = probes[first : first + _BLOCK].ravel()
                value, slope = self._evaluate_one(i, s)
                exact = net.jet(s)
                worst = np.maximum(worst, [np.abs(value - exact[0]).max(), np.abs(slope - exact[1]).max()])
        return float(worst[0]), float(worst[1])

    def thinned(self, networks: Sequence[Network], tolerance: float) -> RadialTable:
        """With the fewest of its knots that keep |ΔG| and |ΔG′| against the networks below `tolerance`; or the same."""
        for k in (8, 6, 4, 3, 2):
            table = RadialTable.on_grids(networks, [grid.thinned(k) for grid in self.grids])
            if max(table.error(networks)) <= tolerance:
                return table
        return self

    def extended(self, networks: Sequence[Network], upper: float) -> RadialTable:
        """The same tables continued from the networks, each with its last step, until all cover `upper`."""
        grids = tuple(grid.extended(upper, EXTENSION) for grid in self.grids)
        shape = (len(grids), max(g.n_intervals for g in grids), *self.coefficients.shape[2:])
        coefficients = np.zeros(shape, self.coefficients.dtype)
        for i, (old, new) in enumerate(zip(self.grids, grids, strict=True)):
            coefficients[i, : old.n_intervals] = self.coefficients[i, : old.n_intervals]
            for first in range(old.n_intervals, new.n_intervals, EXTENSION):
                knots = new.knots[first : first + EXTENSION + 1]
                part = Grid(float(knots[0]), float(new.steps[-1]), EXTENSION)
                jets = np.stack(networks[i].jet(knots))[:, None]
                coefficients[i, first : first + EXTENSION] = hermite_coefficients(part, jets)[0]
        return RadialTable(grids, coefficients)


def fitted_table(
    networks: Sequence[Network],
    lower: float,
    upper: float,
    tolerance: float,
    max_intervals: int = 4096,
    measure: Callable[[RadialTable], float] | None = None,
) -> RadialTable:
    """A uniform table with |ΔG| and |ΔG′| below `tolerance`, of about as few intervals as that takes.

    `measure` takes the place of these errors.  If even `max_intervals` misses the tolerance, or what is left is
    rounding error, that table.
    """
    n, before = FEWEST_INTERVALS, np.inf
    while True:
        table = RadialTable.from_networks(networks, Grid.uniform(lower, upper, n))
        error = measure(table) if measure else max(table.error(networks))
        rounded = error < _ROUNDING and error > before / 1.3
        if error <= tolerance or n >= max_intervals or rounded:
            return table
        before = error
        # A quintic piece's slope has an error of the width's fifth power, once the width is small.
        growth = min(max(1.05 * (error / tolerance) ** 0.2, 1.1), 4.0)
        n = min(max_intervals, int(np.ceil(n * growth)))
