"""The engine of several ranks whose atoms live on cards, one card a rank or more ranks on one.

In a window (see md/card_engine.py) ranks exchange ghosts in each step, through pinned memory and MPI, while the card is
at atoms that are near none of another rank; the host waits for messages, not for the card.  When the list has had its
day, the next step is one of the host's: atoms come down and are dealt out, ghosts are found, all go up, and the card
builds the list.  Its forces are the card's, too; where that noted trouble the host evaluates them, to say what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dphpc.md.card_engine import MOVED, CardEngine
from dphpc.md.engine import OWN_PAIRS, Engine
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.parallel.comm import Communicator
from dphpc.potential.contract import Potential, card_of

if TYPE_CHECKING:
    from dphpc.md.integrators import Integrator

FIRST, BORDER, LAST = 0, 2, 1
"""Parts of the atoms, evaluated while ghosts are under way, when they are there, and while their forces go home."""


def engine_for(potential: Potential, comm: Communicator, gpu_aware_mpi: bool = False) -> Callable[..., Engine]:
    """What makes the engine that moves atoms where the potential is evaluated."""
    if card_of(potential) is None:
        return Engine
    return partial(CardEngine if comm.size == 1 else RankEngine, gpu_aware_mpi=gpu_aware_mpi)


class RankEngine(CardEngine):
    """See `CardEngine`; `neighbors` come down from the card when somebody asks for them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._due = False  # whether the next step is to build the list

    @property
    def neighbors(self) -> Neighbors:
        """See `Engine.neighbors`."""
        if self._neighbors is None:
            offsets, indices = map(self.device.download, (self._system.offsets, self._system.indices))
            self._neighbors = Neighbors(offsets, indices, self.reach)
        return self._neighbors

    @property
    def work(self) -> NDArray[np.float64]:
        """See `Engine.work`."""
        return np.diff(self.device.download(self._system.offsets)) + float(OWN_PAIRS)

    def repeat(self, moves: Callable[[Engine], None]) -> None:
        """See `Engine.repeat`."""
        moves(self)

    def steps_ahead(self, limit: int) -> int:
        """See `Engine.steps_ahead`: up to the next look."""
        return min(limit, max(self.window.steps, 1))

    def advance(self, integrator: Integrator, temperatures: Sequence[float]) -> None:
        """See `Engine.advance`."""
        self._here = False
        if self.window.steps <= 1 or not self._pass_window(integrator, temperatures):
            self._due = self.window.steps == 0
            Engine.advance(self, integrator, temperatures)
        self.card.fetch_account(integrator)

    def update_forces(self) -> None:
        """See `Engine.update_forces`; in a window only messages are waited for, and nothing is raised."""
        if self._unseen:
            self._launch()
            return
        self._since += 1
        if self._has_list():
            self.card.bring(self.state, "positions", "velocities")
        if self._must_rebuild():
            self._rebuild()
        self._here = False
        if not self._evaluate_on_card():
            self._evaluate(self.halo.start_refresh(self.state))
            self.card.put_forces(self.state.forces[: self.state.n_local])
            self.window.saw(np.sqrt(self.moved2), self._since)

    # How it is done.

    def _has_list(self) -> bool:
        return self._key is not None

    def _must_rebuild(self) -> bool:
        return super()._must_rebuild() or self._due

    def _find_neighbors(self) -> int:
        """Bring the atoms to the card, which builds the list."""
        state, card = self.state, self.card
        card.take_up(state)
        self.card_halo.follow(self.halo.routes, state.n_local)
        places = card.positions, card.types, card.ids, state.n_local, state.n_all, self.reach
        found = self.search.build(*places)
        self._use(found.offsets, found.indices)
        self._due = False
        return found.n_pairs

    def _divide(self) -> None:
        """See `Engine._divide`; whole tiles of inner atoms are parts of their own, which costs nothing."""
        super()._divide()
        outer = np.ones(self.state.n_local, np.int32)
        for part in self.inner:
            outer[part] = 0
        types, n_types = self.state.types[: self.state.n_local], len(self.masses)
        counts, inner = (np.bincount(of, minlength=n_types) for of in (types, types[outer == 0]))
        rows = self._on_card.rows
        tiles = inner // rows
        first, last = (tiles + 1) // 2 * rows, tiles // 2 * rows
        keys = self.card.room.up("keys", 2 * types + outer, np.int32)
        self._on_card.place(np.array((first, last, counts - first - last)), self.ghosts.order(keys, 2 * n_types))

    def _launch(self) -> None:
        """Forces, energy and virial at the present positions, and what is to be noted; collective."""
        self.card.note_displacement(self._report[MOVED])
        with self.timers("halo"):
            flight = self.card_halo.start_refresh(self.card.positions)
        self._launch_part(FIRST)
        self._land(flight)
        self._launch_part(BORDER)
        with self.timers("halo"):
            flight = self.card_halo.start_reduce(self._totals)
        self._launch_part(LAST)
        self._land(flight)
        with self.timers("force"):
            self._take_forces()

    def _launch_part(self, part: int) -> None:
        with self.timers("force"):
            self._replay(partial(self._add_part, part), part)

    def _add_part(self, part: int) -> None:
        if part == FIRST:
            self.device.fill(self._of_step, 0)
        self._on_card.launch(self._system, self._sums, part)
