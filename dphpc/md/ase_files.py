"""Structures from files that ASE reads: extxyz, POSCAR, CIF and others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled
from ase.io import read as ase_read
from ase.io.formats import filetype, ioformats
from ase.units import fs as ASE_FS
from numpy.typing import NDArray

from dphpc.core.errors import DataError, DphpcError, InputError
from dphpc.core.fixing import numbers_of
from dphpc.core.lammps_dump import DumpHeader, read_dump_header
from dphpc.md.config import RESTART_SUFFIXES
from dphpc.md.lammps_data import SUFFIXES

log = logging.getLogger(__name__)

FORMATS = (
    f"by its name LAMMPS data ({', '.join(SUFFIXES)}, data.*), extxyz (.extxyz, .xyz), "
    f"POSCAR (POSCAR*, CONTCAR*, .poscar, .vasp), CIF (.cif), a LAMMPS dump, or a restart file "
    f"({', '.join(RESTART_SUFFIXES)})"
)
"""The known file formats and how a structure's name tells them, for error messages."""

ON_AXIS = 1e-9
"""Largest component of a box vector, as a fraction of its length, that counts as the file's rounding of 0."""

UNREAD = ("vel", "velo", "velocities", "velocity")
"""Columns of extxyz that are not read: some programs write them in Å/fs, others in Å/ps or ASE's unit."""


def read_last(path: str, type_map: list[str] | None = None) -> tuple[Atoms, bool]:
    """The last frame of a file, and whether there are others before it; `type_map` names the types of a LAMMPS dump."""
    name = Path(path).name
    lower = name.lower()
    is_vasp = lower.startswith(("poscar", "contcar")) or lower.endswith((".poscar", ".vasp"))
    kind = "vasp" if is_vasp else "extxyz" if lower.endswith((".xyz", ".extxyz")) else None
    order: dict[str, Any] = {}
    try:
        kind = kind or filetype(path)
        order = {"specorder": type_map} if _names_types(path, kind, type_map) else {}
        # Readers of single-frame formats take no slice.  With parallel=True ASE would broadcast to the other ranks.
        index = -1 if ioformats[kind].single else slice(-2, None)
        found = ase_read(path, index=index, format=kind, parallel=False, **order)
        frames = [found] if isinstance(found, Atoms) else found
        atoms = frames[-1]
        assert isinstance(atoms, Atoms)
        if is_vasp:
            _require_plain_poscar(path, len(atoms))
    except DphpcError:
        raise
    except Exception as error:  # ASE's readers raise all kinds of exceptions
        if isinstance(error, IndexError) and order:
            raise DataError(
                f"the dump has types beyond the {len(order['specorder'])} that 'type_map' names", where=path
            ) from None
        raise DataError(
            f"the structure cannot be read: {str(error) or type(error).__name__}",
            where=path,
            expected=FORMATS,
        ) from None
    occupancies = atoms.info.get("occupancy", {}).values()
    if any(len(site) > 1 or sum(site.values()) < 1 for site in occupancies):
        raise DataError("the structure has sites that are occupied in part", where=path, remedy="write an ordered cell")
    return atoms, len(frames) > 1


def _names_types(path: str, kind: str, type_map: list[str] | None) -> bool:
    """Whether `type_map` names the types of this file, a dump without elements.

    Raises
    ------
    InputError, DataError
        The file is empty, of an unknown format, in other units, or nothing tells the atoms' species.
    """
    if not Path(path).stat().st_size:
        raise DataError("the file is empty", where=path)
    if kind not in ioformats:
        raise DataError("the structure cannot be read: its format is not known", where=path, expected=FORMATS)
    if kind == "lammps-dump-text":
        header = read_dump_header(path) or DumpHeader()
        if header.units != "metal":
            raise DataError(
                f"the dump is in units '{header.units}'", where=path,
                expected="units metal (Å, eV, ps, g/mol)", remedy="convert it",
            )  # fmt: skip
        if not header.has_elements and type_map is None:
            raise InputError(
                "the dump has no column 'element', and a type does not tell its species", where=path,
                expected="a type_map, as type_map: [O, H]; or dump_modify … element O H and a column 'element'",
            )  # fmt: skip
        return not header.has_elements
    return False


