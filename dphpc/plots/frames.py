"""Frames of a trajectory, as H5MD that `dphpc md` writes or what ASE reads."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.box import Box
from dphpc.core.errors import DataError
from dphpc.core.lammps_dump import DumpHeader, read_dump_header


class Frame(NamedTuple):
    """One frame.

    Attributes
    ----------
    positions
        (n, 3) Å, in the box or not.
    box
        With the directions that repeat.
    species
        (n,) names.
    time
        ps; None if the file does not tell.
    """

    positions: Doubles
    box: Box
    species: NDArray[np.str_]
    time: float | None = None


def read_frames(path: str, skip: int = 0) -> list[Frame]:
    """The frames of a trajectory, without the first `skip` ones.

    Raises
    ------
    DataError
        It cannot be read, or has no frames.
    """
    if not Path(path).is_file():
        raise DataError(f"no file '{path}'")
    frames = _read_h5md(path, skip) if Path(path).suffix == ".h5md" else _read_ase(path, skip)
    if not frames:
        remedy = "a smaller --skip" if skip else None
        raise DataError(f"no frames from number {skip} on", where=path, remedy=remedy)
    return frames


def _read_ase(path: str, skip: int) -> list[Frame]:
    import ase.io
    from ase.io.formats import filetype

    try:
        frames = list(ase.io.iread(path, index=f"{skip}:", parallel=False))
        # In a dump without a column `element` ASE takes types for atomic numbers: they are named by their numbers.
        header = read_dump_header(path) or DumpHeader()
        unnamed = filetype(path) == "lammps-dump-text" and not header.has_elements
    except Exception as error:  # ASE's readers raise anything
        raise DataError(f"ASE cannot read '{path}': {error}", expected="a trajectory such as extxyz") from error
    return [
        Frame(
            atoms.get_positions(),
            Box.of_cell(atoms.cell.array, atoms.pbc, atoms.get_positions()),
            atoms.numbers.astype(str) if unnamed else np.array(atoms.get_chemical_symbols()),
            # Other programs write other units, but no step beside it.
            float(atoms.info["Time"]) if {"Step", "Time"} <= atoms.info.keys() else None,
        )
        for atoms in frames
    ]


def _read_h5md(path: str, skip: int) -> list[Frame]:
    try:
        with h5py.File(path) as file:
            atoms = file["particles/all"]
            edges, boundary = atoms["box/edges"], atoms["box"].attrs["boundary"]
            times, positions = atoms["position/time"][skip:], atoms["position/value"][skip:]
            changing = isinstance(edges, h5py.Group)  # edges of each frame, as at constant pressure
            edges = edges["value"][skip:] if changing else [edges[...]] * len(positions)
            names = {number: name for name, number in h5py.check_enum_dtype(atoms["species"].dtype).items()}
            species = np.array([names[number] for number in atoms["species"][:].tolist()])
            a, b, c = (direction == "periodic" for direction in boundary)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"cannot read '{path}': {error}", expected="H5MD as `dphpc md` writes it") from error
    boxes = [Box(np.diag(e) if e.ndim == 1 else e, (a, b, c)) for e in edges]
    return [Frame(at, box, species, time) for at, box, time in zip(positions, boxes, times.tolist(), strict=True)]
