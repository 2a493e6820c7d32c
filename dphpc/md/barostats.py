"""Barostats of the isothermal-isobaric ensemble (NPT), combined with any thermostat.

Between two moves of the barostat the thermostat's integrator does its steps in a constant box.  A move also updates the
forces, so that positions, box and forces written after it belong together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.core.errors import AstrayError
from dphpc.core.exact_sum import exact_sum
from dphpc.core.random import Stream, generator
from dphpc.core.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR
from dphpc.md.engine import Engine
from dphpc.md.observables import pressure_volume
from dphpc.md.strain import ISOTROPIC, Freedom
from dphpc.md.trouble import located
from dphpc.parallel.comm import agree

LARGEST_CHANGE = 0.2
"""Largest relative change of the volume, or of any distance, in one move; a larger one is far from the target."""

STEEPEST = 0.25
"""Least height of a box over the length of its vector, to which free angles may lead; 1 where it is upright.

A box that leans is flipped back long before; one that is less upright has become long and thin.
"""


class CellRescaling:
    """Stochastic cell rescaling; Bernetti, Bussi, J. Chem. Phys. 153, 114107 (2020).

    A coordinate q of the box takes an overdamped step, q' = q + μ f Δt + √(2 μ kT Δt) ξ, in the free energy F =
    E + P₀V − kT ln λ, λ = √V, at constant fractional coordinates and momenta times lengths: f = −∂F/∂q, where the
    pressure is that of observables.  For the volume, which the directions that move share equally, q = λ and μ = β/4τ,
    the same everywhere; then V has the density e^(−(E + P₀V)/kT).

    If the shape is free, half of the moves, chosen at random, change it at constant volume instead: q is a traceless
    strain (`strain.Freedom`; after Del Tatto et al., Appl. Sci. 12, 1139 (2022)), with μ = β/3Vτ and f = V (P − P₀),
    of which only the part that does work on the free strains counts.  Where angles are free, the box is distributed as
    if it could have any orientation: the density e^(−(E + P₀V)/kT) is that of V and of the invariant measure of shapes.

    The directions may have different pressures P₀.  Then no enthalpy exists, as the work depends on the path, and the
    steps sample a steady state with these mean pressures.

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
    freedom
        How the box may move.
    """

    def __init__(
        self, damping: float, compressibility: float, interval: float, seed: int, freedom: Freedom = ISOTROPIC
    ) -> None:
        self.mobility, self.interval, self.seed, self.freedom = compressibility / damping, interval, seed, freedom

    def move(self, engine: Engine, temperature: float, pressure: Sequence[float]) -> Doubles:
        """Move the box, and the atoms with it, towards pressures (3,) in bar at a temperature in K; collective.

        Returns
        -------
        (3,) eV taken from the atoms, in the parts of `core.exact_sum`.  It follows from the effective energy, which is
        F less the heat −kT ln(M(q→q')/M(q'→q)), M being the step's transition probabilities: a drift of total + bath is
        the error of the move.

        Raises
        ------
        RunError
            The box would change by more than `LARGEST_CHANGE`, or become more skewed than `STEEPEST`, or as in
            `Engine.update_forces`; on all ranks.
        """
        kT, target = BOLTZMANN_EV_PER_K * temperature, np.diag(pressure) / EV_PER_A3_IN_BAR
        random = generator(self.seed, Stream.BAROSTAT, engine.step)
        engine.moving = False
        # At random: no count of moves is kept.
        shape = self.freedom.has_shapes and bool(random.random() < 0.5)
        given = (self._move_shape if shape else self._move_volume)(engine, kT, target, random)
        return exact_sum(np.array([given]))

    def _move_volume(self, engine: Engine, kT: float, target: Doubles, random: np.random.Generator) -> float:
        moving, pace = self.freedom.moving, 0.25 * self.mobility * self.interval
        wanted = float(target.diagonal()[moving].mean())
        old, force = engine.state.box.volume, self.volume_force(engine, kT, target)
        noise = np.sqrt(2.0 * pace * kT) * random.standard_normal()
        step = engine.comm.bcast(pace * force + noise)
        ratio = max(1.0 + step / np.sqrt(old), 0.0) ** 2
        _refuse_leap(engine, np.array([ratio - 1.0]), "the volume", target.diagonal()[moving])
        strain = np.zeros((3, 3))
        strain[moving, moving] = np.log(ratio) / len(moving)
        self._strain(engine, strain)
        new, new_force = engine.state.box.volume, self.volume_force(engine, kT, target)
        given = 0.5 * (force + new_force) * step + 0.25 * pace * (new_force**2 - force**2)
        return float(given + wanted * (new - old) - 0.5 * kT * np.log(new / old))

    def _move_shape(self, engine: Engine, kT: float, target: Doubles, random: np.random.Generator) -> float:
        volume, force = engine.state.box.volume, self.shape_force(engine, target)
        pace = self.mobility * self.interval / (3.0 * volume)
        noise = self.freedom.part(random.standard_normal((3, 3)), isochoric=True)
        step = engine.comm.bcast(pace * force + np.sqrt(2.0 * pace * kT) * noise)
        _refuse_leap(engine, np.exp(np.linalg.eigvalsh(step)) - 1.0, "a length", target.diagonal()[self.freedom.moving])
        turn = self._strain(engine, step)
        back, new_force = turn @ step @ turn.T, self.shape_force(engine, target)  # the step as the new frame has it
        given = 0.5 * ((force * step).sum() + (new_force * back).sum())
        given += 0.25 * pace * ((new_force**2).sum() - (force**2).sum())
        return float(given + 0.5 * volume * (target * (step + back)).sum())

    def _strain(self, engine: Engine, strain: Doubles) -> Doubles:
        """Strain box and atoms, and update forces; returns the rotation of `Freedom.strained`; collective."""
        matrix, turn = engine.comm.bcast(self.freedom.strained(engine.state.box.matrix, strain))
        engine.reshape_box(matrix, flips=self.freedom.tilts)
        if self.freedom.tilts:
            _refuse_skew(engine)
        engine.update_forces()
        return np.asarray(turn, np.float64)

    def volume_force(self, engine: Engine, kT: float, target: Doubles) -> float:
        """f = 2λ (P − P₀) + kT/λ for λ = √V, in eV/Å^(3/2), of means over the directions that move; collective.

        The target (3, 3) is in eV/Å³.
        """
        box, moving = engine.state.box, self.freedom.moving
        pressure = self.freedom.seen(box, pressure_volume(engine)) / box.volume - target
        root = np.sqrt(box.volume)
        return float(2.0 * root * pressure.diagonal()[moving].mean() + kT / root)

    def shape_force(self, engine: Engine, target: Doubles) -> Doubles:
        """(3, 3) f = V (P − P₀) for strains of constant volume, in eV; the target (3, 3) is in eV/Å³; collective."""
        box = engine.state.box
        return self.freedom.part(self.freedom.seen(box, pressure_volume(engine)) - box.volume * target, isochoric=True)


def _refuse_leap(engine: Engine, changes: Doubles, what: str, targets: Doubles) -> None:
    """Raise if a relative change is too large, where the directions that move have these targets; collective."""
    if (np.abs(changes) < LARGEST_CHANGE).all():  # a NaN fails the comparison too
        return
    worst = 100.0 * changes[np.argmax(np.abs(changes))]
    bar = ", ".join(dict.fromkeys(f"{p:g}" for p in targets * EV_PER_A3_IN_BAR))
    error = AstrayError(
        f"the barostat would change {what} by {worst:.3g} % in one move, to reach {bar} bar",
        expected=f"less than {100.0 * LARGEST_CHANGE:g} %",
        remedy="a smaller compressibility_per_bar, a longer pressure_damping_fs, or an nvt stage first",
    )
    agree(engine.comm, located(engine, error))


def _refuse_skew(engine: Engine) -> None:
    """Raise if the box has become too skewed, as that of a liquid would; collective."""
    box = engine.state.box
    upright = box.heights / np.linalg.norm(box.matrix, axis=1)
    axis = int(np.argmin(upright))
    if upright[axis] >= STEEPEST:
        return
    angle, least = np.degrees(np.arcsin([upright[axis], STEEPEST]))
    error = AstrayError(
        f"box vector {'abc'[axis]} has come within {angle:.3g}° of the plane of the others",
        expected=f"at least {least:.3g}°, as a crystal keeps that bears its stress",
        remedy="coupling: anisotropic for what does not resist shear, or pressures that differ less; if it has been "
        "as skewed from the beginning, shorter vectors of the same crystal",
    )
    agree(engine.comm, located(engine, error))
