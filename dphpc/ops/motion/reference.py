"""Moves on the host, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc.core.exact_sum import exact_sum, round_to, total
from dphpc.core.random import Stream, normals
from dphpc.core.state import State
from dphpc.core.units import ACCELERATION, BOLTZMANN_EV_PER_K, KINETIC
from dphpc.ops.motion.contract import Account, Bath, Combine, Floats


class HostMoves:
    """See `contract.Moves`.

    Parameters
    ----------
    masses
        (ntypes,) u.
    spacing
        Å, of which displacements are whole multiples; 0 for as they come.
    """

    def __init__(self, state: State, masses: Floats, spacing: float) -> None:
        self._state, self._masses, self._spacing = state, masses, spacing
        self._buffers = np.empty((2, 0, 3))
        self.take_up()

    def take_up(self) -> None:
        """Per-atom arrays for the atoms that the state has now."""
        n = self._state.n_local
        if self._buffers.shape[1] < n:
            self._buffers = np.empty((2, n + n // 16, 3))
        self._work, self._built_at = self._buffers[:, :n]
        self._mass = self._masses[self._state.types[:n]]
        self._inverse_mass = ACCELERATION / self._mass

    @property
    def _velocities(self) -> Floats:
        return self._state.velocities[: self._state.n_local]

    def kick(self, dt: float) -> None:
        """See `contract.Moves.kick`."""
        forces = self._state.forces[: self._state.n_local]
        np.multiply(forces, (dt * self._inverse_mass)[:, None], out=self._work)
        velocities = self._velocities
        velocities += self._work

    def drift(self, dt: float) -> None:
        """See `contract.Moves.drift`."""
        np.multiply(self._velocities, dt, out=self._work)
        if self._spacing:
            # Rounded before it is added: then the sum is exact, in whichever image the atom stands.
            round_to(self._work, self._spacing, out=self._work)
        self._state.positions[: self._state.n_local] += self._work

    def scale_velocities(self, factor: float) -> None:
        """v *= factor."""
        velocities = self._velocities
        velocities *= factor

    def rescale(self, bath: Bath, inputs: Floats, combine: Combine, *, measured: bool) -> None:
        """See `contract.Moves.rescale`."""
        kinetic = float(total(combine(self.kinetic_energy()))) if measured else np.nan
        self.scale_velocities(bath.respond(kinetic, inputs))

    def randomize_velocities(self, account: Account, keep: float, temperature: float, seed: int, step: int) -> None:
        """See `contract.Moves.randomize_velocities`."""
        before = self.kinetic_energy()
        noise = normals(seed, Stream.LANGEVIN, step, self._state.ids[: self._state.n_local])
        noise *= (np.sqrt(1.0 - keep * keep) * self.thermal_speed(temperature))[:, None]
        velocities = self._velocities
        velocities *= keep
        velocities += noise
        account.scalars += before - self.kinetic_energy()

    def kinetic_energy(self) -> Floats:
        """(3,) eV, of these atoms, in parts."""
        v = self._velocities
        np.multiply(v, v, out=self._work)
        return exact_sum(0.5 * KINETIC * self._mass * (self._work[:, 0] + self._work[:, 1] + self._work[:, 2]))

    def kinetic_tensor(self) -> Floats:
        """See `contract.Moves.kinetic_tensor`."""
        v = self._velocities
        np.multiply(v, (KINETIC * self._mass)[:, None], out=self._work)
        return np.stack([exact_sum(self._work * v[:, axis, None]) for axis in range(3)], axis=1)

    def thermal_speed(self, temperature: float) -> Floats:
        """(n_local,) Å/ps: √(kT/m), the spread of each velocity component."""
        return np.sqrt(BOLTZMANN_EV_PER_K * temperature * self._inverse_mass)

    def momentum(self) -> Floats:
        """(3, 4): momentum in u·Å/ps and mass in u of these atoms, in parts."""
        np.multiply(self._velocities, self._mass[:, None], out=self._work)
        return np.concatenate((exact_sum(self._work), exact_sum(self._mass[:, None])), axis=1)

    # How far atoms are from where the neighbor list found them.

    def note_positions(self) -> None:
        """The neighbor list is of the present positions."""
        self._built_at[...] = self._state.positions[: self._state.n_local]

    def moved2(self) -> NDArray[np.float64]:
        """(n_local,) Å²: squared displacement since `note_positions`."""
        np.subtract(self._state.positions[: self._state.n_local], self._built_at, out=self._work)
        return np.einsum("ij,ij->i", self._work, self._work)
