"""Velocity Verlet and what an ensemble adds to it; each reads as its algorithm.

State per atom: x (n, 3) Å, v (n, 3) Å/ps, f (n, 3) eV/Å, m (n,) u; Δt in ps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.exact_sum import no_sum
from dphpc.md.engine import Engine
from dphpc.ops.motion.contract import EVERYONE

Saved = dict[str, NDArray[np.float64]]


class Integrator(Protocol):
    """Moves an engine's atoms by one step, in some ensemble.

    `frozen` is the number of degrees of freedom that stay at rest (the three of the center of mass).  It is `dynamic`
    if the velocities are physical; else, as in a minimization, observables count the atoms as at rest.  It `moves_box`
    if its own steps change the box.
    """

    frozen: int
    moves_box: bool
    dynamic: bool

    @property
    def baths(self) -> Sequence[Thermostat]:
        """Its thermostats."""

    def step(self, engine: Engine, temperature: float) -> None:
        """One step of `engine.timestep`; `temperature` (K) is the target at its end."""

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

    @property
    def baths(self) -> Sequence[Thermostat]:
        """None."""
        return ()

    def step(self, engine: Engine, temperature: float) -> None:
        """v += ½Δt f/m;  x += Δt v;  f = f(x);  v += ½Δt f/m."""
        engine.repeat(_kick_drift_kick)

    def forget(self) -> None:
        """Do nothing, as nothing is known of the velocities."""

    def save(self) -> Saved:
        """No state."""
        return {}

    def load(self, saved: Saved) -> None:
        """Do nothing, as there is no state."""


class Thermostat(VelocityVerlet):
    """Velocity Verlet for all atoms, with a thermostat for them or for a group of them.

    Attributes
    ----------
    group
        The number of its group, or `EVERYONE`.
    bath_is_local
        Whether `bath_energy` is this rank's share only.
    splits_drift
        Whether it acts `amid` a step.
    scalars
        Its numbers that change with the steps.
    """

    group = EVERYONE
    bath_is_local = False
    splits_drift = False
    scalars = np.zeros(0)

    @property
    def baths(self) -> Sequence[Thermostat]:
        """Itself."""
        return (self,)

    def step(self, engine: Engine, temperature: float) -> None:
        """See `step_with`."""
        step_with(engine, [(self, temperature)])

    def before(self, engine: Engine, temperature: float) -> None:
        """What it does at the beginning of a step."""

    def amid(self, engine: Engine, temperature: float) -> None:
        """What it does between the halves of the drift."""

    def after(self, engine: Engine, temperature: float) -> None:
        """What it does at the end of a step."""

    def bath_energy(self) -> NDArray[np.float64]:
        """(3,) eV that it took from the atoms, so that total + bath is conserved, in the parts of `core.exact_sum`."""
        return no_sum()


def step_with(engine: Engine, targets: Sequence[tuple[Thermostat, float]]) -> None:
    """`before`;  v += ½Δt f/m;  x += ½Δt v;  `amid`;  x += ½Δt v;  f = f(x);  v += ½Δt f/m;  `after`.

    The thermostats, of different atoms, come with their target temperatures (K) at the end of the step.
    """
    for bath, temperature in targets:
        bath.before(engine, temperature)
    if any(bath.splits_drift for bath, _ in targets):
        engine.repeat(_kick_drift)
        for bath, temperature in targets:
            bath.amid(engine, temperature)
        engine.repeat(_drift_kick)
    else:
        engine.repeat(_kick_drift_kick)
    for bath, temperature in targets:
        bath.after(engine, temperature)


def _kick_drift_kick(engine: Engine) -> None:
    dt = engine.timestep
    engine.drift(dt, kick=0.5 * dt)
    engine.update_forces()
    engine.kick(0.5 * dt)


def _kick_drift(engine: Engine) -> None:
    engine.drift(0.5 * engine.timestep, kick=0.5 * engine.timestep)


def _drift_kick(engine: Engine) -> None:
    engine.drift(0.5 * engine.timestep)
    engine.update_forces()
    engine.kick(0.5 * engine.timestep)
