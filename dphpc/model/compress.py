"""Compression: the embedding networks of a trained model tabulated to a stated accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.core.errors import InputError, ModelFileError, counted
from dphpc.model import gated_table
from dphpc.model.descriptor import SeE2A
from dphpc.model.dp_model import DPModel
from dphpc.model.env_mat import environment_rows
from dphpc.model.fewer_types import with_types
from dphpc.model.model_file import read_model, write_model
from dphpc.model.networks import Network
from dphpc.model.radial_table import MAX_PARTS, Grid, Measure, RadialTable, fitted_table

DEFAULT_TOLERANCE = 1e-8
"""Error of dG/dr, as `pair_error` measures it, below which a table is fine enough: forces change by less than
1e-7 eV/Å, by some 1e-8 where nets are smooth and 1e-9 where they are steep."""

FAR_TOLERANCE = 1e-6
"""Error of G and dG/ds beyond the training data's range."""

DISTANCES = 1024
"""Number of distances at which the error of dG/dr is measured."""

DEFAULT_DISTANCE = 0.5
"""Å; the nearest pair that is assumed where the model does not hold that of its training data."""

COARSENING = 4
"""Ratio of the step beyond the training data's range to a given step inside it."""

MAX_INTERVALS = 16384
"""Most intervals, those inside and those beyond the training data's range each."""

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
        Largest measured error of G and of dG/ds inside; `error_beyond` of both beyond.  Inside, that of s·G and of
        d(s·G)/dr where networks are `gated`.
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
    gated: bool = False

    def __str__(self) -> str:
        value, slope = ("s·G", "d(s·G)/dr") if self.gated else ("G", "dG/ds")
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
        better = 'train with "set_davg_zero": true' if d.gated else "train with tanh, gelu or silu"
        raise ModelFileError(
            f"{d.kinks} and cannot be tabulated exactly", remedy=f"use the model uncompressed, or {better}"
        )
    if not 1.0 <= extrapolate <= MAX_EXTRAPOLATION:
        raise InputError(
            f"extrapolate is {extrapolate:g}", where="--extrapolate", expected=f"1 to {MAX_EXTRAPOLATION:g}"
        )
    if d.gated and step is not None:
        raise InputError("a smooth type embedding has no table of equal steps", where="--step", remedy="leave it out")
    nearest = model.min_nbor_dist or DEFAULT_DISTANCE
    lower, upper = gated_table.s_range(d, nearest) if d.gated else d.s_range(nearest)
    networks = [net.astype(np.float64) for net in d.networks]
    if d.gated:
        networks = gated_table.of_s(d, networks)
    end = max(upper * extrapolate, upper)  # upper may be negative
    if step is None:
        if d.gated:
            fine = gated_table.fitted(d, networks, nearest, tolerance, MAX_INTERVALS, MAX_PARTS - 1)
        else:
            measure = pair_error(d, networks, nearest)
            fine = fitted_table(networks, lower, upper, tolerance, MAX_INTERVALS, measure, MAX_PARTS - 1)
        far = fitted_table(networks, upper, end, FAR_TOLERANCE, MAX_INTERVALS, most_parts=1) if end > upper else None
    else:
        _require_sensible(step, lower, upper, end)
        n = max(1, int(np.ceil((upper - lower) / step)))
        fine = RadialTable.from_networks(networks, Grid.uniform(lower, upper, n))
        n_far = int(np.ceil((end - upper) / COARSENING / fine.grids[0].steps[0]))
        far = RadialTable.from_networks(networks, Grid.uniform(upper, end, n_far)) if n_far else None
    grid = fine.grids[0] if far is None else fine.grids[0].followed_by(far.grids[0])
    table = RadialTable.from_networks(networks, grid)
    error_g, error_slope = gated_table.error(d, networks, fine, nearest) if d.gated else fine.error(networks)
    report = CompressionReport(
        inside=(lower, upper),
        beyond=grid.upper,
        nearest_pair=nearest,
        n_intervals=grid.n_intervals,
        n_tables=len(networks),
        megabytes=table.coefficients.nbytes / 1e6,
        error_g=error_g,
        error_slope=error_slope,
        error_beyond=0.0 if far is None else max(far.error(networks)),
        gated=d.gated,
    )
    return replace(model, table=gated_table.scaled(d, table) if d.gated else table), report


def continued(table: RadialTable, networks: Sequence[Network], upper: float) -> RadialTable:
    """A table continued from the networks, each of its own, until all cover `upper`.

    What is added has the wider steps of a part where no training data are, if there is a part left.
    """
    tables = [
        _continued(RadialTable((grid,), own[None, : grid.n_intervals]), network, upper)
        for grid, own, network in zip(table.grids, table.coefficients, networks, strict=True)
    ]
    most = max(t.grids[0].n_intervals for t in tables)
    padded = [np.pad(t.coefficients, ((0, 0), (0, most - t.grids[0].n_intervals), (0, 0), (0, 0))) for t in tables]
    return RadialTable(tuple(t.grids[0] for t in tables), np.concatenate(padded))


def _continued(table: RadialTable, network: Network, upper: float) -> RadialTable:
    grid = table.grids[0]
    if len(grid.counts) == MAX_PARTS or upper <= grid.upper:
        return table.extended([network], upper)
    far = fitted_table([network], grid.upper, upper, FAR_TOLERANCE, MAX_INTERVALS, most_parts=1)
    coefficients = np.concatenate((table.coefficients, far.coefficients), axis=1)
    return RadialTable((grid.followed_by(far.grids[0]),), coefficients)


def pair_error(descriptor: SeE2A, networks: Sequence[Network], nearest: float) -> Measure:
    """What measures a table by what forces see of it: the error of dG/dr at distances from `nearest` (Å) on.

    At each it is the root mean square over pairs of types and channels, in units of the root mean square of dG/dr at
    all distances.  The largest error of a single channel is no measure of forces, to which all channels add: where
    nets are steep it is a hundred times as large.
    """
    r = nearest + (descriptor.rcut - nearest) * (np.arange(DISTANCES) + 0.5) / DISTANCES
    along = np.column_stack((r, np.zeros((DISTANCES, 2))))
    rows, slopes = environment_rows(along, descriptor.rcut, descriptor.rcut_smth, descriptor.env_protection)
    s, ds = rows[:, 0], slopes[:, 0, 0]
    pairs = [
        (i, (s - descriptor.davg[c]) / descriptor.dstd[c, 0], (ds / descriptor.dstd[c, 0])[:, None])
        for c, row in enumerate(descriptor.network_index()) for i in row
    ]  # fmt: skip
    exact = [networks[i].jet(argument)[1] * factor for i, argument, factor in pairs]
    size = np.sqrt(np.mean([np.mean(slope**2) for slope in exact])) or 1.0  # of nets that are flat

    places = np.concatenate([argument for _, argument, _ in pairs])

    def measure(table: RadialTable) -> tuple[Doubles, Doubles]:
        squares = np.zeros(DISTANCES)
        for (i, argument, factor), slope in zip(pairs, exact, strict=True):
            found = table.evaluate(argument, np.full(DISTANCES, i))[1]
            squares += np.mean((found * factor - slope) ** 2, axis=1)
        return places, np.tile(np.sqrt(squares / len(pairs)) / size, len(pairs))

    return measure


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
