"""Structures: files are read on rank 0, replicated and distributed to the ranks piece by piece."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.errors import DataError, InputError, counted, did_you_mean
from dphpc.core.state import RESTARTED, State, row_dtype
from dphpc.md.lammps_data import SUFFIXES, LammpsData, read_lammps_data
from dphpc.parallel.comm import Communicator
from dphpc.parallel.domain import Domain

log = logging.getLogger(__name__)

ROWS = row_dtype(RESTARTED)
UNUSUAL_MASS = 0.1
"""Fraction by which a mass may differ from the element's without a warning."""

CHUNK = 1 << 18
"""Atoms that are read and distributed at a time."""


@dataclass(frozen=True)
class Source:
    """A structure that can be read piece by piece; only rank 0 has one with atoms.

    Attributes
    ----------
    species, present
        Names of the rows' types 0, 1, …, and those of which there are atoms.
    n_atoms, max_id
        Number of atoms, and the largest id.
    masses
        Masses in u by name, if the file gives them.
    has_velocities
        Whether the file gives velocities.
    read
        `read(first, last)` gives these rows, (last − first,) `ROWS`.
    last_of_several
        Whether the file has frames before this one.
    """

    box: Box
    species: list[str]
    present: list[str]
    n_atoms: int
    max_id: int
    masses: dict[str, float]
    has_velocities: bool
    read: Callable[[int, int], NDArray]
    last_of_several: bool = False

    @classmethod
    def of_rows(
        cls, box: Box, species: list[str], rows: NDArray, masses: dict[str, float], has_velocities: bool, where: str
    ) -> Source:
        """A source of rows in memory, which are checked.

        Raises
        ------
        DataError
            There are no atoms, two have the same id, or a position or velocity is not finite.
        """
        if not len(rows):
            raise DataError("the structure has no atoms", where=where)
        bad = np.flatnonzero(~np.isfinite(rows["positions"]).all(axis=1) | ~np.isfinite(rows["velocities"]).all(axis=1))
        if len(bad):
            raise DataError(f"atom {rows['ids'][bad[0]]} has a position or velocity that is not finite", where=where)
        if len(np.unique(rows["ids"])) != len(rows):
            raise DataError("two atoms have the same id", where=where)
        max_id = int(rows["ids"].max())

        def read(first: int, last: int) -> NDArray:
            return rows[first:last]

        return cls(box, species, species, len(rows), max_id, masses, has_velocities, read)

    def repeating(self, periodic: Sequence[bool] | None) -> Source:
        """The same atoms where these box vectors are periodic, if they are given; along open ones no images count."""
        if periodic is None:
            return self
        px, py, pz = periodic
        read, is_open = self.read, ~np.array([px, py, pz])

        def within(first: int, last: int) -> NDArray:
            rows = read(first, last).copy()
            rows["images"][:, is_open] = 0
            return rows

        return replace(self, box=replace(self.box, periodic=(px, py, pz)), read=within)

    def require_named(self, type_map: Sequence[str] | None, where: str) -> None:
        """Raise InputError if a run file's `type_map` lacks a species: it does not rename species that a file names."""
        for name in self.present:
            if type_map is not None and name not in type_map:
                raise InputError(
                    f"the structure names its species itself, '{name}' among them, which 'type_map' does not hold",
                    where=where, expected=f"a type_map of {', '.join(self.present)}, or none",
                )  # fmt: skip

    def with_types_of(self, type_map: Sequence[str], where: str) -> Source:
        """The same atoms with types numbered as in `type_map`.

        Raises
        ------
        InputError
            A species is not in `type_map`.
        """
        for name in self.present:
            if name not in type_map:
                raise InputError(
                    f"the structure has species '{name}', which the model does not know",
                    where=where,
                    expected=f"species of the model: {', '.join(type_map)}",
                    remedy="take a model that knows it; of LAMMPS data, 'type_map' in the run file names the types",
                )
        known = {name: number for number, name in enumerate(type_map)}
        numbers = np.array([known.get(name, -1) for name in self.species], np.int32)
        read = self.read

        def renamed(first: int, last: int) -> NDArray:
            rows = read(first, last).copy()
            rows["types"] = numbers[rows["types"]]
            return rows

        return replace(self, species=list(type_map), read=renamed)


