"""Converting other programs' files into DeePMD-kit systems, through dpdata and ASE."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from dphpc.core.errors import DataError, InputError, counted, did_you_mean
from dphpc.train.data.dataset import open_systems
from dphpc.train.data.lmdb_frames import is_lmdb
from dphpc.train.data.storage import HDF5_MARK, find_stores
from dphpc.train.data.system import FrameInputs, System
from dphpc.train.data.writer import Configuration, require_free, write_systems
from dphpc.train.neighbor_stat import common_type_map

log = logging.getLogger(__name__)

DEEPMD_FORMATS = ("deepmd", "deepmd/npy", "deepmd/comp", "deepmd/npy/mixed", "deepmd/hdf5", "deepmd/lmdb")

_BY_NAME = (
    ("*OUTCAR*", "vasp/outcar"),
    ("*vasprun*.xml", "vasp/xml"),
    ("*POSCAR*", "vasp/poscar"),
    ("*CONTCAR*", "vasp/poscar"),
    ("*.poscar", "vasp/poscar"),
    ("*.lmp", "lammps/lmp"),
)
"""Pattern of a file name, and dpdata's format; for other files ASE guesses."""

_BY_ENDING = {".h5": "deepmd/hdf5", ".hdf5": "deepmd/hdf5", ".lmdb": "deepmd/lmdb"}
"""Suffix of the output, and its format."""

_OTHER_ENDINGS = (
    ".extxyz",
    ".xyz",
    ".traj",
    ".cif",
    ".poscar",
    ".vasp",
    ".lmp",
    ".data",
    ".dump",
    ".lammpstrj",
    ".npy",
)
"""Suffixes that no folder of systems is likely to have."""

_DUMPS = ("lammps/dump", "dump")

