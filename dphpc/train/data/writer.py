"""Writing configurations as DeePMD-kit systems: npy, npy/mixed, HDF5, LMDB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError, InputError, did_you_mean, writing
from dphpc.core.files import new_hdf5, whole
from dphpc.train.data.lmdb_writer import write_lmdb

FORMATS = ("deepmd/npy", "deepmd/npy/mixed", "deepmd/hdf5", "deepmd/lmdb")
SET_FRAMES = 5000
"""Largest number of frames in a `set.*`."""

PER_ATOM = frozenset({"force", "atom_ener", "atom_pref", "aparam"})
"""Values with one row for each atom, by file name; `energy`, `virial` and `fparam` belong to the frame."""


@dataclass
class Configuration:
    """A frame with element names and labels.

    Attributes
    ----------
    positions
        (n, 3) Å.
    cell
        (3, 3) Å with the vectors as rows, or None without periodic boundaries.
    values
        Labels by DeePMD-kit's file names without suffix: energy (eV), force (n, 3), virial (3, 3), atom_ener (n,), ….
    """

    symbols: Sequence[str]
    positions: Doubles
    cell: Doubles | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Group:
    """Frames that form one system."""

    name: str
    types: NDArray[np.int32]
    periodic: bool
    frames: list[Mapping[str, NDArray[Any]]] = field(default_factory=list)


def write_systems(
    configurations: Iterable[Configuration], type_map: Sequence[str], output: str | Path, output_format: str
) -> list[str]:
    """Write configurations, with atoms sorted by type, as one or several systems.

    `deepmd/npy` makes one system per composition (the folder itself if there is only one), `deepmd/npy/mixed` one
    per number of atoms, `deepmd/hdf5` one group per composition, `deepmd/lmdb` one database in which frames keep their
    composition's number.  Frames that differ in labels or boundaries are in different systems.  The output appears
    complete or not at all.

    Returns
    -------
    Names of the systems written.

    Raises
    ------
    InputError
        The output exists, or the format is unknown.
    DataError
        An element is not in `type_map`, or there are no frames.
    RunError
        The output cannot be written.
    """
    output = Path(output)
    if output_format not in FORMATS:
        raise InputError(f"unknown output format '{output_format}'", remedy=did_you_mean(output_format, FORMATS))
    require_free(output)
    groups = _grouped(configurations, list(type_map), mixed=output_format == "deepmd/npy/mixed")
    if not groups:
        raise DataError("there are no frames to write")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with whole(output) as partial:
            if output_format == "deepmd/hdf5":
                with new_hdf5(partial) as file:
                    for group in groups:
                        _write_group(group, type_map, file.create_group(group.name))
            elif output_format == "deepmd/lmdb":
                write_lmdb(partial, [(group.types, group.frames) for group in groups], type_map)
            else:
                for group in groups:
                    _write_folder(group, type_map, partial / group.name if len(groups) > 1 else partial)
            if output.is_dir():
                output.rmdir()
    return [group.name for group in groups]


def require_free(output: Path) -> None:
    """Raise InputError if something is at the path of an output; an empty folder does not matter."""
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"the output '{output}' exists", remedy="remove it or choose another name")


def _grouped(configurations: Iterable[Configuration], type_map: list[str], *, mixed: bool) -> list[_Group]:
    number = {name: i for i, name in enumerate(type_map)}
    groups: dict[tuple[Any, ...], _Group] = {}
    for index, c in enumerate(configurations):
        unknown = sorted(set(c.symbols) - set(type_map))
        if unknown:
            raise DataError(
                f"frame {index} has the element '{unknown[0]}', which the type map lacks",
                expected=f"elements among {' '.join(type_map)}",
            )
        types = np.array([number[s] for s in c.symbols], np.int32)
        order = np.argsort(types, kind="stable")
        frame: dict[str, NDArray[Any]] = {"coord": np.asarray(c.positions, np.float64)[order].ravel()}
        if c.cell is not None:
            frame["box"] = np.asarray(c.cell, np.float64).ravel()
        for name, value in c.values.items():
            array = np.asarray(value, np.float64)
            frame[name] = (array[order] if name in PER_ATOM else array).ravel()
        slots = np.zeros(len(types), np.int32) if mixed else types[order]
        if mixed:
            frame["real_atom_types"] = types[order]
        key = (slots.tobytes(), *((name, len(value)) for name, value in sorted(frame.items())))
        if key not in groups:
            name = str(len(types)) if mixed else _formula(types, type_map)
            same = sum(g.name.split("_")[0] == name for g in groups.values())
            groups[key] = _Group(f"{name}_{same}" if same else name, slots, c.cell is not None)
        groups[key].frames.append(frame)
    return list(groups.values())


def _formula(types: NDArray[np.int32], type_map: Sequence[str]) -> str:
    counts = np.bincount(types, minlength=len(type_map))
    return "".join(f"{name}{n}" for name, n in zip(type_map, counts, strict=True) if n)


def _sets(group: _Group) -> Iterable[tuple[str, dict[str, NDArray[Any]]]]:
    for k, first in enumerate(range(0, len(group.frames), SET_FRAMES)):
        part = group.frames[first : first + SET_FRAMES]
        arrays = {name: np.stack([frame[name] for frame in part]) for name in part[0]}
        if "energy" in arrays:
            arrays["energy"] = arrays["energy"][:, 0]
        yield f"set.{k:03d}", arrays


def _write_folder(group: _Group, type_map: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("\n".join(map(str, group.types)) + "\n")
    (folder / "type_map.raw").write_text("\n".join(type_map) + "\n")
    if not group.periodic:
        (folder / "nopbc").touch()
    for set_name, arrays in _sets(group):
        (folder / set_name).mkdir()
        for name, array in arrays.items():
            np.save(folder / set_name / f"{name}.npy", array, allow_pickle=False)


def _write_group(group: _Group, type_map: Sequence[str], target: h5py.Group) -> None:
    target["type.raw"] = group.types
    target["type_map.raw"] = np.array([name.encode() for name in type_map])
    if not group.periodic:
        target["nopbc"] = True
    for set_name, arrays in _sets(group):
        for name, array in arrays.items():
            target[f"{set_name}/{name}.npy"] = array
