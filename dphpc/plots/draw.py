"""From files to a figure: what `dphpc plot` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from matplotlib.figure import Figure

from dphpc.core.errors import DataError, InputError, did_you_mean
from dphpc.plots.curves import learning_curve, model_deviation, thermo
from dphpc.plots.diffusion import draw_msd, mean_squared_displacement, write_msd
from dphpc.plots.frames import Frame, read_frames
from dphpc.plots.learning import rounds
from dphpc.plots.parity import DETAIL_FILES, parity, read_details
from dphpc.plots.structure import R_MAX, radial_distribution, rdf, write_rdf
from dphpc.plots.tables import read_table

T = TypeVar("T")

_HEADERS = {
    "worst_devi_f": "rounds",
    "rmse_": "lcurve",
    "devi_f": "devi",
    "temperature_K": "thermo",
    "ITEM: TIMESTEP": "rdf",
    "Lattice=": "rdf",
}
"""Text in a table's first lines -> kind of plot."""

STRUCTURES = (".extxyz", ".xyz", ".h5md", ".lammpstrj", ".dump", ".traj")


class Options(NamedTuple):
    """What is drawn of trajectories.

    Attributes
    ----------
    skip
        Frames of each trajectory to leave out at its start (rdf, msd).
    pair
        Two species (rdf); empty: all atoms.
    r_max
        Å: the range of an rdf.
    interval
        fs between the frames of files that do not tell their times (msd).
    table
        A CSV file that gets the numbers, too (rdf, msd).
    """

    skip: int = 0
    pair: Sequence[str] = ()
    r_max: float = R_MAX
    interval: float | None = None
    table: Path | None = None


NOTHING_SAID = Options()

_TAKEN = {"rdf": {"skip", "pair", "r_max", "table"}, "msd": {"skip", "interval", "table"}}
"""Kind of plot -> its options."""

_SAID = {
    "skip": "frames to skip", "pair": "a pair of species", "r_max": "a range of r", "interval": "a time between frames",
    "table": "a table",
}  # fmt: skip


def draw(
    kind: str | None, files: Sequence[str], labels: Sequence[str] = (), options: Options = NOTHING_SAID
) -> tuple[str, Figure]:
    """Draw files as one figure.

    Parameters
    ----------
    kind
        lcurve, parity, thermo, rdf, msd, devi or rounds; None: guessed from the first file.
    files
        Several are overlaid (lcurve, rdf, msd, devi); thermo and rounds take one; parity a prefix or detail files.
    labels
        Names of the first files in the legend; the others are named by their paths.

    Returns
    -------
    kind, figure

    Raises
    ------
    InputError, DataError
        The kind is unknown, an option is of another kind, two files have one name, or a file is not of the right kind.
    """
    kind = kind or guess_kind(files[0])
    if kind not in KINDS:
        raise InputError(f"no plot '{kind}'", remedy=did_you_mean(kind, KINDS))
    if not files:
        raise InputError(f"no file given for a plot '{kind}'", remedy=f"name it: dphpc plot {kind} FILE")
    if kind in ("thermo", "rounds") and len(files) > 1:
        raise InputError(f"{len(files)} files for a plot '{kind}'", expected="one file", remedy="draw them one by one")
    for name, value in options._asdict().items():
        if value != getattr(NOTHING_SAID, name) and name not in _TAKEN.get(kind, ()):
            takers = " or ".join(f"'{taker}'" for taker, names in _TAKEN.items() if name in names)
            raise InputError(f"{_SAID[name]} for a plot '{kind}'", expected=f"a plot {takers}")
    if options.pair and len(options.pair) != 2:
        raise InputError(f"a pair {' '.join(options.pair)}", expected="two species")
    if len(labels) > len(files):
        raise InputError(f"{len(labels)} labels for {len(files)} files", expected="at most one for each file")
    names = [*labels, *_short(files)[len(labels) :]]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two files are named '{twice}'", remedy="give each a --label of its own")
    named = dict(zip(names, files, strict=True))
    return kind, KINDS[kind](named, options)


def _short(files: Sequence[str]) -> list[str]:
    """File names as labels, with as many parent folders as are needed to distinguish them."""
    parts = [Path(file).parts for file in files]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = [str(Path(*p[-depth:])) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(files)


def guess_kind(file: str) -> str:
    """The kind of plot for a file, from its name or first lines."""
    if any(file.endswith(ending) for ending in DETAIL_FILES) or any(Path(file + e).exists() for e in DETAIL_FILES):
        return "parity"
    if Path(file).suffix in STRUCTURES:
        return "rdf"
    if not Path(file).exists():
        raise InputError(f"'{file}' is neither a file nor a kind of plot", remedy=did_you_mean(file, KINDS))
    with open(file, encoding="utf-8", errors="replace") as lines:
        header = lines.read(4096)
    for mark, kind in _HEADERS.items():
        if mark in header:
            return kind
    raise DataError(f"cannot tell what to plot from '{file}'", remedy=f"name it: dphpc plot {'|'.join(KINDS)} {file}")


def _learning(files: dict[str, str], *_: object) -> Figure:
    return learning_curve({label: read_table(file) for label, file in files.items()})


def _parity(files: dict[str, str], *_: object) -> Figure:
    return parity(read_details(list(files.values())))


def _thermo(files: dict[str, str], *_: object) -> Figure:
    ((label, file),) = files.items()
    return thermo(read_table(file), label)


def _deviation(files: dict[str, str], *_: object) -> Figure:
    return model_deviation({label: read_table(file) for label, file in files.items()})


def _rounds(files: dict[str, str], *_: object) -> Figure:
    ((label, file),) = files.items()
    deviations: dict[int, list[np.ndarray]] = {}
    for path in sorted(Path(file).parent.glob("round-*/explore/*/model_devi.out")):
        number = int(path.parts[-4].removeprefix("round-"))
        deviations.setdefault(number, []).append(read_table(path)["max_devi_f"])
    return rounds(read_table(file), {n: np.concatenate(parts) for n, parts in deviations.items()}, label)


def _rdf(files: dict[str, str], options: Options) -> Figure:
    pair, r_max = options.pair, options.r_max
    curves = _of_each(files, options.skip, lambda frames: radial_distribution(frames, pair=pair, r_max=r_max))
    if options.table:
        write_rdf(options.table, curves)
    return rdf(curves, "–".join(pair))


def _msd(files: dict[str, str], options: Options) -> Figure:
    curves = _of_each(files, options.skip, lambda frames: mean_squared_displacement(frames, options.interval))
    if options.table:
        write_msd(options.table, curves)
    return draw_msd(curves)


def _of_each(files: dict[str, str], skip: int, compute: Callable[[list[Frame]], T]) -> dict[str, T]:
    """Something of the frames of each trajectory."""
    found: dict[str, T] = {}
    for label, file in files.items():
        frames = read_frames(file, skip)
        try:
            found[label] = compute(frames)
        except DataError as error:
            raise DataError(error.what, where=file, expected=error.expected, remedy=error.remedy) from None
    return found


KINDS: dict[str, Callable[[dict[str, str], Options], Figure]] = {
    "lcurve": _learning,
    "parity": _parity,
    "thermo": _thermo,
    "rdf": _rdf,
    "msd": _msd,
    "devi": _deviation,
    "rounds": _rounds,
}
"""Kind of plot -> function that draws it from {label: file}."""
