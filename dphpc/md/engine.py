"""The engine: atoms of one rank, their forces, and the elementary moves that integrators are made of.

A step of dynamics is `kick` and `drift` in the integrator's order with `update_forces` between them.  If an atom of any
rank has moved half the skin, `update_forces` migrates atoms and rebuilds ghosts and neighbors; else it only updates the
ghosts' positions.  Atoms far from the brick's faces are evaluated while ghosts, then their forces, are being sent.

A deterministic engine gives the same bits on any number of ranks and threads and through restarts.  Positions and box
are multiples of one power of two, so that shifts by box vectors and differences of positions are exact and it does not
matter when an atom is wrapped or who owns it.  Neighbors are sorted by id.  Each pair's force is a multiple of another
power of two and sums over atoms are exact, so that their order does not matter (`core.exact_sum`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DphpcError, RunError
from dphpc.core.exact_sum import FORCE_SPACING, round_to, total
from dphpc.core.fixing import FixedAtoms, counts_of
from dphpc.core.state import State
from dphpc.md.deferred import Deferred
from dphpc.md.timers import Timers
from dphpc.md.trouble import located, too_large, wild_atom
from dphpc.ops.motion.contract import Account, Bath, Moves
from dphpc.ops.motion.reference import HostMoves
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.neighbors.native import build_neighbors
from dphpc.parallel.balance import Pace, balanced, imbalance
from dphpc.parallel.comm import Communicator, agree, together
from dphpc.parallel.domain import Domain
from dphpc.parallel.flight import Flight
from dphpc.parallel.halo import Halo
from dphpc.parallel.migrate import check_count, migrate, sort_spatially
from dphpc.potential.contract import Outputs, Potential

if TYPE_CHECKING:
    from dphpc.md.integrators import Integrator

SORT_CELL = 3.0
"""Å: atoms are sorted in memory by cells of this size."""

PIECES = 4
"""Most parts in which the atoms that need no ghosts are evaluated; messages are polled between parts."""

FEWEST = 2048
"""Least number of atoms in a part: each part costs passes of the fitting net over tiles that are not full."""

BALANCE_EVERY = 20
"""Neighbor rebuilds between two checks of the load balance."""

UNBALANCED = 0.05
"""Fraction by which a rank may have more work than the mean before planes move."""

OWN_PAIRS = 200
"""Cost of an atom's fitting net, in units of the cost of a pair."""


