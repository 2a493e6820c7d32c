"""Curves over steps or time: learning, thermodynamics, model deviation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError
from dphpc.core.units import EV_PER_A3_IN_BAR, EV_PER_A3_IN_GPA
from dphpc.plots.style import COLORS, GREY, log_scale, panels
from dphpc.plots.tables import Table, require_columns

GPA_PER_BAR = EV_PER_A3_IN_GPA / EV_PER_A3_IN_BAR

LOSSES = {
    "e": ("Energy", "meV/atom", 1e3),
    "f": ("Force", "eV/Å", 1.0),
    "v": ("Virial", "meV/atom", 1e3),
}
"""Suffix in lcurve.out -> title, unit of the axis, factor from the file's unit."""

THERMO = ("time_ps", "temperature_K", "potential_eV", "kinetic_eV", "total_eV", "conserved_eV", "pressure_bar")
DEVIATIONS = ("step", *(f"{measure}_devi_{kind}" for kind in "fv" for measure in ("max", "min", "avg")))
"""Columns of thermo.csv and of model_devi.out that are drawn."""


def learning_curve(runs: Mapping[str, Table]) -> Figure:
    """Errors during training, one panel for each kind of label, all runs overlaid.

    Parameters
    ----------
    runs
        Label -> columns of its `lcurve.out`.

    Raises
    ------
    DataError
        A table has no column of errors.
    """
    kinds = [kind for kind in LOSSES if any(_loss(table, kind) is not None for table in runs.values())]
    without = [name for name, table in runs.items() if all(_loss(table, kind) is None for kind in LOSSES)]
    if without:
        raise DataError(
            "no column with an error in it",
            where=without[0],
            expected="rmse_e_val, rmse_f_trn, mae_e_val ... as in lcurve.out",
        )
    with panels(1, len(kinds), size=(4.4, 3.6)) as (figure, axes):
        for ax, kind in zip(axes, kinds, strict=True):
            draw_loss(ax, runs, kind)
    return figure


def draw_loss(ax: Axes, runs: Mapping[str, Table], kind: str) -> None:
    """Draw the errors of one kind ("e", "f" or "v") into axes.

    Single rows are pale, and their running mean over a fiftieth of the run (for an RMSE the mean of squares) is bold.
    Validation errors are preferred to training errors.
    """
    title, unit, factor = LOSSES[kind]
    measures: dict[str, None] = {}
    for i, (name, table) in enumerate(runs.items()):
        found = _loss(table, kind)
        if found is not None:
            data, measure, errors = found
            measures[measure] = None
            color = COLORS[i % len(COLORS)]
            ax.plot(table["step"], factor * errors, color=color, alpha=0.22, lw=0.8)
            smooth = _running_mean(table["step"], factor * errors, power=2 if measure == "RMSE" else 1)
            ax.plot(*smooth, color=color, label=f"{name} ({data})")
    ax.set(title=title, xlabel="training step", ylabel=f"{', '.join(measures)} ({unit})")
    log_scale(ax)
    ax.legend()


def thermo(table: Table, label: str = "") -> Figure:
    """Temperature, energies, drift of the conserved quantity and pressure of an MD run over time.

    Density and box lengths are added if the volume changes.  The axis is the step where time stands still, as in a
    minimization.

    Parameters
    ----------
    table
        Columns of `thermo.csv`.
    label
        Title of the figure.
    """
    require_columns(table, THERMO, "dphpc md's thermo.csv")
    time, unit = table["time_ps"], "time (ps)"
    if "step" in table and not np.ptp(time):
        time, unit = table["step"], "step"
    lengths = [name for name in ("a_A", "b_A", "c_A") if name in table]
    breathes = "density_g_cm3" in table and bool(np.ptp(table["volume_A3"])) and bool(lengths)
    with panels(2 + breathes, 2, size=(4.6, 2.9), sharex=True) as (figure, axes):
        top, energy, drift, pressure, *box = axes
        figure.suptitle(label, fontsize=11, x=0.01, ha="left")
        top.plot(time, table["temperature_K"], color=COLORS[3])
        top.set(title="Temperature", ylabel="T (K)")
        for name, color in (("potential", COLORS[0]), ("kinetic", COLORS[1]), ("total", GREY)):
            energy.plot(time, _change(table[f"{name}_eV"]), color=color, label=name)
        energy.set(title="Energies", ylabel="change since start (eV)")
        change, since = _conserved(table)
        drift.plot(time, change, color=COLORS[2])
        drift.set(title="Conserved quantity", ylabel=f"change since {since} (meV)")
        pressure.plot(time, GPA_PER_BAR * table["pressure_bar"], color=COLORS[4])
        pressure.set(title="Pressure", ylabel="P (GPa)")
        if box:
            box[0].plot(time, table["density_g_cm3"], color=COLORS[5])
            box[0].set(title="Density", ylabel="g/cm³")
            for name, style in zip(lengths, ("-", "--", ":"), strict=False):
                box[1].plot(time, 1e2 * _change(table[name]) / table[name][0], style, label=name.removesuffix("_A"))
            box[1].set(title="Lengths of the box vectors", ylabel="change since start (%)")
        for ax in (energy, *box[1:]):
            ax.margins(y=0.18)
            ax.legend(ncols=3, loc="upper center")
        for ax in axes[-2:]:
            ax.set_xlabel(unit)
    return figure


