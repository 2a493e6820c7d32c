"""How the atoms of a run come to its ranks, with what the run file says of them: fixed ones, and groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dphpc.core.fixing import held_in
from dphpc.core.state import State
from dphpc.md.config import MdConfig
from dphpc.md.fixed import FixedChoice
from dphpc.md.groups import GroupChoice
from dphpc.md.restart import groups_of
from dphpc.md.setup import Start
from dphpc.md.structures import Source, deal
from dphpc.parallel.comm import Communicator, together
from dphpc.parallel.domain import Domain


def deal_atoms(
    source: Source | None, settings: MdConfig, start: Start, domain: Domain, type_map: Sequence[str], comm: Communicator
) -> State:
    """As `structures.deal`, with the run file's groups, and its fixed atoms, else those that the structure fixes.

    A restart of a run with the same choice keeps both, as other atoms may have moved into the chosen regions.

    Raises
    ------
    InputError
        The model does not know a species, an entry of a choice has no atom, or groups share atoms; on all ranks.
    """
    old, choices = start.checkpoint, list[FixedChoice | GroupChoice]()
    with together(comm):
        if settings.fixed is not None and not (old and old.fixes_as(settings.fixed)):
            choices.append(FixedChoice(settings.fixed, type_map))
        if groups_of(settings.groups) != (old.groups if old else []):
            choices.append(GroupChoice(settings.groups, type_map))

    def mark_(rows: NDArray, coordinates: NDArray[np.float64]) -> None:
        for choice in choices:
            choice.mark_(rows, coordinates)

    state = deal(source, settings.replicate, start.box, domain, comm, mark_ if choices else None)
    for choice in choices:
        choice.require_all(comm)
    state.velocities[held_in(state.fixed)] = 0.0
    return state
