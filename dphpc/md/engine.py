"""The engine: atoms of one rank, their forces, and the elementary moves that integrators are made of.

A step of dynamics is `kick` and `drift` in the integrator's order with `update_forces` between them.
`update_forces` looks whether some atom of some rank has moved half the skin; only then do atoms
migrate, ghosts and neighbors get built anew, otherwise ghosts just follow their owners.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DphpcError, RunError
from dphpc.core.state import State
from dphpc.core.units import ACCELERATION, BOLTZMANN_EV_PER_K, KINETIC
from dphpc.ops.neighbors.contract import BuildNeighbors, Neighbors
from dphpc.ops.neighbors.native import build_neighbors
from dphpc.parallel.comm import Communicator, agree
from dphpc.parallel.domain import Domain
from dphpc.parallel.halo import Halo
from dphpc.parallel.migrate import check_count, migrate, sort_spatially
from dphpc.potential.contract import Outputs, Potential

PHASES = ("force", "neighbor", "halo", "integrate", "output")
SORT_CELL = 3.0
"""Å: atoms are kept in memory by cells of this size."""


class Timers:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside to `phase`."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


class Engine:
    """One rank's share of a run.

    Parameters
    ----------
    state
        Any atoms of the run; the first `update_forces` gives each to its owner.
    domain
        The brick that this rank owns.
    potential
        Gives energy and forces.
    masses
        (ntypes,) u.
    timestep
        Δt in ps.
    skin
        Å that the neighbor list reaches beyond the cutoff.

    Attributes
    ----------
    step, time
        Steps done since the run's first structure, and ps.
    energy, virial
        eV, of this rank's atoms, at the positions of the last `update_forces`.
    rebuilds
        How often neighbors were built.
    asked_to_stop
        Number of the signal that asked this rank to end the run, 0 if none did.
    stop
        What some rank was asked, agreed by all ranks in the last `update_forces`.
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
        build: BuildNeighbors = build_neighbors,
    ) -> None:
        self.state, self.domain, self.comm, self.potential = state, domain, comm, potential
        self.timestep, self.skin = timestep, skin
        self.reach = potential.cutoff + skin
        self.halo = Halo(domain, comm)
        self.timers = Timers()
        self.step, self.clock = 0, (0, 0.0)
        self.energy, self.virial = 0.0, np.zeros((3, 3))
        self.rebuilds = 0
        self.asked_to_stop, self.stop = 0, 0
        self.last_restart: str | None = None
        self.n_atoms = int(comm.allreduce(np.array([state.n_local], np.int64))[0])
        self._build = build
        self._masses = masses
        self._neighbors: Neighbors | None = None
        self._buffers = np.empty((2, 0, 3))
        self._kinetic: float | None = None
        self._allocate()

    @property
    def time(self) -> float:
        """ps; counted from `clock`, the last step at which the timestep changed and its time."""
        step, time = self.clock
        return time + (self.step - step) * self.timestep

    # The moves that integrators are made of.

    def kick(self, dt: float) -> None:
        """v += dt f/m."""
        with self.timers("integrate"):
            n = self.state.n_local
            np.multiply(self.state.forces[:n], (dt * self._inverse_mass)[:, None], out=self._work)
            self.state.velocities[:n] += self._work
            self._kinetic = None

    def drift(self, dt: float) -> None:
        """x += dt v."""
        with self.timers("integrate"):
            n = self.state.n_local
            np.multiply(self.state.velocities[:n], dt, out=self._work)
            self.state.positions[:n] += self._work

    def scale_velocities(self, factor: float) -> None:
        """v *= factor."""
        with self.timers("integrate"):
            self.state.velocities[: self.state.n_local] *= factor
            if self._kinetic is not None:
                self._kinetic *= factor**2

    def randomize_velocities(self, keep: float, noise: NDArray[np.float64]) -> None:
        """v = keep·v + noise, noise (n_local, 3) in Å/ps."""
        with self.timers("integrate"):
            velocities = self.state.velocities[: self.state.n_local]
            velocities *= keep
            velocities += noise
            self._kinetic = None

    def update_forces(self) -> None:
        """Forces, energy and virial at the present positions; collective.

        Raises
        ------
        RunError
            A position or force is not finite, an atom flew away, atoms were lost, or the potential
            failed; on all ranks, naming step, atom and last restart.
        """
        if self._must_rebuild():
            self._rebuild()
        else:
            with self.timers("halo"):
                self.halo.refresh_ghosts(self.state)
        error: Exception | None = None
        with self.timers("force"):
            try:
                self._compute()
            except Exception as caught:
                error = self._located(caught) if isinstance(caught, DphpcError) else caught
            # Without this the others would go on with forces that never came.
            agree(self.comm, error)
        with self.timers("halo"):
            self.halo.reduce_ghost_forces(self.state)

    # What integrators and observables ask for.

    def kinetic_energy(self) -> float:
        """eV, of all atoms; collective unless nothing but scaling happened since the last call."""
        if self._kinetic is None:
            with self.timers("integrate"):
                self._kinetic = float(self.comm.allreduce(np.array([self.local_kinetic_energy()]))[0])
        return self._kinetic

    def local_kinetic_energy(self) -> float:
        """eV, of this rank's atoms."""
        v = self.state.velocities[: self.state.n_local]
        return 0.5 * KINETIC * float(np.dot(np.einsum("ij,ij->i", v, v), self._mass))

    def local_kinetic_tensor(self) -> NDArray[np.float64]:
        """(3, 3) eV: Σ m v ⊗ v of this rank's atoms."""
        v = self.state.velocities[: self.state.n_local]
        np.multiply(v, self._mass[:, None], out=self._work)
        return KINETIC * (self._work.T @ v)

    def thermal_speed(self, temperature: float) -> NDArray[np.float64]:
        """(n_local,) Å/ps: √(kT/m), the spread of each velocity component."""
        return np.sqrt(BOLTZMANN_EV_PER_K * temperature * self._inverse_mass)

    def momentum(self) -> NDArray[np.float64]:
        """(4,): total momentum in u·Å/ps and total mass in u; collective."""
        v = self.state.velocities[: self.state.n_local]
        return self.comm.allreduce(np.append(self._mass @ v, self._mass.sum()))

    def remove_drift(self) -> None:
        """Set the center of mass at rest; collective."""
        momentum = self.momentum()
        self.state.velocities[: self.state.n_local] -= momentum[:3] / momentum[3]
        self._kinetic = None

    # How it is done.

    def _compute(self) -> None:
        self.state.forces[...] = 0.0
        outputs = Outputs(self.state.forces, 0.0, np.zeros((3, 3)))
        assert self._neighbors is not None
        self.potential.compute(self.state, self._neighbors, self.halo, outputs)
        self.energy, self.virial = outputs.energy, outputs.virial

    def _must_rebuild(self) -> bool:
        if self._neighbors is None:
            return True
        with self.timers("neighbor"):
            n = self.state.n_local
            np.subtract(self.state.positions[:n], self._built_at, out=self._work)
            moved2 = np.einsum("ij,ij->i", self._work, self._work)
            largest = float(moved2.max(initial=0.0))
            # A NaN fails the comparison too.
            wild = not largest < max(self.reach, 10.0 * self.skin) ** 2
            asked = self.asked_to_stop  # whether to end is agreed here: it costs one number more in this message
            flags = self.comm.allreduce(np.array([0.0 if wild else largest, float(wild), asked]), "max")
            self.stop = int(flags[2])
            if flags[1]:
                agree(self.comm, self._wild_atom(moved2) if wild else None)
            return bool(flags[0] >= (0.5 * self.skin) ** 2)

    def _rebuild(self) -> None:
        state = self.state
        with self.timers("halo"):
            migrate(state, self.domain, self.comm)
            try:
                check_count(state, self.n_atoms, self.comm)
            except RunError as lost:
                raise self._located(lost) from None
            sort_spatially(state, self.domain, SORT_CELL)
            self._neighbors = None  # frees the old list before the new one is made
            self.halo.build_ghosts(state, self.reach)
        with self.timers("neighbor"):
            error: Exception | None = None
            try:
                self._neighbors = self._build(state.positions, state.types, state.n_local, self.reach)
            except (DphpcError, MemoryError) as caught:
                error = caught
            agree(self.comm, error)
            self._allocate()
            self._built_at[...] = state.positions[: state.n_local]
        self.rebuilds += 1

    def _allocate(self) -> None:
        """Per-atom work arrays for the present atoms."""
        n = self.state.n_local
        if self._buffers.shape[1] < n:
            self._buffers = np.empty((2, n + n // 16, 3))
        self._work, self._built_at = self._buffers[:, :n]
        self._mass = self._masses[self.state.types[:n]]
        self._inverse_mass = ACCELERATION / self._mass

    def _wild_atom(self, moved2: NDArray[np.float64]) -> RunError:
        worst = int(np.argmax(np.where(np.isnan(moved2), np.inf, moved2)))
        atom = int(self.state.ids[worst])
        if np.isfinite(moved2[worst]):
            what = f"atom {atom} flew {np.sqrt(moved2[worst]):.3g} Å within a step or two"
        else:
            what = f"the position of atom {atom} is not a finite number"
        return self._located(RunError(what))

    def _located(self, error: DphpcError) -> RunError:
        """The error with step and restart file added."""
        where = f"step {self.step + 1}, {self.time + self.timestep:.6g} ps"
        where += f"; {error.where}" if error.where else ""
        remedy = error.remedy or "try a shorter timestep_fs; look for atoms that overlap or leave what the model knows"
        if self.last_restart:
            remedy += f"; the last good restart is {self.last_restart}"
        else:
            remedy += "; no restart file was written yet"
        located = RunError(error.what, where=where, expected=error.expected, remedy=remedy)
        located.agreed, located.speaks = error.agreed, error.speaks
        return located
