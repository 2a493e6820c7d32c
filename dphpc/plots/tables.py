"""Text tables: readers of those that runs write (lcurve.out, thermo.csv, …), and a writer of a figure's numbers."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError, writing
from dphpc.core.tables import OF_EACH_ATOM

Table = dict[str, NDArray[np.float64]]


def read_table(path: Path | str) -> Table:
    """Columns by name, from a CSV file with a header, or from numbers below comment lines, one with the names.

    Columns for single atoms are left out.

    Raises
    ------
    DataError
        No header fits the rows.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        with _opened(path) as lines:
            headers = [[name.strip() for name in lines.readline().split(",")]]
        rows = read_rows(path, skip=1, separator=",")
    else:
        with _opened(path) as lines:
            comments = itertools.takewhile(lambda line: line.startswith("#"), lines)
            headers = [line.lstrip("#").split() for line in comments]
        for header in headers:
            if header[-1:] == [OF_EACH_ATOM]:
                # Rows of several systems have different lengths: one atom's column is read, and dropped.
                return dict(zip(header[:-1], read_rows(path, n_columns=len(header)).T, strict=False))
        rows = read_rows(path)
    names = next((names for names in reversed(headers) if len(names) == rows.shape[1]), None)
    if names is None:
        raise DataError(
            f"no header with the names of the {rows.shape[1]} columns",
            where=str(path),
            expected="a line such as '# step rmse_val rmse_trn ...'",
        )
    return dict(zip(names, rows.T, strict=True))


def require_columns(table: Table, names: Iterable[str], of: str) -> None:
    """Raise DataError if a table, which should have the columns `of` a file, lacks some of these."""
    missing = set(names) - set(table)
    if missing:
        raise DataError(f"no column {', '.join(sorted(missing))}", expected=f"the columns of {of}")


def read_rows(
    path: Path | str, *, skip: int = 0, separator: str | None = None, n_columns: int | None = None
) -> NDArray[np.float64]:
    """(rows, columns) numbers in a text file, or its first `n_columns`; lines that begin with # are comments.

    Raises
    ------
    DataError
        An entry is no number, a row is too short, or there are no rows.
    """
    columns = None if n_columns is None else range(n_columns)
    try:
        with warnings.catch_warnings(), _opened(path) as lines:
            warnings.simplefilter("ignore", UserWarning)  # an empty file is reported below
            rows = np.loadtxt(lines, skiprows=skip, delimiter=separator, usecols=columns, ndmin=2)
    except ValueError as error:
        raise DataError(f"not a table of numbers: {error}", where=str(path)) from error
    if rows.size == 0:
        raise DataError("the table is empty", where=str(path), remedy="let the run write a few lines first")
    return rows


def _opened(path: Path | str) -> TextIO:
    try:
        return open(path, encoding="utf-8", errors="replace")
    except IsADirectoryError as error:
        raise DataError("a directory, not a table", where=str(path)) from error


def write_curves(path: Path, first: tuple[str, Doubles], curves: Mapping[str, Mapping[str, Doubles]]) -> Path:
    """Write a CSV file: a named column, and those of each source of curves; of several, with the source's label."""
    columns = dict([first])
    for label, of_source in curves.items():
        of = f" {label.replace(',', ' ')}" if len(curves) > 1 else ""
        columns |= {name + of: values for name, values in of_source.items()}
    with writing(path, "the table"):
        np.savetxt(path, np.column_stack(list(columns.values())), "%.8g", ",", header=",".join(columns), comments="")
    return path
