"""Frames of other programs' files, through dpdata and ASE, and of DeePMD-kit's systems."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from dphpc.core.errors import DataError, InputError, did_you_mean
from dphpc.core.lammps_dump import DumpHeader, read_dump_header
from dphpc.train.data.dataset import open_systems
from dphpc.train.data.lmdb_frames import is_lmdb
from dphpc.train.data.storage import HDF5_MARK, find_stores
from dphpc.train.data.system import FrameInputs, System
from dphpc.train.data.writer import Configuration
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

_DUMPS = ("lammps/dump", "dump")

_NAMELESS = re.compile(r"T(?:YPE|ype)_(\d+)")
"""What dpdata calls the types 1, 2, … of a file without names: TYPE_0, TYPE_1, …"""

_DPDATA_LABELS = {"energies": "energy", "forces": "force", "virials": "virial"}


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
    if path.is_file() and not path.stat().st_size:
        raise DataError("the file is empty", where=str(path), remedy="check that the calculation has run")
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
    if header := read_dump_header(path):  # dpdata ignores a dump's column of elements, ASE takes types for numbers
        return "ase/lammps-dump-text" if header.has_elements else "lammps/dump"
    return next((fmt for pattern, fmt in _BY_NAME if fnmatch(path.name, pattern)), "ase")


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
    if name in _DUMPS and (header := read_dump_header(path)) and "abc origin" in header.box:
        raise DataError(
            "dpdata does not read the box of this dump (BOX BOUNDS abc origin)",
            where=str(path),
            remedy="convert it as --format ase/lammps-dump-text, which takes its column 'element'",
        )
    noise = io.StringIO()  # dpdata prints what it does
    try:
        with contextlib.redirect_stdout(noise), _warnings_logged(path):
            systems = _dpdata_systems(str(path), name)
    except Exception as error:  # dpdata's readers raise anything: IndexError, ValueError, AssertionError, …
        raise _unreadable(error, "dpdata", str(path), name) from error
    for system in systems:
        yield from _of_dpdata(system.data, type_map or (), path)


@contextlib.contextmanager
def _warnings_logged(path: Path) -> Iterator[None]:
    """Inside, warnings that a reader gives with Python's `warnings` become messages about the file."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(warning.message) for warning in told):
                log.warning("%s: %s", path, text)


def _unreadable(error: Exception, reader: str, where: str, name: str | None) -> DataError:
    """The error of a reader, dpdata or ASE, that gives up on a file or a frame of it; `name` is the format's."""
    words = str(error).strip() or type(error).__name__
    words = f"{words} is unknown or missing" if isinstance(error, KeyError) else words
    return DataError(
        f"{reader} cannot read this{f' as {name}' if name else ''}: {words}",
        where=where,
        expected=f"a whole file{f' in the format {name}' if name else ''}",
        remedy="did the calculation end? Another format is named with --format: one of dpdata's, or ase/<format>",
    )


def _named(names: Sequence[str], type_map: Sequence[str], path: Path) -> list[str]:
    """Names of species, the type map's for TYPE_0, Type_1, …

    Raises
    ------
    DataError
        It does not name one of them: no training would know a species TYPE_0.
    """
    types = {name: int(found[1]) for name in names if (found := _NAMELESS.fullmatch(name))}
    if (last := max(types.values(), default=-1)) >= len(type_map):
        numbers = ", ".join(str(number + 1) for number in sorted(types.values()))
        raise DataError(
            f"the file does not name the species of its types {numbers}", where=str(path),
            expected=f"names of the types 1 to {last + 1}" + (f", not {len(type_map)}" if type_map else ""),
            remedy="give them in the order of the types, as in -t O H",
        )  # fmt: skip
    return [type_map[types[name]] if name in types else name for name in names]


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


def _of_dpdata(data: dict[str, Any], type_map: Sequence[str], path: Path) -> Iterator[Configuration]:
    present, types = np.unique(data["atom_types"], return_inverse=True)
    names = _named([data["atom_names"][t] for t in present], type_map, path)
    symbols = [names[t] for t in types]
    periodic = not data.get("nopbc", False)
    labels = {ours: data[theirs] for theirs, ours in _DPDATA_LABELS.items() if theirs in data}
    for i, positions in enumerate(data["coords"]):
        values = {name: np.asarray(array[i]) for name, array in labels.items()}
        yield Configuration(symbols, np.asarray(positions), data["cells"][i] if periodic else None, values)


def _from_ase(path: Path, ase_format: str | None) -> Iterator[Configuration]:
    import ase.io
    from ase.io.formats import UnknownFileTypeError, filetype

    frames: list[Any] = []
    chosen = ase_format
    try:
        chosen = ase_format or filetype(str(path))
        for atoms in ase.io.iread(str(path), index=":", format=chosen, parallel=False):
            frames.append(atoms)
    except UnknownFileTypeError as error:
        raise DataError(
            f"the format {ase_format or 'of the file'} is not known", where=str(path),
            remedy="name it with --format: one of dpdata's, or ase/<format>",
        ) from error  # fmt: skip
    except Exception as error:  # ASE's readers raise anything
        where = f"{path}, frame {len(frames)} (the first is 0)" if frames else str(path)
        raise _unreadable(error, "ASE", where, chosen) from error
    is_dump = chosen.startswith("lammps-dump")
    if is_dump and not (read_dump_header(path) or DumpHeader()).has_elements:  # ASE takes types for atomic numbers
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
