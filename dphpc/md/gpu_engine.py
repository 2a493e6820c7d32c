"""An engine whose atoms live on a GPU: within a window of steps the host neither waits for it nor copies anything.

`advance` does a window of steps, during which the GPU records whether an atom left the reach of the neighbor list, a
force or an energy is invalid, or a pair came nearer than the model's table reaches.  If so, the window is discarded:
atoms and thermostat are restored to its start, and its steps are done one by one as `Engine` does them, with forces
from the GPU but everything else decided on the host.  So a list is rebuilt, a table extended and an error raised in
the very step in which it is due.  Results are the same either way: moves are the same, and forces are sums of integers.

A window ends when `Window` expects the list to become invalid.  If the rank has all atoms, the engine then wraps and
sorts them, finds their images and builds the list on the GPU before the next window begins; it does the same when a
window was discarded only because of its list, and at the start of the run.  A window for which even a new list does not
last is repeated in shorter ones.  The host builds the same list, from the same positions, only when it needs it.  Runs
of several ranks use the engine of md/gpu_ranks.py.

The state at the end of a window is final, whatever becomes of the next: frames are copied between two windows, and
written while the GPU computes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array
from dphpc.core.exact_sum import FORCE_LIMIT, FORCE_SPACING
from dphpc.core.state import State, pieces
from dphpc.md.deferred import Deferred
from dphpc.md.engine import SORT_CELL, Engine
from dphpc.md.window import Window, most_steps
from dphpc.ops.energy.gpu import VIRIAL_SLOTS, GpuSums, GpuSystem, virial_parts
from dphpc.ops.ghosts.cuda import CudaGhosts, Images, rounded_up
from dphpc.ops.motion.cuda import CudaMoves
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.neighbors.cuda import CudaNeighbors, Grid, choose_grid
from dphpc.parallel.gpu_halo import GpuHalo
from dphpc.potential.contract import SAMPLE, GpuPotential, Outputs

if TYPE_CHECKING:
    from dphpc.md.integrators import Integrator

MOVED, _TROUBLE, _ENERGY, _VIRIAL = slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 5 + 9 * VIRIAL_SLOTS)
"""Parts of the report, 64-bit words downloaded at the end of a window; the first two cover all its steps."""

MOST_RECORDED = 2_000_000
"""Most atoms for which a step is recorded as a graph; for more it would hold thousands of launches, which are hidden
behind the kernels anyway."""


class GpuEngine(Engine):
    """The engine of a rank that has all atoms; its potential is a `GpuPotential` with a device.

    Parameters
    ----------
    gpu_aware_mpi
        See `GpuHalo`; used with several ranks.

    Attributes
    ----------
    gpu, gpu_halo
        The atoms' arrays and moves on the GPU, and the halo that updates the ghosts there.
    ghosts, search
        Find periodic images and neighbors on the GPU.
    window
        Predicts how many steps may be done in a window.
    thrown_away
        Number of windows that were discarded.
    """

    def __init__(self, *arguments: Any, gpu_aware_mpi: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert isinstance(self.potential, GpuPotential)
        assert self.potential.device is not None
        self._on_gpu, self.device = self.potential, self.potential.device
        alone, some_fixed = self.comm.size == 1, self.fixed.n_atoms > 0
        some_grouped = bool(self.comm.allreduce(np.array([self.state.group.any()], np.int64))[0])
        self.moves = self.gpu = CudaMoves(self.device, self.masses, self.spacing, alone=alone, some_fixed=some_fixed)
        marks = ["fixed"] * some_fixed + ["group"] * some_grouped
        self._constant = ("ids", "types", "images", *marks)  # change only with the list
        self.window, self.thrown_away = Window(0.5 * self.skin, most_steps(self.n_atoms)), 0
        self.deferred = Deferred(self.timers, at_once=False)
        self.ghosts, self.search = CudaGhosts(self.device), CudaNeighbors(self.device)
        self.gpu_halo = GpuHalo(self.comm, self.ghosts, gpu_aware_mpi)
        self._counts = self._count_types()
        self._on_gpu.expect(self.comm.allreduce(self._counts))
        self._sizes = self.device.zeros(2, np.int64)  # of a list: numbers of ghosts and pairs
        self._n_rows = 0  # rows of the arrays reserved for ghosts
        self._grid: Grid | None = None  # of the search; None where atoms may leave it, in an open box
        self._own = object()  # identifies this engine in the keys of graphs
        self._key: Hashable = None  # of the graph of a step's forces, without the potential's version
        self._unseen = False  # whether a window is in progress
        self._since = 0  # steps since the list was built
        self._here = True  # whether `state` on the host is that of the present step
        self._behind = False  # whether the GPU's list is newer than the host's
        self._told = True  # whether the atoms of `state` are in the same order as the GPU's
        self._looked_over = False  # whether the potential has been shown a sample of atoms and neighbors
        self._outrun = False  # whether the last discarded window failed only because of its list

    def repeat(self, moves: Callable[[Engine], None]) -> None:
        """See `Engine.repeat`; within a window the moves are launched as one graph."""
        if self._unseen:
            with self.timers("force"):
                self._replay(partial(moves, self), moves, self.timestep)
        else:
            moves(self)

    def update_forces(self) -> None:
        """See `Engine.update_forces`; within a window it neither waits nor raises."""
        if self._unseen:
            self._launch()
            return
        if self._key is None and self._begin():
            return
        self._since += 1
        if self._behind:
            self._catch_up()
        before = self._neighbors
        if before is not None:
            self.gpu.bring(self.state, "positions", "velocities")
        super().update_forces()
        if self._neighbors is not before:
            self._place()
        self.gpu.put_forces(self.state.forces[: self.state.n_local])
        self.window.saw(np.sqrt(self.moved2) if self._since else 0.0, self._since)

    def reshape_box(self, matrix: NDArray[np.float64], *, flips: bool = False, flows: bool = False) -> None:
        """See `Engine.reshape_box`; done on the host, from which the atoms are uploaded as at the start of the run."""
        self.to_host()
        super().reshape_box(matrix, flips=flips, flows=flows)
        self.gpu.spacing = np.float64(self.spacing)
        self._key = self._grid = self._neighbors = None

    def steps_ahead(self, limit: int) -> int:
        """See `Engine.steps_ahead`: the length of the next window."""
        return min(limit, self.window.steps or self.window.fresh)

    def advance(self, integrator: Integrator, temperatures: Sequence[float]) -> None:
        """See `Engine.advance`."""
        self._here, left = False, list(temperatures)
        if integrator.moves_box:  # each of its steps begins a list
            super().advance(integrator, left)
            return
        most = len(left)  # upper limit for the steps of a window
        while left:
            if self.window.steps == 0:
                self._build_on_gpu()
            n = min(most, self.window.steps)
            # The first step, before which the pace is unknown, is done as a window, too.
            if n == 0 or (self.window.steps == 1 and self.window.pace is not None):
                break
            if self._pass_window(integrator, left[:n]):
                del left[:n]
                most = len(left)
                self.gpu.fetch_accounts(integrator.baths)
            elif not self._outrun:
                break
            elif self._since:
                self._build_on_gpu()
            else:
                most = n // 2  # not even a new list lasts for n steps
        if left:
            super().advance(integrator, left)
            self.gpu.fetch_accounts(integrator.baths)

    def _begin(self) -> bool:
        """Build the first list and forces on the GPU; returns whether they are valid, else the host finds out why."""
        with self.timers("halo"):
            self.gpu.take_up(self.state)
        self._build_on_gpu()
        if not self._looked_over:
            with self.timers("neighbor"):
                self._on_gpu.look_over(*self._sample())
            self._looked_over = True
        stands = self._evaluate_on_gpu()
        self._here, self._behind, self._told = not stands, stands, not stands
        return stands

    def _sample(self) -> tuple[State, Neighbors]:
        """The first `SAMPLE` atoms and their neighbors; each entry of the list is a ghost of its own."""
        n, download = min(self.gpu.n_local, SAMPLE), self.device.download
        offsets = download(self._system.offsets[: n + 1])
        indices = self._system.indices[: int(offsets[-1])]
        state = State(self.state.box, n)
        state.resize(n, len(indices))
        for name in ("ids", "types", "positions"):
            array, values = getattr(self.gpu, name), getattr(state, name)
            found = self.device.zeros(values[n:].size, values.dtype).reshape(values[n:].shape)
            self.ghosts.take(array, indices, found)
            values[:n], values[n:] = download(array[:n]), download(found)
        return state, Neighbors(offsets, np.arange(n, state.n_all, dtype=np.int32), self.reach)

    def _pass_window(self, integrator: Integrator, temperatures: Sequence[float]) -> bool:
        """Do a window of steps; returns whether it is valid, else everything is restored.  Collective."""
        before = self.step, self.clock, self._since
        saved = None if integrator.dynamic else integrator.save()  # a thermostat's are restored on the GPU
        self.device.replay((self._key, self.gpu.room.growths), self._begin_window)
        self._unseen = True
        Engine.advance(self, integrator, temperatures)
        self._unseen = False
        self._since += len(temperatures)
        self._work_meanwhile()
        if self._all_is_well():
            return True
        self.thrown_away += 1
        self.gpu.restore()
        self.step, self.clock, self._since = before
        if saved is not None:
            integrator.load(saved)
        return False

    def _work_meanwhile(self) -> None:
        """Do deferred work of the host for as long as the GPU computes the window."""
        launched = self.device.mark()
        while not launched.done and self.deferred.piece():
            pass

    def _begin_window(self) -> None:
        self.gpu.keep()
        self.device.fill(self._report[: _TROUBLE.stop], 0)

    def to_host(self, *, lists: bool = False) -> None:
        """See `Engine.to_host`; collective."""
        if self._here and not lists:
            return
        if self._behind and lists:
            self._catch_up()
        with self.timers("output"):
            if not self._told:
                self.gpu.bring(self.state, *self._constant)
                self.host.take_up()
                self._told = True
            self.gpu.bring(self.state, "positions", "velocities", "forces")
        if lists:
            with self.timers("halo"):
                self.halo.refresh_ghosts(self.state)
        self._here = True

    def _place(self) -> None:
        """Upload the atoms and the list that the host has just built."""
        with self.timers("halo"):
            self.gpu.take_up(self.state)
            self.gpu_halo.follow(self.halo.routes, self.state.n_local)
            self._group()
            self._use(*self._on_gpu.list_on_gpu(self.neighbors))
        x, n = self.state.positions, self.state.n_all
        self._n_rows = rounded_up(self.state.n_ghost)
        self.search.make_room(self.n_pairs)
        closed = all(self.state.box.periodic)
        self._grid = choose_grid(x.min(axis=0), x.max(axis=0), n, self.reach) if closed else None

    def _count_types(self) -> NDArray[np.int64]:
        types = self.state.types[: self.state.n_local]
        counts = (np.bincount(types[piece], minlength=len(self.masses)) for piece in pieces(len(types)))
        return sum(counts, np.zeros(len(self.masses), np.int64))

    def _group(self) -> None:
        types = self.gpu.types[: self.gpu.n_local]
        self._on_gpu.place(self._counts[None], self.ghosts.order(types, len(self._counts)))

    def _use(self, offsets: Array, indices: Array) -> None:
        """Use a new list on the GPU, which is of the present positions."""
        gpu = self.gpu
        self._system = GpuSystem(gpu.positions, gpu.types, offsets, indices)
        sums = gpu.room.buffer("sums", (_VIRIAL.stop + 3 * len(gpu.positions),), np.int64)
        report, totals = sums[: _VIRIAL.stop], sums[_VIRIAL.stop :]
        self._report, self._of_step = report, sums[_ENERGY.start :]
        self._sums = GpuSums(totals, report[_VIRIAL], report[_TROUBLE], energy=report[_ENERGY])
        arrays = offsets, indices, totals, report
        addresses = tuple(map(self.device.address, arrays))
        self._key = self._own, gpu.where, len(gpu.positions), self.gpu_halo.ways, addresses, self.spacing
        self._since, self.moved2 = 0, 0.0

    def _build_on_gpu(self) -> None:
        """Sort all atoms, find their images and build the list on the GPU; only a few numbers are downloaded.

        If the arrays were too small, all is repeated with larger ones, starting from the atoms that are then sorted.
        """
        gpu, n, found = self.gpu, self.gpu.n_local, None
        with self.timers("neighbor"):
            while found is None:
                gpu.reserve(n + self._n_rows)
                images = self.ghosts.room(n, self._n_rows)
                self.gpu_halo.follow_images(images.owners, images.displacements, n)
                self._start_list(images)
                n_ghost, n_pairs = map(int, self.device.download(self._sizes))
                found = self.search.found(n, self.reach, n_pairs)
                if n_ghost > self._n_rows:
                    self._n_rows, found = rounded_up(n_ghost), None
            self._use(found.offsets, found.indices)
            if self._grid is None and all(self.state.box.periodic):
                self._grid = self.search.grid(*self._places())
        self.window.saw(0.0, 0)
        self.rebuilds, self.n_pairs = self.rebuilds + 1, found.n_pairs
        self._behind, self._told, self._neighbors = True, False, None
        self.state.resize(n, 0)

    def _start_list(self, images: Images) -> None:
        """Launch the list's kernels: as one graph, unless the host must first find the extent of an open system."""
        if self._grid is None:
            self._launch_list(images)
            return
        box, kept = self.state.box, (self.gpu.room, self.ghosts, self.search)
        numbers = box.matrix.tobytes(), box.origin.tobytes(), self._grid[0].tobytes()
        arrays = self.gpu.where, *(keeper.buffers.growths for keeper in kept)
        key = self._own, self._n_rows, numbers, arrays, self._on_gpu.version()
        self.device.replay(key, partial(self._launch_list, images))

    def _launch_list(self, images: Images) -> None:
        gpu, ghosts, box, n = self.gpu, self.ghosts, self.state.box, self.gpu.n_local
        ghosts.wrap_(box, gpu.positions[:n], gpu.images)
        gpu.put_in_order(ghosts.spatial_order(box, gpu.positions[:n], SORT_CELL))
        ghosts.find_images(box, gpu.positions[:n], self.reach, images)
        for array in (gpu.types, gpu.ids):
            ghosts.take(array, images.owners, array[n:])
        self.gpu_halo.refresh(gpu.positions)
        self._group()
        n_pairs = self.search.start(*self._places(), self._grid or self.search.grid(*self._places()), images.n_ghost)
        self.device.copy(images.n_ghost, self._sizes[:1])
        self.device.copy(n_pairs, self._sizes[1:])

    def _places(self) -> tuple[Array, Array, Array, int, int, float]:
        """The arguments of the neighbor search."""
        gpu, n = self.gpu, self.gpu.n_local
        return gpu.positions, gpu.types, gpu.ids, n, n + self._n_rows, self.reach

    def _catch_up(self) -> None:
        """Build the GPU's list on the host, from the same positions, which `state` then holds."""
        with self.timers("output"):
            self.gpu.bring(self.state, *self._constant)
            self.state.positions[: self.gpu.n_local] = self.device.download(self.gpu.built_at)
        self._search()
        self._behind, self._told = False, True

    def _evaluate_on_gpu(self) -> bool:
        """Compute forces, energy and virial of a single step; returns whether they are valid.  Collective."""
        self._begin_window()
        self._launch()
        return self._all_is_well()

    def _launch(self) -> None:
        """Launch forces, energy, virial and the checks at the present positions; does not wait."""
        with self.timers("force"):
            self._replay(self._launch_all)
        if not self._is_recorded:  # launches then wait for the GPU, so the host must work now
            self.deferred.piece()

    @property
    def _is_recorded(self) -> bool:
        return self.gpu.n_local <= MOST_RECORDED

    def _replay(self, work: Callable[[], None], *numbers: Hashable) -> None:
        if self._is_recorded:
            self.device.replay((self._key, self._on_gpu.version(), numbers), work)
        else:
            work()

    def _launch_all(self) -> None:
        self.gpu.note_displacement(self._report[MOVED], cleared=self._of_step)
        self.gpu_halo.refresh(self.gpu.positions)
        self._on_gpu.launch(self._system, self._sums)
        self.gpu_halo.reduce(self._totals)
        self._take_forces()

    @property
    def _totals(self) -> Array:
        """(n_all, 3) integers in which forces are summed."""
        return self._sums.forces.reshape(-1, 3)

    def _take_forces(self) -> None:
        limit = FORCE_LIMIT if self.deterministic else np.inf
        self.gpu.take_forces(self._sums.forces, FORCE_SPACING, limit, self._report[_TROUBLE])

    def _all_is_well(self) -> bool:
        """Download the report of the window; returns whether its steps are valid; collective."""
        with self.timers("force"):  # the GPU may still be computing
            report = self.device.download(self._report)
        moved2 = float(report[MOVED].view(np.float64)[0])
        noted = moved2 if np.isfinite(moved2) else np.inf, float(report[_TROUBLE][0]), self.asked_to_stop
        with self.timers("wait"):
            flags = self.comm.allreduce(np.array(noted, np.float64), "max")
        self.moved2, self.stop = float(flags[0]), int(flags[2])
        if flags[1] or self.moved2 >= (0.5 * self.skin) ** 2:
            self._outrun = not flags[1]
            return False
        self.window.saw(np.sqrt(self.moved2), self._since)
        energy, virial = report[_ENERGY].view(np.float64), virial_parts(report[_VIRIAL], FORCE_SPACING)
        spacing = FORCE_SPACING if self.deterministic else 0.0
        self.outputs = Outputs(self.state.forces, energy, virial, force_spacing=spacing)
        return True
