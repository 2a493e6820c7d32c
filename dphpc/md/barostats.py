"""Barostats of the isothermal-isobaric ensemble (NPT), combined with any thermostat.

Between two moves of the barostat the thermostat's integrator does its steps in a constant box.  A move also updates the
forces, so that positions, box and forces written after it belong together.
"""

from __future__ import annotations

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.core.errors import AstrayError
from dphpc.core.exact_sum import exact_sum
from dphpc.core.random import Stream, generator
from dphpc.core.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR
from dphpc.md.engine import Engine
from dphpc.md.observables import mechanics
from dphpc.md.trouble import located
from dphpc.parallel.comm import agree

LARGEST_CHANGE = 0.2
"""Largest relative change of the volume, or of a length, in one move; a larger one is far from the target pressure."""


class CellRescaling:
    """Stochastic cell rescaling; Bernetti, Bussi, J. Chem. Phys. 153, 114107 (2020).

    A coordinate q of the box takes an overdamped step, q' = q + μ f Δt + √(2 μ kT Δt) ξ, in the free energy F =
    E + P₀V − kT ln λ, λ = √V, at constant fractional coordinates and momenta times lengths: f = −∂F/∂q, where the
    pressure is that of observables.  For the volume q = λ and μ = β/4τ, the same everywhere; then V has the density
    e^(−(E + P₀V)/kT).

    With `anisotropic` half of the moves, chosen at random, change the shape at constant volume and angles instead: q
    are the logarithms of the box vectors' lengths, whose sum is constant (after Del Tatto et al., Appl. Sci. 12, 1139
    (2022)), with μ = β/3Vτ and f = V (P_ii − P).  There P_ii = (h P h⁻¹)_ii, with the box vectors as rows of h: the
    component of the pressure tensor along box vector i and the normal of its face.

    Parameters
    ----------
    damping
        τ in ps.
    compressibility
        β in Å³/eV; together with τ it sets only how fast the box moves, not the ensemble.
    interval
        Δt in ps, the mean time between two moves of the same kind.
    seed
        Seed of the random numbers, which depend on the step too.
    """

    def __init__(
        self, damping: float, compressibility: float, interval: float, seed: int, *, anisotropic: bool = False
    ) -> None:
        self.damping, self.compressibility, self.interval = damping, compressibility, interval
        self.seed, self.anisotropic = seed, anisotropic

    def move(self, engine: Engine, temperature: float, pressure: float) -> Doubles:
        """Move the box, and the atoms with it, towards a pressure (bar) at a temperature (K); collective.

        Returns
        -------
        (3,) eV taken from the atoms, in the parts of `core.exact_sum`.  It follows from the effective energy, which is
        F less the heat −kT ln(M(q→q')/M(q'→q)), M being the step's transition probabilities: a drift of total + bath is
        the error of the move.

        Raises
        ------
        RunError
            The box would change by more than `LARGEST_CHANGE`, or as in `Engine.update_forces`; on all ranks.
        """
        kT, target = BOLTZMANN_EV_PER_K * temperature, pressure / EV_PER_A3_IN_BAR
        random = generator(self.seed, Stream.BAROSTAT, engine.step)
        shape = self.anisotropic and bool(random.random() < 0.5)  # at random: no count of moves is kept
        old, force = engine.state.box.volume, _shape_force(engine) if shape else _volume_force(engine, kT, target)
        pace = self.compressibility * self.interval / self.damping
        pace *= 1.0 / (3.0 * old) if shape else 0.25
        noise = random.standard_normal(len(force))
        if shape:
            noise -= noise.mean()
        step = engine.comm.bcast(pace * force + np.sqrt(2.0 * pace * kT) * noise)
        factors = np.exp(step) if shape else np.full(3, max(1.0 + step[0] / np.sqrt(old), 0.0) ** (2.0 / 3.0))
        engine.moving = False
        _refuse_leap(engine, factors - 1.0 if shape else factors[:1] ** 3 - 1.0, pressure)
        engine.rescale_box(factors)
        engine.update_forces()
        new, new_force = engine.state.box.volume, _shape_force(engine) if shape else _volume_force(engine, kT, target)
        given = 0.5 * (force + new_force) @ step + 0.25 * pace * (new_force @ new_force - force @ force)
        given += target * (new - old) - 0.5 * kT * np.log(new / old)
        return exact_sum(np.array([given]))


def _volume_force(engine: Engine, kT: float, target: float) -> Doubles:
    """(1,) f = 2λ (P − P₀) + kT/λ for λ = √V, in eV/Å^(3/2); the target P₀ is in eV/Å³; collective."""
    _, kinetic, virial = mechanics(engine)
    volume = engine.state.box.volume
    pressure = float(np.trace(kinetic + virial)) / (3.0 * volume)
    return np.array([2.0 * np.sqrt(volume) * (pressure - target) + kT / np.sqrt(volume)])


def _shape_force(engine: Engine) -> Doubles:
    """(3,) f = V (P_ii − P) for the logarithms of the box vectors' lengths, in eV; collective."""
    _, kinetic, virial = mechanics(engine)
    box = engine.state.box
    along = np.diag(box.matrix @ (kinetic + virial) @ box.inverse)
    return np.asarray(along - along.mean(), np.float64)


def _refuse_leap(engine: Engine, changes: Doubles, pressure: float) -> None:
    """Raise if a relative change of the volume (1,), or of the lengths (3,), is too large; collective."""
    if (np.abs(changes) < LARGEST_CHANGE).all():  # a NaN fails the comparison too
        return
    worst, what = 100.0 * changes[np.argmax(np.abs(changes))], "the volume" if len(changes) == 1 else "a length"
    error = AstrayError(
        f"the barostat would change {what} by {worst:.3g} % in one move, to reach {pressure:g} bar",
        expected=f"less than {100.0 * LARGEST_CHANGE:g} %",
        remedy="a smaller compressibility_per_bar, a longer pressure_damping_fs, or an nvt stage first",
    )
    agree(engine.comm, located(engine, error))
