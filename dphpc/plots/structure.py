"""Radial distribution functions of trajectories."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial import cKDTree  # type: ignore[import-untyped]

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError
from dphpc.core.images import periodic_images
from dphpc.plots.frames import Frame
from dphpc.plots.style import COLORS, GREY, panels
from dphpc.plots.tables import write_curves

R_MAX = 6.0
"""Å to which g(r) is taken by default."""

BIN_WIDTH = 0.05
"""Å."""


class Rdf(NamedTuple):
    """A radial distribution function.

    Attributes
    ----------
    r
        (n_bins,) Å, the middle of each bin.
    g
        (n_bins,) g(r).
    neighbors
        (n_bins,) the mean number of neighbors up to the bin's end, the running coordination number.
    """

    r: Doubles
    g: Doubles
    neighbors: Doubles


def radial_distribution(
    frames: Iterable[Frame], *, pair: Sequence[str] = (), r_max: float = R_MAX, n_bins: int | None = None
) -> Rdf:
    """g(r) of all atoms, or of two species, averaged over frames.

    g(r) = V/(N_a N_b) Σ_ij δ(r − r_ij) / 4πr² of atoms i of species a and j of species b, all images included, so
    `r_max` may exceed half the box.

    Parameters
    ----------
    pair
        The two species; empty: all atoms.  Neighbors are of the second one, around atoms of the first.
    r_max
        Å.
    n_bins
        None: as many as make them about 0.05 Å wide.

    Raises
    ------
    DataError
        There are no frames, a box that is open, or no atoms of a species.
    """
    n_bins = n_bins or math.ceil(r_max / BIN_WIDTH - 1e-9)
    edges = np.linspace(0.0, r_max, n_bins + 1)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    total, neighbors, n_frames = np.zeros(n_bins), np.zeros(n_bins), 0
    for positions, box, species, _ in frames:
        if not all(box.periodic):
            raise DataError(
                "a frame whose box does not repeat in all three directions",
                expected="g(r) is relative to the mean density, which only such a box has",
            )
        for name in pair:
            if name not in species:
                raise DataError(f"no atoms of species '{name}'", expected=f"two of {', '.join(np.unique(species))}")
        first, second = (species == name for name in pair) if pair else (np.ones(len(species), bool),) * 2
        inside = box.wrap(positions)
        owners, shifts = periodic_images(inside[second], box, r_max)
        tree = cKDTree(np.concatenate([inside[second], inside[second][owners] + shifts @ box.matrix]))
        # An atom finds itself at 0 Å, which the difference removes.
        counts = np.diff(cKDTree(inside[first]).count_neighbors(tree, edges))
        total += counts * box.volume / (first.sum() * second.sum() * shells)
        neighbors += np.cumsum(counts) / first.sum()
        n_frames += 1
    if n_frames == 0:
        raise DataError("no frames to take a radial distribution function of")
    return Rdf(0.5 * (edges[1:] + edges[:-1]), total / n_frames, neighbors / n_frames)


def write_rdf(path: Path, curves: Mapping[str, Rdf]) -> Path:
    """Write curves, which have the same bins, as a CSV file with the columns r_A, g and neighbors.

    Of several the latter two are repeated, with the curve's label.
    """
    found = {label: {"g": curve.g, "neighbors": curve.neighbors} for label, curve in curves.items()}
    return write_curves(path, ("r_A", next(iter(curves.values())).r), found)


def draw_rdf(ax: Axes, curves: Mapping[str, Sequence[Doubles]], of: str = "") -> None:
    """Draw g(r) `of` a pair, from one or more sources, into axes: the first solid, the others dashed over it."""
    for i, (name, (r, g, *_)) in enumerate(curves.items()):
        ax.plot(r, g, label=name, color=COLORS[i % len(COLORS)], lw=1.8, ls="-" if i == 0 else "--")
    ax.axhline(1.0, color=GREY, lw=0.8)
    ax.set(title="Radial distribution function", xlabel="r (Å)", ylabel=f"g(r) of {of}" if of else "g(r)")
    ax.set_xlim(0, max(r[-1] for r, *_ in curves.values()))
    ax.set_ylim(bottom=0)
    tops = [float(g.max()) for _, g, *_ in curves.values()]
    rest = max(float(_beyond_first_shell(g).max(initial=0.0)) for _, g, *_ in curves.values())
    if 0 < 5 * rest < max(tops):  # bonds: what they belong to would be a flat line
        ax.set_ylim(top=max(1.5 * rest, 2.0))
        ax.text(0.5, 0.9, f"highest peak: {max(tops):.3g}", transform=ax.transAxes, ha="center", color=GREY)
    ax.legend()


def _beyond_first_shell(g: Doubles) -> Doubles:
    """g after the gap that follows its first peak; empty if there is none."""
    after = g[int(np.argmax(g > 0.1)) :]
    return after[int(np.argmax(after < 0.1)) :] if (after < 0.1).any() else after[:0]


def rdf(curves: Mapping[str, Sequence[Doubles]], of: str = "") -> Figure:
    """A figure of `draw_rdf`; curves are label -> r (n,) in Å and g (n,)."""
    with panels(1, 1, size=(5.4, 3.8)) as (figure, (ax,)):
        draw_rdf(ax, curves, of)
    return figure
