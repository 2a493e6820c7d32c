"""Structure: radial distribution functions, equations of state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial import cKDTree  # type: ignore[import-untyped]

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError, writing
from dphpc.core.images import periodic_images
from dphpc.core.units import EV_PER_A3_IN_GPA
from dphpc.plots.frames import Frame
from dphpc.plots.style import COLORS, GREY, panels

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
    columns = {"r_A": next(iter(curves.values())).r}
    for label, curve in curves.items():
        of = f" {label.replace(',', ' ')}" if len(curves) > 1 else ""
        columns |= {f"g{of}": curve.g, f"neighbors{of}": curve.neighbors}
    with writing(path, "the table"):
        np.savetxt(path, np.column_stack(list(columns.values())), "%.8g", ",", header=",".join(columns), comments="")
    return path


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


@dataclass(frozen=True)
class EquationOfState:
    """A third-order Birch–Murnaghan curve E(V).

    Birch, Phys. Rev. 71, 809 (1947), with η = (v0/V)^(2/3):
    E = e0 + 9 v0 b0/16 [(η − 1)³ b1 + (η − 1)² (6 − 4η)].

    `e0` eV and `v0` Å³ at the minimum (per atom or cell, as fitted), bulk modulus `b0` eV/Å³, its
    derivative by pressure `b1`.
    """

    e0: float
    v0: float
    b0: float
    b1: float

    @property
    def bulk_modulus_GPa(self) -> float:
        """b0 in GPa."""
        return self.b0 * EV_PER_A3_IN_GPA

    def energy(self, volumes: Doubles) -> Doubles:
        """E(V) in eV of volumes in Å³."""
        x = (self.v0 / volumes) ** (2.0 / 3.0) - 1.0
        return self.e0 + 9.0 / 16.0 * self.v0 * self.b0 * (x**3 * self.b1 + x**2 * (2.0 - 4.0 * x))

    @classmethod
    def fit(cls, volumes: Doubles, energies: Doubles) -> EquationOfState:
        """Least squares through (n,) Å³ and (n,) eV, n ≥ 5; the curve is a cubic in x = V^(−2/3).

        Raises
        ------
        DataError
            Too few points, or no minimum between them.
        """
        if len(volumes) < 5:
            raise DataError(f"an equation of state from {len(volumes)} volumes", expected="5 or more")
        x = np.asarray(volumes, dtype=np.float64) ** (-2.0 / 3.0)
        curve = np.polynomial.Polynomial.fit(x, energies, 3)
        slope, curvature = curve.deriv(1), curve.deriv(2)
        minima = [
            r.real
            for r in np.atleast_1d(slope.roots())
            if abs(r.imag) < 1e-12 and x.min() <= r.real <= x.max() and curvature(r.real) > 0
        ]
        if not minima:
            raise DataError("the energies have no minimum between the volumes", remedy="widen the range of volumes")
        x0 = minima[0]
        v0 = x0**-1.5
        dx, ddx = -2.0 / 3.0 * v0 ** (-5.0 / 3.0), 10.0 / 9.0 * v0 ** (-8.0 / 3.0)  # of x by V
        second = curvature(x0) * dx**2
        third = curve.deriv(3)(x0) * dx**3 + 3.0 * curvature(x0) * dx * ddx
        return cls(float(curve(x0)), float(v0), float(v0 * second), float(-1.0 - v0 * third / second))


def draw_equation_of_state(ax: Axes, curves: Mapping[str, tuple[Doubles, Doubles]]) -> None:
    """Draw energies over volume with their Birch–Murnaghan fits into axes, each relative to its minimum.

    Parameters
    ----------
    curves
        Label -> (n,) Å³ and (n,) eV, both per atom.
    """
    for i, (name, (volumes, energies)) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        fit = EquationOfState.fit(volumes, energies)
        fine = np.linspace(volumes.min(), volumes.max(), 200)
        label = f"{name}: V₀ {fit.v0:.2f} Å³/atom, B {fit.bulk_modulus_GPa:.0f} GPa"
        ax.plot(fine, 1e3 * (fit.energy(fine) - fit.e0), color=color, ls="-" if i == 0 else "--", label=label)
        ax.plot(volumes, 1e3 * (energies - fit.e0), "o" if i == 0 else "s", color=color, ms=4, mfc="white")
    ax.set(title="Equation of state", xlabel="volume (Å³/atom)", ylabel="energy above minimum (meV/atom)")
    ax.legend()