def _change(values: Doubles) -> Doubles:
    return values - values[0]


def _conserved(table: Table) -> tuple[Doubles, str]:
    """Change of the conserved quantity in meV, and since when: after a minimization, which has none, it begins anew."""
    change = 1e3 * _change(table["conserved_eV"])
    minimized = table["kinetic_eV"] == 0.0
    if minimized[0] and not minimized[1:2].all():
        minimized[0] = False  # a run that starts at rest
    if minimized.all() or not minimized.any():
        return change, "start"
    change[minimized] = np.nan
    for part in np.split(np.arange(len(change)), np.flatnonzero(minimized) + 1):
        moving = part[~minimized[part]]
        change[moving] -= change[moving[:1]]
    return change, "start, minimizations apart"


def model_deviation(runs: Mapping[str, Table]) -> Figure:
    """Disagreement of several models along trajectories, and how the largest one is distributed.

    Of several trajectories the largest deviations are drawn, of one also the smallest and the average.

    Parameters
    ----------
    runs
        Label -> columns of its `model_devi.out`.
    """
    for table in runs.values():
        require_columns(table, DEVIATIONS, "model_devi.out")
    several, largest = len(runs) > 1, [table["max_devi_f"] for table in runs.values()]
    bins = np.histogram_bin_edges(np.concatenate(largest), "auto" if max(map(len, largest)) > 20 else 10)
    with panels(1, 3, size=(4.2, 3.4)) as (figure, (force, virial, spread)):
        for label, table in runs.items():
            for ax, kind in ((force, "f"), (virial, "v")):
                ax.plot(table["step"], table[f"max_devi_{kind}"], lw=1.2 if several else 1.6, label="max")
                if not several:
                    _smaller_deviations(ax, table, kind)
                    ax.legend()
            style = {"histtype": "step", "lw": 1.6} if several else {"alpha": 0.8}
            spread.hist(table["max_devi_f"], bins.tolist(), label=label, **style)
        if several:
            spread.legend()
        else:
            figure.suptitle(next(iter(runs)), fontsize=11, x=0.01, ha="left")
        for ax in (force, virial):
            ax.set_ylim(bottom=0)
        which = ", largest" if several else ""
        force.set(title=f"Forces{which}", xlabel="step", ylabel="deviation (eV/Å)")
        virial.set(title=f"Virial{which}", xlabel="step", ylabel="deviation (eV/atom)")
        spread.set(title="Largest force deviation", xlabel="max. deviation (eV/Å)", ylabel="frames")
    return figure


def _smaller_deviations(ax: Axes, table: Table, kind: str) -> None:
    """The average deviation, and a band from the smallest to the largest."""
    step, low, high = table["step"], *(np.nan_to_num(table[f"{end}_devi_{kind}"]) for end in ("min", "max"))
    ax.fill_between(step, low, high, color=COLORS[0], alpha=0.15, lw=0)
    ax.plot(step, table[f"avg_devi_{kind}"], color=COLORS[0], ls="--", lw=1.2, label="average")


def _loss(table: Table, suffix: str) -> tuple[str, str, Doubles] | None:
    """(data, measure, errors) of a kind; None if the table has no such errors."""
    for data, ending in (("validation", "_val"), ("training", "_trn"), ("training", "")):
        for measure in ("RMSE", "MAE"):
            column = f"{measure.lower()}_{suffix}{ending}"
            if column in table and np.any(np.isfinite(table[column])):
                return data, measure, table[column]
    return None


def _running_mean(step: Doubles, errors: Doubles, power: int) -> tuple[Doubles, Doubles]:
    keep = np.isfinite(errors)
    step, errors = step[keep], errors[keep]
    width = max(1, len(errors) // 50)
    kernel = np.full(width, 1.0 / width)
    return np.convolve(step, kernel, "valid"), np.convolve(errors**power, kernel, "valid") ** (1 / power)
