"""A model of MD's time a step on many ranks: what a rank does by itself, and what it waits for.

    t(P) = n·t_atom + g·t_ghost                       own work: n atoms, g ghosts copied, as on one rank
         + 2·(m·latency + b/bandwidth) − hidden       the exchanges: positions of ghosts there, forces back
         + 2·hop·log₂P                                two all-reduces of a few numbers: rebuild? all well?

m messages and b bytes go from a rank to others in one exchange; both follow from the geometry of bricks (`Shell`).
Hidden is what of an exchange runs while atoms without ghosts among their neighbors are computed, at most their time.
Not in the model: unequal bricks, ranks that are late for other reasons, several ranks sharing a network card, output.
Lengths in Å, times in s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
from scipy.optimize import nnls

from dphpc.core.box import Box
from dphpc.parallel.domain import Grid

BYTES = 24
"""Of a ghost in one exchange: three float64 of its position, or of its force."""

Overlap = Literal["none", "refresh", "both"]
"""Which exchanges run behind the atoms that have no ghosts: none, that of positions, or that of forces, too."""


@dataclass(frozen=True)
class Network:
    """A message of n bytes takes latency + n/bandwidth, a small all-reduce log₂P times `hop`."""

    latency: float
    bandwidth: float
    hop: float


@dataclass(frozen=True)
class Work:
    """What one rank does by itself: seconds of an atom and of a ghost a step, atoms per Å³, cutoff + skin."""

    per_atom: float
    per_ghost: float
    density: float
    reach: float


@dataclass(frozen=True)
class Shell:
    """The space within reach of a brick, in units of the brick.

    Attributes
    ----------
    ghosts
        Its volume: Π(1 + 2·reach/width) − 1.
    foreign
        The part that other ranks own; the rest are the brick's own images.
    messages
        Ranks that own it: the fewest messages that can bring it.
    interior
        The part of the brick that is farther than the reach from its faces.
    """

    ghosts: float
    foreign: float
    messages: int
    interior: float


def shell(box: Box, grid: Grid, reach: float) -> Shell:
    """The shell of each of the equal bricks of a periodic box."""
    widths = box.heights / np.array(grid)
    per_axis = []
    for width in widths:
        hops = math.ceil(reach / width)
        # How much of the brick k bricks away lies within reach; the last one may do so in part.
        near = {k: min(1.0, reach / width - (abs(k) - 1)) for k in range(-hops, hops + 1) if k}
        per_axis.append({0: 1.0} | near)
    ghosts, foreign, owners = -1.0, 0.0, set()  # the brick itself is none of its ghosts
    for offset in product(*per_axis):
        volume = math.prod(share[k] for share, k in zip(per_axis, offset, strict=True))
        owner = tuple(k % g for k, g in zip(offset, grid, strict=True))
        ghosts += volume
        if any(owner):
            foreign += volume
            owners.add(owner)
    return Shell(
        float(ghosts), float(foreign), len(owners), float(np.prod(np.maximum(0.0, 1.0 - 2.0 * reach / widths)))
    )


@dataclass(frozen=True)
class Step:
    """A predicted step: its parts in seconds, and messages and bytes that a rank sends in one exchange."""

    own: float
    latencies: float
    transfer: float
    hidden: float
    allreduces: float
    messages: int
    bytes: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.own + self.latencies + self.transfer - self.hidden + self.allreduces


def predict(work: Work, network: Network, box: Box, grid: Grid, overlap: Overlap = "none") -> Step:
    """A step of a periodic box cut into a grid of equal bricks."""
    ranks = math.prod(grid)
    atoms, around = work.density * box.volume / ranks, shell(box, grid, work.reach)
    own_atoms, own_ghosts = atoms * work.per_atom, around.ghosts * atoms * work.per_ghost
    sent = BYTES * around.foreign * atoms
    latency, transfer = around.messages * network.latency, sent / network.bandwidth
    behind = {"none": 0.0, "refresh": latency + transfer, "both": 2.0 * (latency + transfer)}[overlap]
    hidden = min(behind, around.interior * own_atoms)
    return Step(
        own_atoms + own_ghosts, 2.0 * latency, 2.0 * transfer, hidden, 2.0 * network.hop * math.log2(ranks),
        around.messages, sent,
    )  # fmt: skip


def fit_messages(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Latency (s) and bandwidth (bytes/s) of messages, by least squares of relative deviations."""
    t = np.array(seconds)
    matrix = np.column_stack((np.ones_like(t), np.array(sizes, float))) / t[:, None]
    latency, per_byte = nnls(matrix, np.ones_like(t))[0]
    return float(latency), float(1.0 / max(per_byte, 1e-15))


def arithmetic(work: Work, network: Network, atoms: float, grid: Grid) -> list[str]:
    """The prediction for cubes of `atoms` atoms, in words: one line each step, weak efficiencies last."""
    ranks, edge = math.prod(grid), (atoms / work.density) ** (1.0 / 3.0)
    box = Box(np.diag(edge * np.array(grid)))
    steps = {overlap: predict(work, network, box, grid, overlap) for overlap in get_args(Overlap)}
    step, around = steps["none"], shell(box, grid, work.reach)
    ghosts = around.ghosts * atoms
    shown = ", ".join(f"{s.own / s.total:.1%} with {overlap} hidden" for overlap, s in steps.items())
    return [
        f"{atoms:,.0f} atoms on each of {ranks:,} ranks ({' × '.join(map(str, grid))} cubes of {edge:.2f} Å)",
        f"  own work:    {atoms:,.0f} · {work.per_atom * 1e6:.4g} µs + {ghosts:,.0f} · {work.per_ghost * 1e6:.4g} µs "
        f"= {step.own * 1e3:.3f} ms",
        f"  ghosts:      (({edge:.2f} + 2 · {work.reach:g})³ − {edge:.2f}³) Å³ · {work.density:g}/Å³ = {ghosts:,.0f}; "
        f"{BYTES} bytes each, {step.bytes / 1e6:.3f} MB from other ranks",
        f"  messages:    2 · {step.messages} · {network.latency * 1e6:.3g} µs = {step.latencies * 1e6:.1f} µs",
        f"  transfer:    2 · {step.bytes / 1e6:.3f} MB / {network.bandwidth / 1e9:.3g} GB/s "
        f"= {step.transfer * 1e6:.1f} µs",
        f"  all-reduces: 2 · log₂({ranks}) · {network.hop * 1e6:.3g} µs = {step.allreduces * 1e6:.1f} µs",
        f"  step:        {step.total * 1e3:.3f} ms; interior {around.interior:.1%} of the brick",
        f"  weak efficiency: {shown}",
    ]