_DPDATA_LABELS = {"energies": "energy", "forces": "force", "virials": "virial"}


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote.

    Attributes
    ----------
    labels
        Number of frames that have each label.
    held_out
        Where the frames for validation are, and how many they are; None if there are none.
    """

    output: str
    output_format: str
    systems: list[str]
    n_frames: int
    n_atoms: tuple[int, int]
    type_map: list[str]
    labels: dict[str, int]
    held_out: tuple[str, int] | None = None

    def lines(self) -> list[str]:
        """A summary for the screen."""
        where = f"{counted(len(self.systems), 'system')} to {self.output} ({self.output_format})"
        facts = {
            "validation": f"{counted(self.held_out[1], 'frame')} in {self.held_out[0]}" if self.held_out else "",
            "atoms a frame": " to ".join(str(n) for n in sorted(set(self.n_atoms))),
            "type map": " ".join(self.type_map),
            "labels": ", ".join(f"{k} ({counted(n, 'frame')})" for k, n in self.labels.items())
            or "none: nothing to train on",
        }
        title = f"wrote {counted(self.n_frames, 'frame')} in {where}"
        return [title, *(f"  {name + ':':15}{fact}" for name, fact in facts.items() if fact)]


def convert(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    input_format: str | None = None,
    output_format: str | None = None,
    type_map: Sequence[str] | None = None,
    hold_out: float = 0.0,
) -> ConversionReport:
    """Convert files that dpdata or ASE read, or DeePMD-kit systems, into DeePMD-kit systems.

    Parameters
    ----------
    input
        One or several files or folders.
    input_format
        dpdata's name (`vasp/outcar`, `qe/pw/scf`, …), DeePMD-kit's (`deepmd/npy`, …), or `ase` or `ase/<format>`;
        guessed from the name if None.
    output_format
        `deepmd/npy` (default), `deepmd/npy/mixed`, `deepmd/hdf5` (default for .h5 and .hdf5), or `deepmd/lmdb`
        (default for .lmdb).
    type_map
        Order of the types; None: the order in which they are met.  It also names types that are numbers in a file.
    hold_out
        Fraction of the frames that are written to an output of their own for validation (`validation_name`), at equal
        distances in the input.

    Raises
    ------
    InputError
        Unknown format, an output exists, or `hold_out` leaves no frame for training or validation.
    DataError
        The input cannot be read, holds no frames, or has an element outside `type_map`.
    """
    if output_format is None and Path(output).suffix in _OTHER_ENDINGS:
        raise InputError(
            f"'{output}' seems to be a file of structures, which is not written",
            expected="a folder (npy), or a name ending in .hdf5 or .lmdb", remedy="ASE and dpdata write others",
        )  # fmt: skip
    paths = [Path(p) for p in ([input] if isinstance(input, str | Path) else input)]
    target = output_format or _BY_ENDING.get(Path(output).suffix, "deepmd/npy")
    frames = [frame for path in paths for frame in read_configurations(path, input_format, type_map)]
    if not frames:
        raise DataError("the input holds no frames", where=", ".join(map(str, paths)))
    names = list(type_map) if type_map else list(dict.fromkeys(s for f in frames for s in f.symbols))
    training, validation = _split(frames, hold_out)
    held_out = None
    if validation:
        beside = validation_name(output)
        require_free(beside)
        held_out = str(beside), len(validation)
    systems = write_systems(training, names, output, target)
    if held_out:
        write_systems(validation, names, held_out[0], target)
    sizes = [len(f.symbols) for f in training]
    labels = Counter(name for f in training for name in f.values)
    return ConversionReport(
        str(output), target, systems, len(training), (min(sizes), max(sizes)), names, dict(sorted(labels.items())),
        held_out,
    )  # fmt: skip


def validation_name(output: str | Path) -> Path:
    """Name of the output for validation beside that for training: data_valid, data_valid.hdf5."""
    path = Path(output)
    suffix = path.suffix if path.suffix in _BY_ENDING else ""
    return path.with_name(f"{path.name.removesuffix(suffix)}_valid{suffix}")


def _split(frames: list[Configuration], fraction: float) -> tuple[list[Configuration], list[Configuration]]:
    """Frames for training and for validation, the latter at equal distances."""
    n = round(fraction * len(frames))
    if fraction and not 0 < n < len(frames):
        raise InputError(
            f"of {counted(len(frames), 'frame')} a fraction of {fraction:g} is {n}", where="--hold-out",
            expected="at least one frame for training and one for validation",
        )  # fmt: skip
    chosen = {int((k + 0.5) * len(frames) / n) for k in range(n)}
    training = [frame for i, frame in enumerate(frames) if i not in chosen]
    return training, [frames[i] for i in sorted(chosen)]


def read_configurations(
    path: Path, input_format: str | None = None, type_map: Sequence[str] | None = None
) -> Iterator[Configuration]:
    """All frames of a file or folder; `type_map` names types that are numbers in the file.

    Raises
    ------
    InputError
        Unknown format.
    DataError
        The file cannot be read.
    """
    if not (path.exists() or Path(str(path).partition(HDF5_MARK)[0]).exists()):
        raise DataError("the input does not exist", where=str(path))
    chosen = input_format or _guess(path)
    if chosen in DEEPMD_FORMATS:
        return _from_deepmd(str(path), type_map)
    if chosen == "xyz":  # dpdata would read the first frame only
        chosen = "ase/xyz"
    if chosen == "ase" or chosen.startswith("ase/"):
        return _from_ase(path, chosen.partition("/")[2] or None)
    return _from_dpdata(path, chosen, type_map)


def _guess(path: Path) -> str:
    # A path that does not exist is `file.hdf5#/group`.
    if path.is_dir() or path.suffix in (".h5", ".hdf5") or is_lmdb(path) or not path.exists():
        return "deepmd"
    header = _dump_header(path)
    if header:  # dpdata ignores a dump's column of elements, ASE takes types for atomic numbers
        return "ase/lammps-dump-text" if _has_elements(header) else "lammps/dump"
    return next((fmt for pattern, fmt in _BY_NAME if fnmatch(path.name, pattern)), "ase")


def _dump_header(path: Path) -> list[str]:
    """The `ITEM:` lines of a LAMMPS dump's first frame; none of another file."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        first = list(itertools.islice(lines, 12))
    return [line for line in first if line.startswith("ITEM:")] if first and first[0].startswith("ITEM:") else []