def _require_plain_poscar(path: str, n_atoms: int) -> None:
    """Refuse what ASE takes for something else: flags other than T and F, and velocities along box vectors."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    at = 6 if lines[5].split()[0].isdigit() else 7  # names of species are a line of their own, or not
    selective = lines[at].strip()[0] in "sS"
    first = at + 1 + selective
    for number, line in enumerate(lines[first : first + n_atoms], 1):
        flags = line.split()[3:6]
        if selective and (len(flags) < 3 or not set(flags) <= {"T", "F"}):
            raise DataError(
                f"the flags of atom {number} are '{' '.join(flags)}'", where=path, expected="three of T and F"
            )
    mode = lines[first + n_atoms].strip() if len(lines) > first + n_atoms + 1 else ""
    if mode and mode[0] not in "cCkKlL" and len(lines[first + n_atoms + 1].split()) == 3:
        raise DataError(
            f"the velocities are along the box vectors, per VASP's timestep ('{mode}')", where=path,
            expected="Cartesian ones in Å/fs, below a blank line, as VASP writes them",
            remedy="convert them, or take them out and let the run draw: velocities: {temperature_K: 300}",
        )  # fmt: skip


def ids_of(atoms: Atoms, path: str) -> NDArray[np.int64]:
    """(n,) ids of the atoms: the file's, or 1, 2, … if it has none."""
    counted, ids = np.arange(1, len(atoms) + 1), atoms.arrays.get("id")
    if ids is None or not len(ids):
        return counted
    if ids.dtype.kind != "i" or ids.ndim > 1 or ids.min() < 1 or len(np.unique(ids)) < len(ids):
        log.warning(f"'id' in {path} holds no ids (whole numbers from 1, each once): atoms are numbered from 1")
        return counted
    return np.asarray(ids, np.int64)


def velocities_of(atoms: Atoms, path: str) -> NDArray[np.float64] | None:
    """Velocities (n, 3) in Å/ps, or None if the file has none in a known unit."""
    if atoms.has("momenta"):
        return np.asarray(atoms.get_velocities() * (1000.0 * ASE_FS), np.float64)
    for name in UNREAD:
        if name in atoms.arrays:
            log.warning(f"'{name}' in {path} is not read: its unit is not told; 'momenta', in ASE's, would be")
    return None


def fixed_in(atoms: Atoms, path: str) -> NDArray[np.int32]:
    """(n,) the directions in which the file fixes each atom, as numbers of `core.fixing`.

    Raises
    ------
    DataError
        An atom is fixed along box vectors in a way that leaves it free to move along no Cartesian direction or plane.
    """
    held = np.zeros((len(atoms), 3), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            held[constraint.index] = True
        elif isinstance(constraint, FixCartesian):
            held[constraint.index] |= constraint.mask
        elif isinstance(constraint, FixScaled):
            held[constraint.index] |= _cartesian(constraint, atoms.cell.array, path)
        elif isinstance(constraint, FixedPlane | FixedLine):
            along = np.abs(constraint.dir) > ON_AXIS
            if along.sum() > 1:
                raise DataError(
                    f"the structure has a {type(constraint).__name__} along {np.round(constraint.dir, 4).tolist()}",
                    where=path, expected="directions x, y and z",
                    remedy="say in the run file what is fixed, as in fixed: {ids: [1, 2], directions: z}",
                )  # fmt: skip
            held[constraint.index] |= along if isinstance(constraint, FixedPlane) else ~along
        else:
            log.warning(f"{type(constraint).__name__} in {path} is not a constraint that a run keeps: it has no effect")
    return numbers_of(held)


def _cartesian(constraint: FixScaled, cell: NDArray[np.float64], path: str) -> NDArray[np.bool_]:
    """(3,) the Cartesian directions in which atoms are fixed whose fractional coordinates are.

    They move by multiples of the box vectors that are free: these have to span a Cartesian direction or plane.
    """
    free = cell[~np.asarray(constraint.mask, bool)]
    lengths = np.linalg.norm(free, axis=1, keepdims=True)
    held = (np.abs(free) <= ON_AXIS * lengths).all(axis=0)
    if held.sum() == np.count_nonzero(constraint.mask):
        return np.asarray(held)
    vectors = " and ".join(name for name, fixed in zip("abc", constraint.mask, strict=True) if fixed)
    raise DataError(
        f"the structure fixes atom {int(np.ravel(constraint.index)[0]) + 1} along {vectors} of a skewed box, which "
        "fixes it in no Cartesian direction",
        where=path, expected="free box vectors that lie along x, y or z, or span a plane of two of them",
        remedy="say in the run file what is fixed, as in fixed: {ids: [1, 2], directions: z}; fixed: {} frees all",
    )  # fmt: skip
