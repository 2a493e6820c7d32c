"""Compression: the embedding networks of a trained model tabulated to a stated accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dphpc.core.errors import InputError, ModelFileError
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model, write_model
from dphpc.model.radial_table import Grid, RadialTable, fitted_table

DEFAULT_TOLERANCE = 1e-9
"""Error of G and dG/ds below which the table is fine enough: forces change by less than 1e-7 eV/Å."""

DEFAULT_DISTANCE = 0.5
"""Å: nearest pair assumed where the model does not know its training data's."""

COARSENING = 4
"""Step beyond the training data's range over a given step inside it."""

MAX_INTERVALS = 16384
"""Inside and beyond."""


@dataclass(frozen=True)
class CompressionReport:
    """What was built and how exact it is.

    Attributes
    ----------
    inside, beyond
        (lower, upper) of s̃ that the training data reach, and up to which the table extrapolates.
    error_g, error_slope
        Largest measured error of G and of dG/ds inside; `error_beyond` of both beyond.
    """

    inside: tuple[float, float]
    beyond: float
    nearest_pair: float
    n_intervals: int
    n_tables: int
    megabytes: float
    error_g: float
    error_slope: float
    error_beyond: float

    def __str__(self) -> str:
        return (
            f"table of {self.n_tables} embedding nets: {self.n_intervals} intervals, {self.megabytes:.2f} MB\n"
            f"  s from {self.inside[0]:.4g} to {self.inside[1]:.4g} (pairs as near as {self.nearest_pair:.3f} Å), "
            f"continued to {self.beyond:.4g}\n"
            f"  largest error inside: G {self.error_g:.2e}, dG/ds {self.error_slope:.2e}; "
            f"beyond: {self.error_beyond:.2e}"
        )


def compress(
    model: DPModel, step: float | None = None, extrapolate: float = 5.0, tolerance: float = DEFAULT_TOLERANCE
) -> tuple[DPModel, CompressionReport]:
    """Tabulate a model's embedding networks.

    Parameters
    ----------
    step
        Width of an interval of s̃, `COARSENING` times that beyond the data; by default wide enough for `tolerance`.
    extrapolate
        The table goes on to this multiple of the largest s̃ of the training data, with wider intervals.
        Nearer pairs still are met in a run: the table then grows from the network.
    tolerance
        Allowed error of G and dG/ds.

    Raises
    ------
    InputError
        A step or factor that makes no table, or one of more than `MAX_INTERVALS`.
    ModelFileError
        The activation is too rough for a smooth table.
    """
    d = model.descriptor
    if any(net.has_kinks for net in d.networks):
        raise ModelFileError(
            f"a network with activation '{d.activation_function}' has kinks and cannot be tabulated exactly",
            remedy="use the model uncompressed, or train with tanh, gelu or silu",
        )
    if (step is not None and not step > 0) or not extrapolate >= 1.0:
        raise InputError("the table would be empty", expected="step > 0 and extrapolate >= 1")
    nearest = model.min_nbor_dist or DEFAULT_DISTANCE
    lower, upper = d.s_range(nearest)
    networks = [net.astype(np.float64) for net in d.networks]
    end = max(upper * extrapolate, upper)  # upper may be negative
    if step is None:
        fine, (error_g, error_slope) = fitted_table(networks, lower, upper, tolerance, MAX_INTERVALS)
        grid = fine.grids[0]
        if end > upper:
            far = fitted_table(networks, upper, end, tolerance, MAX_INTERVALS)[0].grids[0]
            grid = replace(grid, step_coarse=far.step_fine, n_coarse=far.n_fine)
    else:
        _require_wide(step, lower, upper, end)
        grid = Grid.uniform(lower, upper, max(1, int(np.ceil((upper - lower) / step))))
        error_g, error_slope = RadialTable.from_networks(networks, grid).error(networks)
        coarse = COARSENING * grid.step_fine
        grid = replace(grid, step_coarse=coarse, n_coarse=int(np.ceil((end - upper) / coarse)))
    table = RadialTable.from_networks(networks, grid)
    report = CompressionReport(
        inside=(lower, upper),
        beyond=grid.upper,
        nearest_pair=nearest,
        n_intervals=grid.n_intervals,
        n_tables=len(networks),
        megabytes=table.coefficients.nbytes / 1e6,
        error_g=error_g,
        error_slope=error_slope,
        error_beyond=max(table.error(networks)) if grid.n_coarse else 0.0,
    )
    return replace(model, table=table), report


def _require_wide(step: float, lower: float, upper: float, end: float) -> None:
    """Refuse a step that makes more than `MAX_INTERVALS` intervals inside or beyond."""
    least = max(upper - lower, (end - upper) / COARSENING) / MAX_INTERVALS
    if step < least:
        raise InputError(f"the step {step:g} is too small", where="--step", expected=f"at least {least:.2g}")


def compress_file(
    input: str | Path,
    output: str | Path,
    step: float | None = None,
    extrapolate: float = 5.0,
    tolerance: float = DEFAULT_TOLERANCE,
) -> CompressionReport:
    """Read a model, `compress` it, write the result."""
    model, report = compress(read_model(input), step, extrapolate, tolerance)
    write_model(model, output)
    return report
