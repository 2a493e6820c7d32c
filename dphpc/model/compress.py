"""Compression: the embedding networks of a trained model tabulated to a stated accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dphpc.core.errors import InputError, ModelFileError, counted
from dphpc.model.dp_model import DPModel
from dphpc.model.fewer_types import with_types
from dphpc.model.model_file import read_model, write_model
from dphpc.model.radial_table import Grid, RadialTable, fitted_table
from dphpc.model.tabulation import FAR_TOLERANCE, MAX_INTERVALS, over_own_arguments, tabulation_of

DEFAULT_TOLERANCE = 1e-8
"""Error of dG/dr, as `pair_error` measures it, below which a table is fine enough: forces change by less than
1e-7 eV/Å, by some 1e-8 where nets are smooth and 1e-9 where they are steep."""

DEFAULT_DISTANCE = 0.5
"""Å; the nearest pair that is assumed where the model does not hold that of its training data, or half of rcut."""

COARSENING = 4
"""Ratio of the step beyond the training data's range to a given step inside it."""

MAX_EXTRAPOLATION = 1000.0
"""Largest ratio of the table's end to the training data's s̃, which goes as 1/r: no run has pairs so near."""


@dataclass(frozen=True)
class CompressionReport:
    """What was built, and its errors.

    Attributes
    ----------
    inside, beyond
        (lower, upper) of s̃ that the training data reach, and up to which the table extrapolates.
    error_g, error_slope
        Largest measured errors inside, of the two functions in `names`; `error_beyond` of G and of dG/ds beyond.
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
    names: tuple[str, str] = ("G", "dG/ds")

    def __str__(self) -> str:
        value, slope = self.names
        return (
            f"table of {counted(self.n_tables, 'embedding net')}: "
            f"{self.n_intervals} intervals, {self.megabytes:.2f} MB\n"
            f"  s from {self.inside[0]:.4g} to {self.inside[1]:.4g} (pairs as near as {self.nearest_pair:.3f} Å), "
            f"continued to {self.beyond:.4g}\n"
            f"  largest error inside: {value} {self.error_g:.2e}, {slope} {self.error_slope:.2e}; "
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
        Allowed error of dG/dr, as `pair_error` measures it.

    Raises
    ------
    InputError
        A step or factor that makes no table, or one of more than `MAX_INTERVALS`.
    ModelFileError
        The activation is too rough for a smooth table.
    """
    d = model.descriptor
    if d.kinks:
        raise ModelFileError(
            f"{d.kinks} and cannot be tabulated exactly", remedy=f"use the model uncompressed, or {d.without_kinks}"
        )
    if not 1.0 <= extrapolate <= MAX_EXTRAPOLATION:
        raise InputError(
            f"extrapolate is {extrapolate:g}", where="--extrapolate", expected=f"1 to {MAX_EXTRAPOLATION:g}"
        )
    how = tabulation_of(d)
    if step is not None and not how.equal_steps:
        raise InputError("a smooth type embedding has no table of equal steps", where="--step", remedy="leave it out")
    nearest = model.min_nbor_dist or min(DEFAULT_DISTANCE, 0.5 * d.rcut)
    lower, upper = how.x_range(nearest)
    end = max(upper * extrapolate, upper)  # upper may be negative
    if step is None:
        fine = how.fitted(nearest, tolerance, MAX_INTERVALS)
        far = None
        if end > upper:
            far = fitted_table(how.networks, upper, end, FAR_TOLERANCE, MAX_INTERVALS, most_parts=1).grids[0]
    else:
        _require_sensible(step, lower, upper, end)
        fine = Grid.uniform(lower, upper, max(1, int(np.ceil((upper - lower) / step))))
        n_far = int(np.ceil((end - upper) / COARSENING / fine.steps[0]))
        far = Grid.uniform(upper, end, n_far) if n_far else None
    grid = fine if far is None else fine.followed_by(far)
    table = RadialTable.from_networks(how.networks, grid)
    error_g, error_slope = how.error(fine, nearest)
    report = CompressionReport(
        inside=(lower, upper),
        beyond=grid.upper,
        nearest_pair=nearest,
        n_intervals=grid.n_intervals,
        n_tables=len(how.networks),
        megabytes=table.coefficients.nbytes / 1e6,
        error_g=error_g,
        error_slope=error_slope,
        error_beyond=0.0 if far is None else max(RadialTable.from_networks(how.networks, far).error(how.networks)),
        names=how.errors,
    )
    return replace(model, table=over_own_arguments(how, table)), report


def _require_sensible(step: float, lower: float, upper: float, end: float) -> None:
    """Refuse a step that makes more than `MAX_INTERVALS` intervals inside or beyond, or none inside."""
    least = max(upper - lower, (end - upper) / COARSENING) / MAX_INTERVALS
    if not least <= step <= upper - lower:
        size = "small" if step < least else "large"
        raise InputError(
            f"the step {step:g} is too {size}", where="--step", expected=f"{least:.2g} to {upper - lower:.2g}"
        )


def compress_file(
    input: str | Path,
    output: str | Path,
    step: float | None = None,
    extrapolate: float = 5.0,
    tolerance: float = DEFAULT_TOLERANCE,
    types: Sequence[str] | None = None,
) -> CompressionReport:
    """Read a model, `compress` it, write the result; with `types`, for these of its types only (`fewer_types.py`)."""
    model = read_model(input)
    model, report = compress(with_types(model, types) if types else model, step, extrapolate, tolerance)
    write_model(model, output)
    return report
