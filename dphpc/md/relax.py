"""The box in a minimization: strains that descend with the atoms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.core.units import EV_PER_A3_IN_BAR
from dphpc.md.engine import Engine
from dphpc.md.observables import virial
from dphpc.md.strain import Freedom

LEVER = 0.3
"""ℓ in mean distances of atoms, with which a box is about as stiff as the bonds."""


class BoxDescent:
    """The box's coordinates in a minimizer: y = c S, for strains S of the box, with c = √N ℓ.

    N atoms that a strain moves by ℓ S each are one coordinate as heavy as one of them.  The force on y is V (P − P₀)/c,
    of which only the part that does work on the free strains counts.

    Parameters
    ----------
    freedom
        How the box may move.
    pressure
        (3,) P₀ along x, y and z in bar.
    tolerance
        bar: it has converged when no free component of the pressure tensor is farther from P₀.
    """

    def __init__(self, freedom: Freedom, pressure: Sequence[float], tolerance: float) -> None:
        self.freedom, self.tolerance = freedom, tolerance
        self.target = np.diag(pressure) / EV_PER_A3_IN_BAR
        self.excess = np.zeros((3, 3))  # eV/Å³: P − P₀
        self.force, self.velocity = np.zeros((3, 3)), np.zeros((3, 3))  # on and of y, eV/Å and Å/ps
        self.spacing, self.scale = 0.0, 1.0  # Å: mean distance of atoms at the beginning, and c

    def begin(self, engine: Engine) -> None:
        """Stop the box, before the first step."""
        self.spacing = (engine.state.box.volume / engine.n_atoms) ** (1.0 / 3.0)
        self.scale = float(np.sqrt(engine.n_atoms)) * LEVER * self.spacing
        self.velocity[...] = 0.0

    def look(self, engine: Engine) -> None:
        """Measure the pressure of the present forces; collective."""
        box = engine.state.box
        pressure = self.freedom.seen(box, virial(engine)) / box.volume
        self.excess = self.freedom.part(pressure - self.target)
        self.force = self.excess * (box.volume / self.scale)

    @property
    def stress(self) -> float:
        """bar: how far the pressure tensor is off, by its worst free component."""
        return float(np.abs(self.excess).max()) * EV_PER_A3_IN_BAR

    @property
    def converged(self) -> bool:
        """Whether the pressure is as wanted."""
        return self.stress <= self.tolerance

    def sums(self) -> Doubles:
        """(3,): f·v, v² and f² of y, to be added to those of the atoms."""
        f, v = self.force, self.velocity
        return np.array([(f * v).sum(), (v * v).sum(), (f * f).sum()])

    def steer(self, keep: float, push: float) -> None:
        """v = keep·v + push·f, of y."""
        self.velocity = keep * self.velocity + push * self.force

    @property
    def speed(self) -> float:
        """Å/ps: how fast neighbors part at most."""
        return float(np.linalg.norm(self.velocity)) / self.scale * self.spacing

    def drift(self, engine: Engine, dt: float) -> None:
        """y += dt v, with the box and the atoms in it; collective."""
        matrix, turn = engine.comm.bcast(
            self.freedom.strained(engine.state.box.matrix, self.velocity * (dt / self.scale))
        )
        engine.reshape_box(matrix)
        self.velocity = turn @ self.velocity @ turn.T

    def save(self) -> Doubles:
        """All numbers that change."""
        return np.concatenate(
            ([self.spacing, self.scale], self.velocity.ravel(), self.excess.ravel(), self.force.ravel())
        )

    def load(self, saved: Doubles) -> None:
        """Restore all numbers that change."""
        self.spacing, self.scale = saved[:2].tolist()
        self.velocity, self.excess, self.force = saved[2:].reshape(3, 3, 3).copy()
