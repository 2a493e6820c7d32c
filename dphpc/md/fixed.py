"""Fixed atoms: which they are and in which directions, and what a run with them cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.errors import InputError, did_you_mean
from dphpc.core.fixing import AXES, FixedAtoms, axes_of, held_in, number_of
from dphpc.core.state import State
from dphpc.md.config import Fixed, MdConfig
from dphpc.md.setup import Start
from dphpc.md.stages import Stage
from dphpc.md.structures import Source, deal
from dphpc.parallel.comm import Communicator, together
from dphpc.parallel.domain import Domain

MIXED = 1e-9
"""Part of a length along another direction, after a strain of about 1 %, that is more than rounding."""


class Choice:
    """A run file's choice of fixed atoms, applied to the atoms of one rank.

    Parameters
    ----------
    type_map
        Species of the types 0, 1, ….

    Raises
    ------
    InputError
        The model does not know a species.
    """

    def __init__(self, chosen: Sequence[Fixed], type_map: Sequence[str]) -> None:
        self._chosen, self._type_map = chosen, type_map
        self.names: list[str] = []
        for selection in chosen:
            for name in selection.species:
                if name not in type_map:
                    raise InputError(
                        f"'fixed' names '{name}', which the model does not know", remedy=did_you_mean(name, type_map)
                    )
            self.names += [f"atoms of species {name}" for name in selection.species]
            self.names += [f"ids {a}-{b}" if b > a else f"id {a}" for a, b in selection.id_ranges]
            self.names += [f"{axis} below {bound:g} Å" for axis, bound in selection.below_A.items()]
            self.names += [f"{axis} above {bound:g} Å" for axis, bound in selection.above_A.items()]
        self.counts = np.zeros(len(self.names), np.int64)

    def mark_(self, rows: NDArray, coordinates: NDArray[np.float64]) -> None:
        """Fix the chosen ones of a structure's rows, and no others; a `structures.Mark`."""
        rows["fixed"] = 0
        found = ((s, atoms) for s in self._chosen for atoms in self._found(s, rows, coordinates))
        for k, (selection, atoms) in enumerate(found):
            rows["fixed"][atoms] |= number_of(selection.directions)
            self.counts[k] += len(atoms)

    def require_all(self, comm: Communicator) -> None:
        """Raise InputError, on all ranks, if an entry of the choice has no atom; collective."""
        counts = comm.allreduce(self.counts)
        with together(comm):
            for name, count in zip(self.names, counts, strict=True):
                if not count:
                    raise InputError(f"'fixed' names {name}, and there are no such atoms", where="run file")

    def _found(self, selection: Fixed, rows: NDArray, coordinates: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
        """The atoms of each entry of a selection, in the order of `names`."""
        for name in selection.species:
            yield np.flatnonzero(rows["types"] == self._type_map.index(name))
        ids, order = rows["ids"], np.argsort(rows["ids"])
        for first, last in selection.id_ranges:
            begin, end = np.searchsorted(ids, [first, last + 1], sorter=order)
            yield order[begin:end]
        for axis, bound in selection.below_A.items():
            yield np.flatnonzero(coordinates[:, AXES.index(axis)] < bound)
        for axis, bound in selection.above_A.items():
            yield np.flatnonzero(coordinates[:, AXES.index(axis)] > bound)


def deal_fixed(
    source: Source | None, settings: MdConfig, start: Start, domain: Domain, type_map: Sequence[str], comm: Communicator
) -> State:
    """As `structures.deal`, with the atoms fixed that the run file chooses, else those that the structure's file fixes.

    A restart of a run with the same choice keeps its fixed atoms, as other atoms may have moved into the chosen region.

    Raises
    ------
    InputError
        The model does not know a species, or an entry of the choice has no atom; on all ranks.
    """
    chosen, old, choice = settings.fixed, start.checkpoint, None
    with together(comm):
        if chosen is not None and not (old and old.fixes_as(chosen)):
            choice = Choice(chosen, type_map)
    state = deal(source, settings.replicate, start.box, domain, comm, choice.mark_ if choice else None)
    if choice is not None:
        choice.require_all(comm)
    state.velocities[held_in(state.fixed)] = 0.0
    return state


def fixed_lines(settings: MdConfig, box: Box, n_atoms: int, fixed: FixedAtoms) -> list[str]:
    """The header's line about fixed atoms, if there are any; `box` is that of the run's beginning.

    Raises
    ------
    InputError
        All atoms are fixed, or a stage would deform the box, or turn the directions in which some are fixed.
    """
    if not fixed.n_atoms:
        return []
    by = settings.structure if settings.fixed is None else "the run file"
    if fixed.n_wholly == n_atoms:
        raise InputError(
            "all atoms are fixed: nothing would move", where=by, remedy="fix fewer, for instance fixed: {ids: [1]}"
        )
    deforming = [n for n, stage in enumerate(settings.stages, 1) if stage.rates]
    if deforming:
        raise InputError(
            f"{fixed.n_atoms:,} atoms are fixed, which 'deform_per_ps' would move with the box",
            where=f"{by}; stage {deforming[0]}", expected="a box that stays, or moves by its pressure",
            remedy="leave 'deform_per_ps' out, or fix none: fixed: {}",
        )  # fmt: skip
    _refuse_turned(settings.stages, box, fixed, by)
    partly = fixed.n_atoms - fixed.n_wholly
    some = f", {partly:,} of them in some directions only" if partly else ""
    return [f"fixed:     {fixed.n_atoms:,} of {n_atoms:,} atoms, as {by} says{some}"]


def _refuse_turned(stages: Sequence[Stage], box: Box, fixed: FixedAtoms, by: str) -> None:
    """Refuse stages that strain the box so that a displacement along free directions gets a part along fixed ones.

    If none does in the box of the beginning, none does in a box that they make of it.
    """
    for n, stage in enumerate(stages, 1):
        if stage.freedom is None:
            continue
        strained = stage.freedom.typical(box.matrix)
        mixes = np.abs(np.linalg.solve(box.matrix, strained)) > MIXED  # a row for what each direction becomes
        for held in map(axes_of, fixed.partly):
            free = [axis for axis in range(3) if axis not in held]
            if mixes[np.ix_(free, held)].any():
                raise InputError(
                    f"atoms are fixed along {' and '.join(AXES[k] for k in held)}, which 'pressure_bar' would turn "
                    "into a direction in which they move",
                    where=f"{by}; stage {n}",
                    expected="directions that stay Cartesian: all of them in a cuboid box at constant angles; "
                    "with free angles z, or y and z",
                    remedy="a constant box, coupling: isotropic, or atoms that are fixed in all directions",
                )  # fmt: skip