class Engine:
    """One rank's share of a run.

    Parameters
    ----------
    state
        Any share of the run's atoms; the first `update_forces` sends each to its owner.
    domain
        The brick that this rank owns.
    potential
        Computes energy, forces and virial.
    masses
        (ntypes,) masses in u.
    timestep
        Δt in ps.
    skin
        Distance in Å by which the neighbor list reaches beyond the cutoff.
    deterministic
        Same bits for any number of ranks and threads; the box must be one `on_grid`.
    balance
        Move the planes between bricks so that all have equal work.

    Attributes
    ----------
    step, time, moving
        Steps done since the run's first structure, the time in ps, and whether this engine has begun a step.
    host, moves
        Moves of the atoms in `state`, and the moves that steps use; here both are the same.
    deferred
        Work of the host, for past steps, that is not yet done.
    outputs
        Energy and virial of this rank's atoms at the positions of the last `update_forces`.
    inner, outer
        Local atoms with no ghost of another rank in reach, and the others; each in parts evaluated one by one.
    rebuilds, flips
        How often the neighbor list was rebuilt, and the box flipped back.
    mass, fixed, n_pairs
        Total mass in u and fixed atoms, of all ranks; length of this rank's neighbor list.
    in_flight
        (2,) seconds during which ghost messages were in flight, and for which this rank waited for them.
    asked_to_stop
        Number of the signal that asked this rank to end the run, 0 if none did.
    spacing
        Spacing in Å of the grid on which positions lie in a deterministic run; else 0.
    moved2
        Å²: largest squared displacement of any atom of any rank since the list was built, when last checked.
    stop
        The largest `asked_to_stop` of all ranks, as of the last `update_forces`.
    """

    def __init__(
        self,
        state: State,
        domain: Domain,
        comm: Communicator,
        potential: Potential,
        masses: NDArray[np.float64],
        timestep: float,
        skin: float,
        *,
        deterministic: bool = False,
        balance: bool = False,
    ) -> None:
        self.state, self.domain, self.comm, self.potential = state, domain, comm, potential
        self.timestep, self.skin, self.reach = timestep, skin, potential.cutoff + skin
        self.halo, self.timers = Halo(domain, comm), Timers()
        self.deferred, self.step, self.clock = Deferred(self.timers), 0, (0, 0.0)
        self.outputs = Outputs(state.forces)
        self.rebuilds, self.n_pairs, self.in_flight, self.moving = 0, 0, np.zeros(2), False
        self.deterministic, self.balance = deterministic, balance
        self.asked_to_stop, self.stop, self.flips, self.moved2 = 0, 0, 0, 0.0
        self._listed, self._stretch = state.box, 1.0  # the neighbor list's box, and the least factor of distances since
        self.last_restart: str | None = None  # that this run wrote
        self.first_restart: str | None = None  # from which it went on
        kinds = np.bincount(state.types[: state.n_local], minlength=len(masses))
        numbers = comm.allreduce(kinds).tolist()
        self.fixed = FixedAtoms(tuple(comm.allreduce(counts_of(state.fixed[: state.n_local])).tolist()))
        self.n_atoms, self.mass = sum(numbers), sum(n * m for n, m in zip(numbers, masses.tolist(), strict=True) if n)
        self._neighbors: Neighbors | None = None
        self.inner: list[NDArray[np.int32]] = []
        self.outer: list[NDArray[np.int32]] = []
        self._pace = Pace()  # of force evaluation since the last balance check
        self.masses, self.spacing = masses, state.box.spacing if deterministic else 0.0
        if self.spacing:
            round_to(state.positions, self.spacing, out=state.positions)
        self.host = HostMoves(state, masses, self.spacing, some_fixed=self.fixed.n_atoms > 0)
        self.moves: Moves = self.host

    @property
    def time(self) -> float:
        """Time in ps; counted from `clock`: the last step at which the timestep changed, and its time."""
        step, time = self.clock
        return time + (self.step - step) * self.timestep

    @property
    def neighbors(self) -> Neighbors:
        """The neighbor list of the last `update_forces`."""
        assert self._neighbors is not None
        return self._neighbors

    # Moves for integrators.

    def kick(self, dt: float) -> None:
        """v += dt f/m."""
        with self.timers("integrate"):
            self.moves.kick(dt)

    def drift(self, dt: float, kick: float = 0.0) -> None:
        """x += dt v, after v += kick f/m."""
        with self.timers("integrate"):
            self.moves.drift(dt, kick)

    def rescale(self, bath: Bath, inputs: NDArray[np.float64], *, measured: bool = True) -> None:
        """v *= factor, the bath's response to the kinetic energy, or to NaN if not `measured`; collective."""
        with self.timers("integrate"):
            self.moves.rescale(bath, inputs, self.comm.allreduce, measured=measured)

    def randomize_velocities(self, account: Account, keep: float, temperature: float, seed: int) -> None:
        """v = keep·v + √((1 − keep²) kT/m) ξ; the account receives the kinetic energy lost."""
        with self.timers("integrate"):
            self.moves.randomize_velocities(account, keep, temperature, seed, self.step + 1)

    def reshape_box(self, matrix: NDArray[np.float64], *, flips: bool = False, flows: bool = False) -> None:
        """Give the box other vectors (3, 3), at constant fractional coordinates; `update_forces` must follow.

        They are the same on all ranks.  The origin stays; `HostMoves.strain` tells what becomes of velocities if the
        box `flows`, or not.  If it may be flipped, others are taken where they lean too much; see `Box.ways_upright`.
        """
        with self.timers("integrate"):
            box = replace(self.state.box, matrix=matrix)
            if flips and not np.array_equal(ways := box.ways_upright(), np.eye(3)):
                self.state.flip_box(ways)
                self._neighbors, self.flips, box = None, self.flips + 1, box.combined(ways)
            if self.deterministic:
                box = box.on_grid()  # a box that outgrows its grid takes the next, as after a restart
                self.spacing = box.spacing
            self.host.strain(box, self.spacing, flows=flows)
            self.state.box, self.domain = box, replace(self.domain, box=box)
            self.halo.follow_box(self.domain)
            same = box.orders_images_as(self._listed, 2.0 * self.potential.cutoff)  # as rows of a new list have them
            self._stretch = box.least_stretch(self._listed) if same else 0.0

    def repeat(self, moves: Callable[[Engine], None]) -> None:
        """Do moves that depend on the engine's timestep alone, so that a GPU may launch them all as one graph."""
        moves(self)

    def update_forces(self) -> None:
        """Compute forces, energy and virial at the present positions; collective.

        Raises
        ------
        RunError
            A position or force is not finite, an atom flew away, atoms were lost, or the potential
            failed; on all ranks, naming step, atom and last restart.
        """
        refresh = None
        if self._must_rebuild():
            self._rebuild()
        else:
            with self.timers("halo"):
                refresh = self.halo.start_refresh(self.state)
        self._evaluate(refresh)

    def steps_ahead(self, limit: int) -> int:
        """How many steps, at most `limit`, `advance` should do next."""
        return min(limit, 1)

    def advance(self, integrator: Integrator, temperatures: Sequence[float]) -> None:
        """Do one step for each of the target temperatures (K); collective."""
        self.moving = True
        for temperature in temperatures:
            integrator.step(self, temperature)
            self.step += 1

    def to_host(self, *, lists: bool = False) -> None:
        """Bring `state` and `outputs` to the present step, with `lists` ghosts and neighbors too; collective."""

    # Sums for observables.

    def kinetic_energy(self) -> float:
        """Kinetic energy in eV of all ranks' atoms in `state`; collective."""
        with self.timers("integrate"):
            return float(total(self.comm.allreduce(self.host.kinetic_energy())))

    def momentum(self) -> NDArray[np.float64]:
        """(6,): momentum in u·Å/ps, and mass in u of the atoms free along x, y and z, of all ranks; collective."""
        return total(self.comm.allreduce(self.host.momentum()))

    # Internals.

    def _evaluate(self, refresh: Flight | None) -> None:
        """Compute forces, energy and virial, while ghosts may still be in flight."""
        before = self.timers.seconds["force"]
        self.state.forces[...] = 0.0
        self.outputs = Outputs(self.state.forces, force_spacing=FORCE_SPACING if self.deterministic else 0.0)
        half = (len(self.inner) + 1) // 2
        error = self._compute(self.inner[:half], refresh)
        if refresh:
            self._land(refresh)
        error = error or self._compute(self.outer)
        with self.timers("halo"):
            reduce = self.halo.start_reduce(self.state)
        error = error or self._compute(self.inner[half:], reduce)
        self._land(reduce)
        self._pace.note(self.timers.seconds["force"] - before, self.total_work)
        with self.timers("wait"):
            # Else the other ranks would go on without this rank's forces.
            agree(self.comm, error or too_large(self))

    def _compute(self, parts: list[NDArray[np.int32]], meanwhile: Flight | None = None) -> Exception | None:
        """Evaluate parts of the atoms, polling messages in between; returns the error, if any."""
        with self.timers("force"):
            for centers in parts:
                try:
                    self.potential.compute(self.state, self.neighbors, self.halo, self.outputs, centers)
                except Exception as caught:
                    return located(self, caught) if isinstance(caught, DphpcError) else caught
                if meanwhile:
                    meanwhile.poll()
        return None

    def _land(self, flight: Flight) -> None:
        with self.timers("halo"):
            flight.land()
        self.in_flight += flight.seconds, flight.blocked
        self.timers.move(flight.blocked, "halo", "wait")

    def _has_list(self) -> bool:
        return self._neighbors is not None

    def _must_rebuild(self) -> bool:
        if not self._has_list():
            return True
        with self.timers("neighbor"):
            moved2 = self.host.moved2()
            wild, some_are = self._agree_on_moves(float(moved2.max(initial=0.0)))
            if some_are:
                agree(self.comm, wild_atom(self, moved2) if wild else None)
            return self.moved2 >= self._slack**2

    @property
    def _slack(self) -> float:
        """Å that an atom may be away from its position in the neighbor list, strained with the box since.

        Two atoms within the cutoff were then within (cutoff + 2 slack)/stretch ≤ reach when the list was built.
        """
        shrunk = max(1.0 - self._stretch, 0.0)  # a box that has grown gives no more slack
        return max(0.5 * (self.skin - shrunk * self.reach), 0.0)

    def _agree_on_moves(self, moved2: float) -> tuple[bool, bool]:
        """Whether an atom of this rank, and of any rank, flew away, from Å² of this rank; sets `moved2` and `stop`."""
        wild = not moved2 < max(self.reach, 10.0 * self.skin) ** 2  # a NaN fails the comparison too
        flags = self.comm.allreduce(np.array([0.0 if wild else moved2, float(wild), self.asked_to_stop]), "max")
        self.moved2, self.stop = float(flags[0]), int(flags[2])
        return wild, bool(flags[1])

    def _rebuild(self) -> None:
        self._build()
        if self.balance and self.comm.size > 1 and self.rebuilds % BALANCE_EVERY == 0 and self._move_planes():
            self._build()
        self.rebuilds += 1

    def _build(self) -> None:
        """Send atoms to their owners, then build ghosts and neighbors."""
        with self.timers("halo"):
            self._deal()
            try:
                check_count(self.state, self.n_atoms, self.comm)
            except RunError as lost:
                raise located(self, lost) from None
        self._search()

    def _deal(self) -> None:
        """Send atoms to their owners and sort them."""
        migrate(self.state, self.domain, self.comm)
        sort_spatially(self.state, self.domain, SORT_CELL)

    def _search(self) -> None:
        """Build ghosts and neighbors of the local atoms."""
        self._neighbors = None  # frees the old list before the new one is made
        with self.timers("halo"):
            self._find_ghosts()
        with self.timers("neighbor"):
            with together(self.comm):
                self.n_pairs = self._find_neighbors()
            self._divide()

    def _find_ghosts(self) -> None:
        self.halo.build_ghosts(self.state, self.reach)

    def _find_neighbors(self) -> int:
        """Build the neighbor list; returns its length."""
        state = self.state
        self._neighbors = build_neighbors(state.positions, state.types, state.ids, state.n_local, self.reach)
        self.host.take_up()
        self.host.note_positions()
        self._listed, self._stretch = state.box, 1.0
        return self._neighbors.n_pairs

    def _divide(self) -> None:
        """Divide the local atoms into those that can be evaluated without ghosts of other ranks, and the rest."""
        state = self.state
        if self.comm.size == 1:  # no ghosts of other ranks: all atoms at once
            self.inner, self.outer = [], [np.arange(state.n_local, dtype=np.int32)]
            return
        outer = self.domain.outside(state.positions[: state.n_local], self.domain.interior(self.reach))
        centers = np.flatnonzero(~outer).astype(np.int32)
        n_parts = min(max(len(centers) // FEWEST, 1), PIECES)
        self.inner = [part for part in np.array_split(centers, n_parts) if len(part)]
        self.outer = [np.flatnonzero(outer).astype(np.int32)]

    @property
    def work(self) -> NDArray[np.float64]:
        """(n_local,) cost of each atom in units of the cost of a pair."""
        return np.diff(self.neighbors.offsets) + float(OWN_PAIRS)

    @property
    def total_work(self) -> float:
        """Cost of all local atoms in units of the cost of a pair."""
        return self.n_pairs + float(OWN_PAIRS) * self.state.n_local

    def _move_planes(self) -> bool:
        """Move planes to give all ranks equal work, if it is unequal; returns whether they moved."""
        with self.timers("neighbor"):
            slowness = self._pace.slowness(self.comm)
            if imbalance(self.total_work * slowness, self.comm) < UNBALANCED:
                return False
            self.to_host()
            box, positions = self.state.box, self.state.positions[: self.state.n_local]
            fractional = [box.fractional(positions, axis) for axis in range(3)]
            thinnest = (0.25 * self.reach / box.heights).tolist()
            self.domain = balanced(self.domain, fractional, self.work * slowness, thinnest, self.comm)
            self.halo = Halo(self.domain, self.comm)
            return True