def read_structure(
    path: str, type_map: list[str] | None, periodic: list[bool] | None, *, with_fixed: bool = True
) -> Source:
    """Read a structure file, not a restart: its name tells whether it is LAMMPS data or a file that ASE reads.

    Parameters
    ----------
    type_map
        Species of the types in LAMMPS data, and in dumps without a column `element`.
    periodic
        Which box vectors are periodic, in place of the file's.
    with_fixed
        Whether to fix what the file fixes (extxyz' `move_mask`, POSCAR's selective dynamics).

    Raises
    ------
    InputError, DataError
        The file is missing, damaged, its types have no names, or atoms are fixed in directions that are not Cartesian.
    """
    require_file(path, "structure")
    name = Path(path).name.lower()
    if name.endswith(SUFFIXES) or name.startswith("data."):
        source = _from_lammps(read_lammps_data(path), type_map, path)
    else:
        source = _from_ase(path, with_fixed, type_map)
    return source.repeating(periodic)


def require_file(path: str, key: str) -> None:
    """Raise InputError unless there is such a file."""
    if not Path(path).is_file():
        raise InputError(
            f"there is no file '{path}'",
            where=f"key '{key}'",
            expected="a path relative to the current directory",
            remedy=f"the current directory is {Path.cwd()}",
        )


def _from_lammps(data: LammpsData, type_map: list[str] | None, path: str) -> Source:
    kinds = range(1, max(data.n_types, int(data.types.max(initial=0))) + 1)
    if type_map is None and not data.labels:
        raise InputError(
            f"'{path}' does not name its {counted(len(kinds), 'type')}",
            where="key 'type_map'",
            expected="a species for each type, as type_map: [O, H]",
        )
    names = type_map if type_map is not None else [data.labels.get(k, "") for k in kinds]
    present = np.unique(data.types)
    if len(present) and (present[0] < 1 or present[-1] > len(names)):
        raise InputError(
            f"'{path}' has atoms of type {present[-1] if present[0] >= 1 else present[0]}",
            where="key 'type_map'",
            expected=f"types 1 to {len(names)}, which 'type_map' names",
        )
    masses: dict[str, float] = {}
    for kind in sorted(data.masses, key=lambda kind: kind not in present):
        name, mass = names[kind - 1] if kind <= len(names) else "", data.masses[kind]
        if name and masses.setdefault(name, mass) != mass and kind in present:
            raise InputError(
                f"several types of '{path}' are '{name}', and have different masses ({masses[name]:g} and {mass:g} u)",
                where="section Masses; key 'type_map'", expected="one mass for a species",
                remedy="give them one, or names of their own in a model that has them as species",
            )  # fmt: skip
    for name, mass in masses.items():
        _check_mass(name, mass, names, path)
    rows = np.zeros(len(data.ids), ROWS)
    used = [names[k - 1] for k in present]
    rows["ids"], rows["positions"], rows["images"] = data.ids, data.positions, data.images
    rows["types"] = np.searchsorted(present, data.types)
    if data.velocities is not None:
        rows["velocities"] = data.velocities
    return Source.of_rows(data.box, used, rows, masses, data.velocities is not None, path)


def _check_mass(name: str, mass: float, names: list[str], path: str) -> None:
    """Refuse a `type_map` in the wrong order: a type with the mass of another species, not its own."""
    standard = {n: atomic_masses[atomic_numbers[n]] for n in names if n in atomic_numbers}
    others = [n for n, m in standard.items() if abs(m - mass) < 0.02 * m]
    if name in standard and others and abs(standard[name] - mass) > 0.5 * standard[name]:
        raise InputError(
            f"type_map calls a type '{name}' that has the mass of {others[0]} ({mass:g} u) in '{path}'",
            where="key 'type_map'",
            remedy="put the species in the order of the file's types",
        )


def _from_ase(path: str, with_fixed: bool, type_map: list[str] | None) -> Source:
    # ASE's readers import much of SciPy, which takes long: only the rank that reads such a file needs them.
    from dphpc.md.ase_files import fixed_in, ids_of, read_last, velocities_of

    atoms, last_of_several = read_last(path, type_map)
    names, types = np.unique(atoms.get_chemical_symbols(), return_inverse=True)
    rows = np.zeros(len(atoms), ROWS)
    rows["ids"] = ids_of(atoms, path)
    rows["types"], rows["positions"] = types, atoms.positions
    if with_fixed:
        rows["fixed"] = fixed_in(atoms, path)
    velocities = velocities_of(atoms, path)
    if velocities is not None:
        rows["velocities"] = velocities
    masses: dict[str, float] = {}
    if atoms.has("masses"):
        for k, name in enumerate(names):
            own = np.unique(atoms.get_masses()[types == k])
            if len(own) > 1:
                raise DataError(f"atoms of species {name} have different masses", where=path)
            masses[str(name)] = float(own[0])
    box = Box.of_cell(atoms.cell.array, atoms.pbc, atoms.positions)
    box = replace(box, origin=box.origin + np.ravel(atoms.get_celldisp()))  # where a dump's box begins
    source = Source.of_rows(box, [str(n) for n in names], rows, masses, velocities is not None, path)
    return replace(source, last_of_several=last_of_several)


