"""From files to a figure: what `dphpc plot` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
from matplotlib.figure import Figure

from dphpc.core.box import Box
from dphpc.core.errors import DataError, InputError, did_you_mean
from dphpc.plots.curves import learning_curve, model_deviation, thermo
from dphpc.plots.learning import rounds
from dphpc.plots.parity import DETAIL_FILES, parity, read_details
from dphpc.plots.structure import R_MAX, Frame, radial_distribution, rdf, write_rdf
from dphpc.plots.tables import read_table

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


def draw(
    kind: str | None, files: Sequence[str], labels: Sequence[str] = (), skip: int = 0, pair: Sequence[str] = (),
    r_max: float = R_MAX, table: Path | None = None,
) -> tuple[str, Figure]:  # fmt: skip
    """Draw files as one figure.

    Parameters
    ----------
    kind
        lcurve, parity, thermo, rdf, devi or rounds; None: guessed from the first file.
    files
        Several are overlaid (lcurve, rdf, devi); thermo and rounds take one; parity a prefix or detail files.
    labels
        Names of the first files in the legend; the others are named by their paths.
    skip
        Frames of each trajectory to leave out at its start (rdf).
    pair
        Two species (rdf); empty: all atoms.
    r_max
        Å: the range of an rdf.
    table
        A CSV file that gets the numbers, too (rdf).

    Returns
    -------
    kind, figure

    Raises
    ------
    InputError, DataError
        The kind is unknown, or a file is not of the right kind.
    """
    kind = kind or guess_kind(files[0])
    if kind not in KINDS:
        raise InputError(f"no plot '{kind}'", remedy=did_you_mean(kind, KINDS))
    if not files:
        raise InputError(f"no file given for a plot '{kind}'", remedy=f"name it: dphpc plot {kind} FILE")
    if kind in ("thermo", "rounds") and len(files) > 1:
        raise InputError(f"{len(files)} files for a plot '{kind}'", expected="one file", remedy="draw them one by one")
    if r_max != R_MAX and kind != "rdf":
        raise InputError(f"a range of r for a plot '{kind}'", expected="a plot 'rdf'")
    if pair and (kind != "rdf" or len(pair) != 2):
        raise InputError(f"a pair {' '.join(pair)} for a plot '{kind}'", expected="two species, and a plot 'rdf'")
    if table and kind != "rdf":
        raise InputError(f"a table of a plot '{kind}'", expected="a plot 'rdf'", remedy="the file has the numbers")
    if len(labels) > len(files):
        raise InputError(f"{len(labels)} labels for {len(files)} files", expected="at most one for each file")
    named = dict(zip([*labels, *_short(files)[len(labels) :]], files, strict=False))
    return kind, KINDS[kind](named, skip, pair, r_max, table)


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


def read_frames(path: str, skip: int = 0) -> list[Frame]:
    """The frames of a trajectory: H5MD as `dphpc md` writes it, or what ASE reads.

    Raises
    ------
    DataError
        It cannot be read, or a frame has no periodic box.
    """
    import ase.io
    from ase.io.formats import filetype

    if not Path(path).is_file():
        raise DataError(f"no file '{path}'")
    if Path(path).suffix == ".h5md":
        return _read_h5md(path, skip)
    try:
        frames = list(ase.io.iread(path, index=f"{skip}:", parallel=False))
        # In a dump without a column `element` ASE takes types for atomic numbers: they are named by their numbers.
        unnamed = filetype(path) == "lammps-dump-text" and not _has_elements(path)
    except Exception as error:  # ASE's readers raise anything
        raise DataError(f"ASE cannot read '{path}': {error}", expected="a trajectory such as extxyz") from error
    _require_frames(len(frames), all(frame.pbc.all() for frame in frames), path, skip)
    names = [f.numbers.astype(str) if unnamed else np.array(f.get_chemical_symbols()) for f in frames]
    return [Frame(f.get_positions(), Box(f.cell.array), species) for f, species in zip(frames, names, strict=True)]


def _has_elements(dump: str) -> bool:
    with open(dump, encoding="utf-8", errors="replace") as lines:
        return "element" in next((line.split() for line in lines if line.startswith("ITEM: ATOMS")), [])


def _read_h5md(path: str, skip: int) -> list[Frame]:
    try:
        with h5py.File(path) as file:
            atoms = file["particles/all"]
            edges, boundary = atoms["box/edges"], atoms["box"].attrs["boundary"]
            changing = isinstance(edges, h5py.Group)  # edges of each frame, as at constant pressure
            edges = np.array(edges["value"] if changing else [edges] * len(atoms["position/value"]))[skip:]
            names = {number: name for name, number in h5py.check_enum_dtype(atoms["species"].dtype).items()}
            species = np.array([names[number] for number in atoms["species"][:].tolist()])
            positions = atoms["position/value"][skip:]
    except (OSError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read '{path}': {error}", expected="H5MD as `dphpc md` writes it") from error
    _require_frames(len(positions), set(boundary) == {"periodic"}, path, skip)
    boxes = [Box(np.diag(e) if e.ndim == 1 else e) for e in edges]
    return [Frame(frame, box, species) for frame, box in zip(positions, boxes, strict=True)]


def _require_frames(n_frames: int, periodic: bool, path: str, skip: int) -> None:
    if not n_frames:
        raise DataError(f"no frames from number {skip} on", where=path, remedy="a smaller --skip" if skip else None)
    if not periodic:
        raise DataError(
            "no frames whose box repeats in all three directions", where=path,
            expected="g(r) is relative to the mean density, which only such a box has",
        )  # fmt: skip


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


def _rdf(files: dict[str, str], skip: int, pair: Sequence[str], r_max: float, table: Path | None) -> Figure:
    curves = {
        label: radial_distribution(read_frames(file, skip), pair=pair, r_max=r_max) for label, file in files.items()
    }
    if table:
        write_rdf(table, curves)
    return rdf(curves, "–".join(pair))


KINDS: dict[str, Callable[[dict[str, str], int, Sequence[str], float, Path | None], Figure]] = {
    "lcurve": _learning,
    "parity": _parity,
    "thermo": _thermo,
    "rdf": _rdf,
    "devi": _deviation,
    "rounds": _rounds,
}
"""Kind of plot -> function that draws it from {label: file}, and the last four arguments of `draw`."""
