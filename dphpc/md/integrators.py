"""Velocity Verlet and what an ensemble adds to it; each reads as its algorithm.

State per atom: x (n, 3) Å, v (n, 3) Å/ps, f (n, 3) eV/Å, m (n,) u; Δt in ps.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.exact_sum import no_sum
from dphpc.md.engine import Engine

Saved = dict[str, NDArray[np.float64]]


class Integrator(Protocol):
    """Moves an engine's atoms by one step, in some ensemble.

    `frozen` is the number of degrees of freedom that stay at rest (the three of the center of mass); `scalars` are its
    numbers that change with the steps.  It is `dynamic` if the velocities are physical; else, as in a minimization,
    observables count the atoms as at rest.  It `moves_box` if its own steps change the box.
    """

    frozen: int
    moves_box: bool
    dynamic: bool
    scalars: NDArray[np.float64]

    def step(self, engine: Engine, temperature: float) -> None:
        """One step of `engine.timestep`; `temperature` (K) is the target at its end."""

    def bath_energy(self) -> NDArray[np.float64]:
        """(3,) eV that the thermostat took from the atoms, so that total + bath is conserved.

        It is in the parts of `core.exact_sum`; with `bath_is_local` it is this rank's share only.
        """

    bath_is_local: bool

    def forget(self) -> None:
        """Discard what is known of the velocities, as something else has changed them."""

    def save(self) -> Saved:
        """The state that a restart needs."""

    def load(self, saved: Saved) -> None:
        """Restore a saved state."""


class VelocityVerlet:
    """The microcanonical ensemble (NVE); Swope et al., J. Chem. Phys. 76, 637 (1982)."""

    frozen = 3
    moves_box = False
    dynamic = True
    bath_is_local = False
    scalars = np.zeros(0)

    def step(self, engine: Engine, temperature: float) -> None:
        """v += ½Δt f/m;  x += Δt v;  f = f(x);  v += ½Δt f/m."""
        engine.repeat(_kick_drift_kick)

    def bath_energy(self) -> NDArray[np.float64]:
        """Zero: there is no thermostat."""
        return no_sum()

    def forget(self) -> None:
        """Do nothing, as nothing is known of the velocities."""

    def save(self) -> Saved:
        """No state."""
        return {}

    def load(self, saved: Saved) -> None:
        """Do nothing, as there is no state."""


def _kick_drift_kick(engine: Engine) -> None:
    dt = engine.timestep
    engine.drift(dt, kick=0.5 * dt)
    engine.update_forces()
    engine.kick(0.5 * dt)
