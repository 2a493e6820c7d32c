"""The engine of several ranks whose atoms live on GPUs; several ranks may share one.

In a window (see md/gpu_engine.py) ranks exchange ghosts in each step, through pinned memory and MPI, while the GPU
computes atoms that are not near another rank's; the host waits for messages, not for the GPU.  A step that rebuilds the
list is done by itself.  Then the GPU wraps atoms, finds those that leave their brick, sorts those that stay or arrive,
finds those near its faces, and builds the list.  Only atoms that leave or are near a face are downloaded, only those
that arrive and ghosts are uploaded.  The first time the host distributes the atoms, and all are uploaded.  Forces come
from the GPU; where it recorded trouble the host evaluates them again, to find out what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array
from dphpc.core.state import GHOSTED, MIGRATING, Field, State, row_dtype
from dphpc.md.engine import OWN_PAIRS, SORT_CELL, Engine
from dphpc.md.gpu_engine import MOVED, GpuEngine
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.parallel.comm import Communicator
from dphpc.parallel.migrate import deal
from dphpc.potential.contract import Potential, gpu_of

if TYPE_CHECKING:
    from dphpc.md.integrators import Integrator

FIRST, BORDER, LAST = 0, 2, 1
"""Parts of the atoms: evaluated while ghosts are sent, after they arrived, and while their forces are sent back.

