"""Rounds of active learning: fractions of frames, errors on new labels, and deviations of the models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dphpc.core.arrays import Doubles
from dphpc.plots.style import COLORS, log_scale, panels
from dphpc.plots.tables import Table, require_columns

KINDS = (("accurate", COLORS[2]), ("candidate", COLORS[1]), ("failed", COLORS[3]))


def rounds(table: Table, deviations: Mapping[int, Doubles] | None = None, label: str = "") -> Figure:
    """Fractions of frames, errors on new labels, and the distribution of deviations, round by round.

    Parameters
    ----------
    table
        Columns of `rounds.csv`.
    deviations
        Round -> (n_frames,) max_devi_f in eV/Å; drawn beside the table's largest deviations.
    """
    needed = ("round", "worst_devi_f", "rmse_f", "rmse_e", *(name for name, _ in KINDS))
    require_columns(table, needed, "dphpc learn's rounds.csv")
    number = table["round"]
    with panels(1, 3, size=(4.2, 3.4)) as (figure, (frames, errors, spread)):
        figure.suptitle(label, fontsize=11, x=0.01, ha="left")
        below = np.zeros(len(number))
        for name, color in KINDS:
            frames.bar(number, 100.0 * table[name], bottom=100.0 * below, color=color, label=name)
            below = below + table[name]
        frames.set(title="Frames", xlabel="round", ylabel="%", ylim=(0, 118))
        frames.legend(ncols=3, loc="upper center", columnspacing=1.0, handlelength=1.2)
        for name, color, unit in (("rmse_f", COLORS[0], "force, eV/Å"), ("rmse_e", COLORS[4], "energy, eV/atom")):
            errors.plot(number, table[name], "o-", color=color, label=unit)
        errors.set(title="Error on new labels", xlabel="round", ylabel="RMSE before training on them")
        if np.isfinite(table["rmse_f"]).any():
            log_scale(errors)
        errors.legend()
        _draw_deviations(spread, number, table["worst_devi_f"], deviations or {})
        for axes in (frames, errors, spread):
            axes.set_xlim(number[0] - 0.6, number[-1] + 0.6)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _draw_deviations(axes: Axes, number: Doubles, worst: Doubles, deviations: Mapping[int, Doubles]) -> None:
    """Box plots: boxes from the lower to the upper quartile, whiskers from the 1st to the 99th percentile."""
    axes.plot(number, worst, "v", color=COLORS[3], label="largest", ms=5)
    known = {n: values[np.isfinite(values) & (values > 0)] for n, values in deviations.items()}
    known = {n: values for n, values in known.items() if len(values)}
    if known:
        axes.boxplot(
            list(known.values()), positions=list(known), whis=(1, 99), showfliers=False, widths=0.5, manage_ticks=False,
            medianprops={"color": COLORS[0]},
        )  # fmt: skip
    axes.set(title="Largest force deviation of a frame", xlabel="round", ylabel="max_devi_f (eV/Å)")
    if (worst > 0).any():
        log_scale(axes)
    axes.legend()
