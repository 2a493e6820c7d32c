"""Fixed atoms: which they are, and what a run with them cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import InputError, did_you_mean
from dphpc.core.state import State
from dphpc.md.config import Fixed, MdConfig
from dphpc.md.setup import Start
from dphpc.md.structures import Source, deal
from dphpc.parallel.comm import Communicator, together
from dphpc.parallel.domain import Domain


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

    def __init__(self, chosen: Fixed, type_map: Sequence[str]) -> None:
        for name in chosen.species:
            if name not in type_map:
                raise InputError(
                    f"'fixed' names '{name}', which the model does not know", remedy=did_you_mean(name, type_map)
                )
        self._chosen, self._types = chosen, [type_map.index(name) for name in chosen.species]
        self.names = [f"atoms of species {name}" for name in chosen.species]
        self.names += [f"ids {a}-{b}" if b > a else f"id {a}" for a, b in chosen.id_ranges]
        self.names += [f"{axis} below {bound:g} Å" for axis, bound in chosen.below_A.items()]
        self.names += [f"{axis} above {bound:g} Å" for axis, bound in chosen.above_A.items()]
        self.counts = np.zeros(len(self.names), np.int64)

    def mark_(self, rows: NDArray, coordinates: NDArray[np.float64]) -> None:
        """Fix the chosen ones of a structure's rows, and no others; a `structures.Mark`."""
        rows["fixed"] = 0
        for k, atoms in enumerate(self._found(rows, coordinates)):
            rows["fixed"][atoms] = 1
            self.counts[k] += len(atoms)

    def require_all(self, comm: Communicator) -> None:
        """Raise InputError, on all ranks, if an entry of the choice has no atom; collective."""
        counts = comm.allreduce(self.counts)
        with together(comm):
            for name, count in zip(self.names, counts, strict=True):
                if not count:
                    raise InputError(f"'fixed' names {name}, and there are no such atoms", where="run file")

    def _found(self, rows: NDArray, coordinates: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
        for kind in self._types:
            yield np.flatnonzero(rows["types"] == kind)
        ids, order = rows["ids"], np.argsort(rows["ids"])
        for first, last in self._chosen.id_ranges:
            begin, end = np.searchsorted(ids, [first, last + 1], sorter=order)
            yield order[begin:end]
        for axis, bound in self._chosen.below_A.items():
            yield np.flatnonzero(coordinates[:, "xyz".index(axis)] < bound)
        for axis, bound in self._chosen.above_A.items():
            yield np.flatnonzero(coordinates[:, "xyz".index(axis)] > bound)


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
    state.velocities[state.fixed != 0] = 0.0
    return state


def fixed_lines(settings: MdConfig, n_atoms: int, n_fixed: int) -> list[str]:
    """The header's line about fixed atoms, if there are any.

    Raises
    ------
    InputError
        All atoms are fixed, or some are and a stage moves the box.
    """
    if not n_fixed:
        return []
    by = settings.structure if settings.fixed is None else "the run file"
    if n_fixed == n_atoms:
        raise InputError(
            "all atoms are fixed: nothing would move", where=by, remedy="fix fewer, for instance fixed: {ids: [1]}"
        )
    for n, stage in enumerate(settings.stages, 1):
        if not stage.box_moves:
            continue
        key = "pressure_bar" if stage.freedom else "deform_per_ps"
        raise InputError(
            f"{n_fixed:,} atoms are fixed, which '{key}' would move with the box",
            where=f"{by}; stage {n}", expected="a box that stays",
            remedy=f"leave '{key}' out{' (npt: use nvt)' if stage.freedom else ''}, or fix none: fixed: {{}}",
        )  # fmt: skip
    return [f"fixed:     {n_fixed:,} of {n_atoms:,} atoms, as {by} says"]
