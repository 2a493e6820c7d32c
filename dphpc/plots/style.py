"""The common style of all figures, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dphpc.core.errors import InputError, writing
from dphpc.core.files import whole

COLORS = ("#2563a8", "#e0761a", "#2a9d6f", "#b83b5e", "#7c5cbf", "#8a6d3b")
"""Line colors; they differ in lightness, so that colour-blind readers and grey prints can tell them apart."""

INK, GREY, PALE = "#22272e", "#6b7280", "#d9dde3"

STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.formatter.useoffset": False,
    "pdf.fonttype": 42,
}


@contextmanager
def panels(rows: int, columns: int, *, size: tuple[float, float], **kwargs: Any) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in the common style and its axes, row by row.

    Parameters
    ----------
    size
        Width and height of one panel in inches.
    kwargs
        As for `Figure.subplots`, e.g. `sharex`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis with ticks at 1, 2, 5, written as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def note(axes: Axes, text: str) -> None:
    """Text in the upper left corner of the axes, on a plate that covers the data behind it."""
    plate = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": PALE, "alpha": 0.9}
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", ha="left", fontsize=9, bbox=plate)


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure as the suffix of `path` says (png, pdf, svg ...).

    Raises
    ------
    InputError
        matplotlib does not write files with this suffix.
    RunError
        The file cannot be written.
    """
    path = Path(path)
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise InputError(f"cannot write a figure as '{path}'", expected=f"a suffix of {', '.join(sorted(known))}")
    with matplotlib.rc_context(STYLE), writing(path, "the figure"), whole(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".").lower())
    return path