The values are their rows in `parts` of `GpuPotential.place`."""


def engine_for(potential: Potential, comm: Communicator, gpu_aware_mpi: bool = False) -> Callable[..., Engine]:
    """The constructor of the engine that moves atoms where the potential is evaluated: on a GPU, or on the CPU."""
    if gpu_of(potential) is None:
        return Engine
    return partial(GpuEngine if comm.size == 1 else RankEngine, gpu_aware_mpi=gpu_aware_mpi)


class RankEngine(GpuEngine):
    """See `GpuEngine`; `neighbors` are downloaded from the GPU when they are needed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._due = False  # whether the next step must rebuild the list

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
        """See `Engine.steps_ahead`: the length of the next window."""
        return min(limit, max(self.window.steps, 1))

    def advance(self, integrator: Integrator, temperatures: Sequence[float]) -> None:
        """See `Engine.advance`."""
        self._here = False
        if integrator.moves_box or self.window.steps <= 1 or not self._pass_window(integrator, temperatures):
            self._due = self.window.steps == 0
            Engine.advance(self, integrator, temperatures)
        self.gpu.fetch_accounts(integrator.baths)

    def update_forces(self) -> None:
        """See `Engine.update_forces`; within a window it waits for messages only, and does not raise."""
        if self._unseen:
            self._launch()
            return
        self._since += 1
        if self._must_rebuild():
            self._rebuild()
        self._here = False
        if not self._evaluate_on_gpu():
            self._bring_all()
            Engine._divide(self)
            self._evaluate(self.halo.start_refresh(self.state))
            self.gpu.put_forces(self.state.forces[: self.state.n_local])
            self.window.saw(np.sqrt(self.moved2), self._since)

    # Internals.

    def _work_meanwhile(self) -> None:
        """Nothing: ranks do deferred work together, one piece a step in `_launch`, however far their GPUs are."""

    def _has_list(self) -> bool:
        return self._key is not None

    def _must_rebuild(self) -> bool:
        """See `Engine._must_rebuild`; the GPU measures how far atoms moved, the host names one that flew away."""
        if not self._has_list():
            return True
        with self.timers("neighbor"):
            self.device.fill(self._report[MOVED], 0)
            self.gpu.note_displacement(self._report[MOVED])
            moved2 = self.device.download(self._report[MOVED]).view(np.float64)
            _, some_are_wild = self._agree_on_moves(float(moved2[0]))
        if some_are_wild:
            self._bring_all()
            return super()._must_rebuild()
        return self._due or self.moved2 >= (0.5 * self.skin) ** 2

    def _bring_all(self) -> None:
        """Download what the host needs to evaluate the step itself."""
        self._here = False
        self.to_host()
        self._here = False  # the step is not over
        self.host.note_positions(self.device.download(self.gpu.built_at))

    def _deal(self) -> None:
        """See `Engine._deal`; done on the GPU, except for the first list."""
        if not self._has_list():
            super()._deal()
            self.host.take_up()
            return
        gpu, box, n = self.gpu, self.state.box, self.gpu.n_local
        self.ghosts.wrap_(box, gpu.positions[:n], gpu.images)
        leave = self.ghosts.places(self.ghosts.outside(box, gpu.positions[:n], self.domain.own))
        moving = State(box)
        moving.append_local(self._rows(MIGRATING, leave))
        deal(moving, self.domain, self.comm)
        gpu.append(moving)
        intervals = [self.domain.interval(axis) for axis in range(3)]
        order = self.ghosts.spatial_order(box, gpu.positions, SORT_CELL, intervals, last=leave)
        gpu.keep_local(order[: n - len(leave) + moving.n_local])
        self.state.resize(gpu.n_local, 0)
        self._told = self._here = False

    def _find_ghosts(self) -> None:
        """Find ghosts; where the atoms are on the GPU only, from those near the brick's faces, which are downloaded."""
        if self._told:
            super()._find_ghosts()
            return
        positions = self.gpu.positions[: self.gpu.n_local]
        border = self.domain.interior(self.reach, images=True)
        near = self.ghosts.places(self.ghosts.outside(self.state.box, positions, border))
        self.halo.attach_ghosts(self.state, self._rows(GHOSTED, near), self.device.download(near), self.reach)

    def _rows(self, fields: Sequence[Field], places: Array) -> NDArray:
        """As `State.rows`, for the GPU's atoms at places (n,) int32."""
        rows = np.empty(len(places), row_dtype(fields))
        for f in fields:
            found = self.gpu.room.buffer(f"rows of {f.name}", (len(places), *f.shape), f.dtype)
            self.ghosts.take(getattr(self.gpu, f.name), places, found)
            rows[f.name] = self.device.download(found)
        return rows

    def _find_neighbors(self) -> int:
        """Upload the ghosts, the first time all atoms, and build the list on the GPU; returns its length."""
        state, gpu = self.state, self.gpu
        if self._told:
            gpu.take_up(state)
        else:
            gpu.set_ghosts(state)
        self.gpu_halo.follow(self.halo.routes, state.n_local)
        found = self.search.build(gpu.positions, gpu.types, gpu.ids, state.n_local, state.n_all, self.reach)
        self._use(found.offsets, found.indices)
        self._due = False
        return found.n_pairs

    def _divide(self) -> None:
        """See `Engine._divide`; inner atoms that fill whole tiles form the first and last part, at no extra cost."""
        gpu, n = self.gpu, self.gpu.n_local
        outer = self.ghosts.outside(self.state.box, gpu.positions[:n], self.domain.interior(self.reach))
        order, counts = self.ghosts.parts(gpu.types[:n], outer, len(self.masses))
        rows, inner = self._on_gpu.rows, counts[:, 0]
        tiles = inner // rows
        first, last = (tiles + 1) // 2 * rows, tiles // 2 * rows
        self._on_gpu.place(np.array((first, last, counts.sum(axis=1) - first - last)), order)

    def _launch(self) -> None:
        """Launch forces, energy, virial and the checks, and exchange ghosts meanwhile; collective."""
        self.gpu.note_displacement(self._report[MOVED], cleared=self._of_step)
        with self.timers("halo"):
            flight = self.gpu_halo.start_refresh(self.gpu.positions)
        self._launch_part(FIRST)
        self._land(flight)
        self._launch_part(BORDER)
        with self.timers("halo"):
            flight = self.gpu_halo.start_reduce(self._totals)
        self._launch_part(LAST)
        self._land(flight)
        with self.timers("force"):
            self._take_forces()
        self.deferred.piece()  # while the GPU computes the last part

    def _launch_part(self, part: int) -> None:
        with self.timers("force"):
            self._replay(partial(self._on_gpu.launch, self._system, self._sums, part), part)
