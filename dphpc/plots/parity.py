"""Parity plots: predictions against labels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError
from dphpc.plots.style import COLORS, GREY, note, panels
from dphpc.plots.tables import read_rows

DETAIL_FILES = {
    ".e_peratom.out": ("Energy", "meV/atom", 1e3, True),
    ".f.out": ("Force", "eV/Å", 1.0, False),
    ".v_peratom.out": ("Virial", "eV/atom", 1.0, False),
    ".ae.out": ("Energy of an atom", "eV", 1.0, True),
    ".e.out": ("Energy of a frame", "eV", 1.0, True),
    ".v.out": ("Virial of a frame", "eV", 1.0, False),
    ".s.out": ("Stress", "eV/Å³", 1.0, False),
}
"""Suffix of a detail file of `dphpc test -d` -> title, unit, factor, whether the mean is subtracted."""

MANY = 3000
"""Number of points above which their density is drawn."""


@dataclass(frozen=True)
class Parity:
    """Labels and predictions (n,) of one quantity, in `unit`; `about_mean`: drawn with the mean subtracted."""

    title: str
    unit: str
    labels: Doubles
    predictions: Doubles
    about_mean: bool = False

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, in `unit`."""
        return float(np.sqrt(np.mean((self.predictions - self.labels) ** 2)))

    @property
    def mae(self) -> float:
        """Mean absolute error, in `unit`."""
        return float(np.mean(np.abs(self.predictions - self.labels)))


def read_details(paths: Sequence[Path | str]) -> list[Parity]:
    """Read the detail files of `dphpc test -d PREFIX` (or `dp test -d`).

    Parameters
    ----------
    paths
        One prefix, which stands for the files per atom, or the files themselves.

    Raises
    ------
    DataError
        The files are missing, or are no detail files.
    """
    files = [Path(p) for p in paths]
    if len(files) == 1 and not any(files[0].name.endswith(ending) for ending in DETAIL_FILES):
        candidates = [Path(f"{files[0]}{ending}") for ending in list(DETAIL_FILES)[:4]]
        files = [file for file in candidates if file.exists()]
        if not files:
            raise DataError(
                f"no file {' or '.join(str(c) for c in candidates)}",
                remedy="write them with: dphpc test -m MODEL -s SYSTEM -d PREFIX",
            )
    return [_read(file) for file in files]


def _read(path: Path) -> Parity:
    for ending, (title, unit, factor, about_mean) in DETAIL_FILES.items():
        if path.name.endswith(ending):
            rows = read_rows(path) * factor
            half = rows.shape[1] // 2
            return Parity(title, unit, rows[:, :half].ravel(), rows[:, half : 2 * half].ravel(), about_mean)
    raise DataError(f"'{path}' is no detail file", expected=f"a name ending in {', '.join(DETAIL_FILES)}")


def parity(quantities: Sequence[Parity]) -> Figure:
    """One square panel for each quantity, with RMSE and MAE written in."""
    with panels(1, len(quantities), size=(4.0, 4.3)) as (figure, axes):
        for ax, quantity, color in zip(axes, quantities, itertools.cycle(COLORS), strict=False):
            draw_parity(ax, quantity, color)
    return figure


def draw_parity(ax: Axes, q: Parity, color: str = COLORS[0]) -> None:
    """Draw predictions over labels of one quantity into square axes; many points as a density."""
    shift = q.labels.mean() if q.about_mean else 0.0
    x, y = q.labels - shift, q.predictions - shift
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color=GREY, lw=0.9, zorder=3)
    if len(x) > MANY:
        ax.hexbin(x, y, gridsize=90, bins="log", mincnt=1, extent=(*limits, *limits), cmap="viridis_r", lw=0.1)
    else:
        ax.scatter(x, y, s=12, color=color, alpha=0.5, lw=0)
    ax.set(xlim=limits, ylim=limits, box_aspect=1.0, title=q.title)
    about = " − mean" if q.about_mean else ""
    ax.set(xlabel=f"label{about} ({q.unit})", ylabel=f"prediction{about} ({q.unit})")
    note(ax, f"RMSE {q.rmse:.3g} {q.unit}\nMAE {q.mae:.3g} {q.unit}\n{len(x):,} values")
