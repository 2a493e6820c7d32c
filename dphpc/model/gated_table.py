"""Tables of embedding networks with a gate (`gated.py`), whose second derivative by s is infinite at rcut.

All networks share one grid of s, which each reads by its own s̃ = s/dstd.  There is a knot at rcut_smth, where the third
derivative jumps.  Forces depend on G times rows that are proportional to s, so the error of d(s·G)/dr counts: it goes
as h⁵/s³ for an interval of width h at s, and as h² at rcut.  Some hundred intervals are enough, as their widths grow
with s, in `GATE_PARTS` parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.model.descriptor import SeE2A
from dphpc.model.gated import Gate, GatedNetwork
from dphpc.model.networks import Array, Network
from dphpc.model.radial_table import Grid, Measure, RadialTable, fitted_table

GATE_PARTS = 3
"""Parts of the grid between rcut and rcut_smth."""

NEAREST = 0.05
"""Å; tables need not tell nearer distances apart."""

DISTANCES = 2048
"""Number of distances at which errors are measured."""

_GROWTH, _CELLS = 1.2, 64
"""Ratio of the widths of neighboring cells, and their number; a part of the grid begins where a cell does."""


@dataclass
class _OfS(Network):
    """A network as a function of s = dstd·s̃."""

    own: Network
    dstd: float

    def jet(self, s: Array, xp: Any = np) -> tuple[Array, Array, Array]:
        """As of `Network`."""
        g, g1, g2 = self.own.jet(s / self.dstd, xp)
        return g, g1 / self.dstd, g2 / self.dstd**2


def of_s(d: SeE2A, networks: Sequence[Network]) -> list[Network]:
    """A descriptor's networks (davg is 0) as functions of s, in 1/Å."""
    return [_OfS(net.layers, net, scale) for net, scale in zip(networks, scales(d), strict=True)]


def s_range(d: SeE2A, nearest: float) -> tuple[float, float]:
    """The range of s for distances from `nearest` (Å) to rcut."""
    return 0.0, float(d.radial(np.array([nearest]))[0][0])


def distance(d: SeE2A, s: float) -> float:
    """The distance (Å) at which s is that large; at least `NEAREST`."""
    gate = Gate(d.rcut, d.rcut_smth, d.env_protection, 0.0, 1.0)
    return max(NEAREST, float(gate.jet(np.array([s]))[0][0]) / s - d.env_protection)


def fitted_grid(d: SeE2A, nearest: float, tolerance: float, max_intervals: int, parts: int) -> Grid:
    """A grid of up to `parts` parts for tables of networks `of_s` and distances from `nearest` (Å) to rcut.

    `tolerance` limits the error of d(s·G)/dr at each distance, as root mean square over center types and channels and
    relative to the root mean square of d(s·G)/dr over all distances.
    """
    steepest, upper = _steepest(d), s_range(d, nearest)[1]

    def fit(lower: float, upper: float, span: tuple[float, float], most_parts: int, cells: Doubles | None) -> Grid:
        measure = _force_error(d, steepest, *span)
        return fitted_table(steepest, lower, upper, tolerance, max_intervals, measure, most_parts, cells).grids[0]

    cells: Doubles = np.power(_GROWTH, np.arange(_CELLS, dtype=np.float64))
    far, *near = _spans(d, nearest)
    if not near:
        return fit(0.0, upper, far, min(GATE_PARTS, parts), cells)
    opens = 1.0 / (d.rcut_smth + d.env_protection)
    gate = fit(0.0, opens, far, min(GATE_PARTS, parts - 1), cells)
    return gate.followed_by(fit(opens, upper, near[0], parts - len(gate.counts), None))


def force_error(d: SeE2A, grid: Grid) -> float:
    """The error that `fitted_grid` limits, of tables on a grid that begins at rcut."""
    steepest = _steepest(d)
    table = RadialTable.from_networks(steepest, grid)
    spans = _spans(d, distance(d, grid.upper))
    return max(float(_force_error(d, steepest, *span)(table)[1].max()) for span in spans)


def _spans(d: SeE2A, nearest: float) -> list[tuple[float, float]]:
    """The distances (Å) where the gate is at work, and the nearer ones where it is open, if there are any."""
    closed = d.rcut_smth + d.env_protection  # the gate is open where r + p is less
    if s_range(d, nearest)[1] * closed <= 1.0 + 1e-9:
        return [(nearest, d.rcut)]
    return [(d.rcut_smth, d.rcut), (nearest, d.rcut_smth)]


def _steepest(d: SeE2A) -> list[Network]:
    """For each center type its network `of_s` with, in each channel, the largest gain that any neighbor has.

    G is N + gain·N·w, so a grid that is fine enough for these networks is so for all.
    """
    found: list[Network] = []
    for c, row in enumerate(d.network_index()):
        own = [net for net in (d.networks[i].astype(np.float64) for i in row) if isinstance(net, GatedNetwork)]
        gains = np.array([net.gains for net in own])
        largest = gains[np.abs(gains).argmax(axis=0), np.arange(gains.shape[1])]
        found.append(_OfS(own[0].layers, replace(own[0], gains=largest), float(d.dstd[c, 0])))
    return found


def error(d: SeE2A, networks: Sequence[Network], table: RadialTable, nearest: float) -> tuple[float, float]:
    """Largest error of s·G and of d(s·G)/dr (1/Å) at distances from `nearest` (Å) on, of networks `of_s`."""
    s, ds = d.radial(distances(nearest, d.rcut, DISTANCES))
    of_value, of_slope = 0.0, 0.0
    for i, net in enumerate(networks):
        exact, found = net.jet(s), table.evaluate(s, np.full(len(s), i))
        value, slope = found[0] - exact[0], found[1] - exact[1]
        of_value = max(of_value, float(np.abs(s[:, None] * value).max()))
        of_slope = max(of_slope, float(np.abs(ds[:, None] * (value + s[:, None] * slope)).max()))
    return of_value, of_slope


def scales(d: SeE2A) -> list[float]:
    """dstd of the center type of each network."""
    index = d.network_index()
    return [float(d.dstd[np.argwhere(index == i)[0, 0], 0]) for i in range(len(d.networks))]


def distances(nearest: float, farthest: float, n: int) -> Doubles:
    """(n,) Å, the middles of n equal parts between two distances."""
    return nearest + (farthest - nearest) * (np.arange(n, dtype=np.float64) + 0.5) / n


def _force_error(d: SeE2A, networks: Sequence[Network], nearest: float, farthest: float) -> Measure:
    """The `Measure` of forces' errors between two distances (Å)."""
    s, ds = d.radial(distances(nearest, farthest, DISTANCES))
    exact = [net.jet(s)[:2] for net in networks]
    size = np.sqrt(np.mean([np.mean((ds[:, None] * (g + s[:, None] * g1)) ** 2) for g, g1 in exact])) or 1.0

    def measure(table: RadialTable) -> tuple[Doubles, Doubles]:
        squares = np.zeros(DISTANCES)
        for i, (g, g1) in enumerate(exact):
            value, slope = table.evaluate(s, np.full(DISTANCES, i))
            squares += np.mean((ds[:, None] * (value - g + s[:, None] * (slope - g1))) ** 2, axis=1)
        return s, np.sqrt(squares / len(exact)) / size

    return measure