def _has_elements(header: Sequence[str]) -> bool:
    return any(line.startswith("ITEM: ATOMS") and "element" in line.split() for line in header)


def _from_deepmd(path: str, type_map: Sequence[str] | None) -> Iterator[Configuration]:
    nameless = any(not store.has("type_map.raw") for _, store in find_stores([path]))
    names = list(type_map) if type_map and nameless else common_type_map([path])
    for (_, store), base in zip(find_stores([path]), open_systems([path], names), strict=True):
        # The number of parameters of a frame or atom is not stored; it follows from the arrays' shapes.
        widths = {"fparam": 0, "aparam": 0}
        for name in widths:
            file = f"{store.sets()[0]}/{name}.npy"
            if store.has(file):
                array = store.array(file)
                if not array.ndim or not array.size:
                    shape = f"has shape {array.shape}"
                    raise DataError(shape, where=store.where(file), expected="values of each frame")
                widths[name] = array[0].size // (len(store.words("type.raw")) if name == "aparam" else 1)
        inputs = FrameInputs(widths["fparam"], widths["aparam"])
        system = System(base.name, store, names, inputs) if inputs.labels() else base
        for i in range(system.n_frames):
            frame = system.frame(i)
            values = {"force" if k == "forces" else k: v for k, v in system.values(i).items()}
            cell = frame.box.matrix if system.periodic else None
            yield Configuration([names[t] for t in frame.types], frame.positions, cell, values)


def _from_dpdata(path: Path, name: str, type_map: Sequence[str] | None) -> Iterator[Configuration]:
    from ase.io.formats import ioformats
    from dpdata.format import Format

    known = Format.get_formats()
    all_known = {*known, *DEEPMD_FORMATS, "ase"}
    if name not in known:
        raise InputError(
            f"unknown input format '{name}'",
            where="--format",
            remedy=f"did you mean 'ase/{name}'?" if name in ioformats else did_you_mean(name, all_known),
        )
    if name in _DUMPS and any("abc origin" in line for line in _dump_header(path)):
        raise DataError(
            "dpdata does not read the box of this dump (BOX BOUNDS abc origin)",
            where=str(path),
            remedy="convert it as --format ase/lammps-dump-text, which takes its column 'element'",
        )
    noise = io.StringIO()  # dpdata prints warnings
    try:
        with contextlib.redirect_stdout(noise):
            systems = _dpdata_systems(str(path), name)
    except Exception as error:  # dpdata's readers raise anything: IndexError, ValueError, AssertionError, …
        raise DataError(
            f"dpdata cannot read this as {name}: {type(error).__name__}: {error}",
            where=str(path),
            remedy="check that the calculation ended and that the format is right (--format)",
        ) from error
    for system in systems:
        yield from _of_dpdata(system.data, type_map)


def _dpdata_systems(path: str, name: str) -> list[Any]:
    import dpdata
    from dpdata.format import Format

    known = Format.get_formats()[name]
    if known.from_multi_systems is not Format.from_multi_systems:  # LabeledSystem would read the first part only
        reader = known()
        parts = [dpdata.LabeledSystem().from_fmt_obj(reader, part) for part in reader.from_multi_systems(path)]
        if parts:
            return parts
    try:
        return [dpdata.LabeledSystem(path, fmt=name)]
    except NotImplementedError:  # a format without labels
        return [dpdata.System(path, fmt=name)]