def masses_of(
    type_map: Sequence[str], given: dict[str, float], from_file: dict[str, float], present: Sequence[str]
) -> NDArray[np.float64]:
    """(ntypes,) masses in u: the run file's, else those of the structure's file, else the periodic table's.

    Raises
    ------
    InputError
        `given` names an unknown species, or a species that is present has no mass.
    """
    for name in given:
        if name not in type_map:
            raise InputError(
                f"'masses' names '{name}', which the model does not know", remedy=did_you_mean(name, type_map)
            )
    table = {name: float(atomic_masses[atomic_numbers[name]]) for name in type_map if name in atomic_numbers}
    masses = {**table, **from_file, **given}
    for name in present:
        if name in table and name not in given and abs(masses[name] - table[name]) > UNUSUAL_MASS * table[name]:
            log.warning(f"the structure gives '{name}' a mass of {masses[name]:g} u, the element has {table[name]:g} u")
        if not masses.get(name, 0.0) > 0.0:
            raise InputError(f"the mass of '{name}' is not known", remedy=f"add masses: {{{name}: …}} to the run file")
    return np.array([masses.get(name, np.nan) for name in type_map])


Mark = Callable[[NDArray, NDArray[np.float64]], None]
"""Changes rows of atoms in place, given also their coordinates (n, 3) Å in the replicated structure; ids are the
file's."""


def deal(
    source: Source | None,
    replicate: Sequence[int],
    base: Box,
    domain: Domain,
    comm: Communicator,
    mark_: Mark | None = None,
) -> State:
    """Give each rank the atoms of its brick; collective.

    Rank 0 reads pieces and sends them to all ranks, each of which keeps its own atoms: none ever holds the whole.

    Parameters
    ----------
    source
        The structure; on rank 0.
    base
        The box before replication; `domain` divides the replicated one.
    mark_
        May change the rows of atoms; called on the rank that keeps them.
    """
    n_atoms, max_id = comm.bcast((source.n_atoms, source.max_id) if source else (0, 0))
    state = State(domain.box, n_atoms * math.prod(replicate) // comm.size)  # memory for an equal share of them
    state.resize(0, 0)
    for first in range(0, n_atoms, CHUNK):
        piece = source.read(first, min(first + CHUNK, n_atoms)) if source else None
        rows = comm.bcast(piece)
        assert rows is not None
        for own in _own_replicas(rows, replicate, base, domain, max_id, mark_):
            state.append_local(own)
    return state


def _own_replicas(
    rows: NDArray, replicate: Sequence[int], base: Box, domain: Domain, max_id: int, mark_: Mark | None
) -> Iterator[NDArray]:
    """The replicas of some atoms that lie in this rank's brick."""
    rows = rows.copy()
    repeated = max(replicate) > 1
    if repeated:
        rows["images"] = 0  # they count vectors of the box before replication
    shifts = base.wrap_shifts(rows["positions"])
    rows["positions"] -= shifts @ base.matrix
    if not repeated:
        rows["images"] += shifts
    # Whether replica k along an axis is this rank's depends on the atom and k alone: all ranks compute the same bits,
    # so that no atom is distributed twice or not at all.
    ours = []
    for axis in range(3):
        copies = (base.fractional(rows["positions"], axis) + np.arange(replicate[axis])[:, None]) / replicate[axis]
        ours.append(domain.place(copies, axis) == domain.coordinates[axis])
    third = np.arange(replicate[2])
    for i in np.flatnonzero(ours[0].any(axis=1)):
        for j in np.flatnonzero(ours[1].any(axis=1)):
            k, atom = np.nonzero(ours[0][i] & ours[1][j] & ours[2])
            mine = rows.take(atom)  # many times as fast as an index
            cells = np.column_stack(np.broadcast_arrays(i, j, third)) @ base.matrix
            mine["positions"] += cells.take(k, axis=0)
            if mark_ is not None:
                mark_(mine, mine["positions"] + shifts.take(atom, axis=0) @ base.matrix)
            mine["ids"] += ((i * replicate[1] + j) * replicate[2] + k) * max_id
            yield mine
