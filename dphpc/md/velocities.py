"""Initial velocities."""

from __future__ import annotations

from dphpc.core.units import BOLTZMANN_EV_PER_K
from dphpc.md.engine import Engine
from dphpc.md.observables import degrees_of_freedom


def draw_velocities(engine: Engine, temperature: float, seed: int) -> None:
    """Maxwell–Boltzmann velocities at exactly `temperature` (K), center of mass at rest; collective.

    Beside fixed atoms, which are at rest, the momentum of the others stays as drawn.  An atom's
    velocity depends on seed and id, not on the rank that holds it.
    """
    engine.host.draw_velocities(temperature, seed)
    velocities = engine.state.velocities[: engine.state.n_local]
    if engine.n_atoms > 1 and not engine.n_fixed:
        momentum = engine.momentum()
        velocities -= momentum[:3] / momentum[3]
    kinetic = engine.kinetic_energy()
    target = 0.5 * degrees_of_freedom(engine.n_atoms, 3, engine.n_fixed) * BOLTZMANN_EV_PER_K * temperature
    if kinetic > 0.0:
        engine.host.scale_velocities((target / kinetic) ** 0.5)