def _of_dpdata(data: dict[str, Any], type_map: Sequence[str] | None) -> Iterator[Configuration]:
    names = [_named(name, type_map or ()) for name in data["atom_names"]]
    symbols = [names[t] for t in data["atom_types"]]
    periodic = not data.get("nopbc", False)
    labels = {ours: data[theirs] for theirs, ours in _DPDATA_LABELS.items() if theirs in data}
    for i, positions in enumerate(data["coords"]):
        values = {name: np.asarray(array[i]) for name, array in labels.items()}
        yield Configuration(symbols, np.asarray(positions), data["cells"][i] if periodic else None, values)


def _named(name: str, type_map: Sequence[str]) -> str:
    """The type map's name for TYPE_0, Type_1, …, as dpdata calls types in a file without names."""
    number = re.fullmatch(r"T(?:YPE|ype)_(\d+)", name)
    return type_map[int(number[1])] if number and int(number[1]) < len(type_map) else name


def _from_ase(path: Path, ase_format: str | None) -> Iterator[Configuration]:
    import ase.io
    from ase.io.formats import filetype

    try:
        is_dump = (ase_format or filetype(str(path))).startswith("lammps-dump")
        frames: Iterable[Any] = list(ase.io.iread(str(path), index=":", format=ase_format, parallel=False))
    except Exception as error:  # ASE's readers raise anything
        raise DataError(
            f"ASE cannot read this{f' as {ase_format}' if ase_format else ''}: {type(error).__name__}: {error}",
            where=str(path),
            remedy="name the format (--format): one of dpdata's, or ase/<format>",
        ) from error
    if is_dump and not _has_elements(_dump_header(path)):  # ASE takes types for atomic numbers
        raise DataError(
            "the dump has no column 'element'", where=str(path), remedy="--format lammps/dump -t O H names its types"
        )
    for i, atoms in enumerate(frames):
        if atoms.pbc.any() and not (atoms.pbc.all() and atoms.cell.rank == 3):
            directions = " ".join("FT"[int(p)] for p in atoms.pbc)
            raise DataError(
                f"frame {i} does not repeat along three vectors (pbc {directions}, {atoms.cell.rank} cell vectors)",
                where=str(path),
                expected="DeePMD-kit's systems repeat in all directions or in none",
                remedy='a slab that was computed with a vacuum: give it that cell and pbc "T T T"',
            )
        cell = np.array(atoms.cell) if atoms.pbc.any() else None
        labels = _ase_labels(atoms)
        if i == 0 and not {"energy", "force"} <= labels.keys():
            _tell_of_other_names(atoms, path)
        if is_dump:
            labels.pop("energy", None)  # a dump has none: ASE puts 0 beside its forces
        yield Configuration(atoms.get_chemical_symbols(), atoms.get_positions(), cell, labels)


def _tell_of_other_names(atoms: Any, path: Path) -> None:
    """Warn of energies and forces under names such as REF_energy, which no program agrees on."""
    others = [name for name in (*atoms.info, *atoms.arrays) if re.search(r"energy|forces?$", name, re.IGNORECASE)]
    if others:
        log.warning(f"{path}: not read as labels: {', '.join(others)}; rename them to 'energy' and 'forces'")


def _ase_labels(atoms: Any) -> dict[str, Any]:
    """Energy, force and virial that ASE read with the atoms; nothing is computed."""
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    values: dict[str, Any] = {}
    energy = results.get("free_energy", results.get("energy"))  # forces belong to the free energy
    if energy is not None:
        values["energy"] = energy
    if "forces" in results:
        values["force"] = results["forces"]
    virial = atoms.info.get("virial")
    if virial is None and "stress" in results and atoms.pbc.any():
        from ase.stress import voigt_6_to_full_3x3_stress

        stress = np.asarray(results["stress"], np.float64)
        virial = -atoms.get_volume() * (voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress)
    if virial is not None:
        values["virial"] = np.asarray(virial, np.float64).reshape(3, 3)
    return values
