"""Initial velocities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc.core.exact_sum import exact_sum
from dphpc.core.units import BOLTZMANN_EV_PER_K
from dphpc.md.engine import Engine
from dphpc.md.observables import degrees_of_freedom


def draw_velocities(engine: Engine, temperature: float, seed: int) -> None:
    """Draw Maxwell–Boltzmann velocities of exactly `temperature` (K), with the center of mass at rest; collective.

    In directions in which atoms are fixed, and at rest, the momentum of the others is left as drawn.  An atom's
    velocity depends on seed and id, not on the rank that holds it.
    """
    engine.host.draw_velocities(temperature, seed)
    _rest(engine)
    kinetic = engine.kinetic_energy()
    target = 0.5 * degrees_of_freedom(engine.n_atoms, 3, engine.fixed) * BOLTZMANN_EV_PER_K * temperature
    if kinetic > 0.0:
        engine.host.scale_velocities((target / kinetic) ** 0.5)


def stop_drift(engine: Engine) -> NDArray[np.float64]:
    """Bring the center of mass to rest in the directions in which no atom is fixed; collective.

    Returns
    -------
    (3,) kinetic energy in eV that the atoms lost, in the parts of `core.exact_sum`.
    """
    engine.to_host()
    before = engine.kinetic_energy()
    _rest(engine)
    engine.moves.put_velocities(engine.state.velocities[: engine.state.n_local])
    return exact_sum(np.array([before - engine.kinetic_energy()]))


def _rest(engine: Engine) -> None:
    momentum, mass = engine.momentum().reshape(2, 3)
    for axis, n_fixed in enumerate(engine.fixed.along):
        if engine.n_atoms > 1 and not n_fixed:
            engine.state.velocities[: engine.state.n_local, axis] -= momentum[axis] / mass[axis]
