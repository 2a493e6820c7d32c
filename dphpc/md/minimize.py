"""Energy minimization, by the same moves of an engine as dynamics.

FIRE 2.0: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), as corrected by Guénolé et al., Comput. Mater. Sci. 175,
109584 (2020), with LAMMPS' default parameters.
"""

from __future__ import annotations

import math

import numpy as np

from dphpc.core.exact_sum import total
from dphpc.core.units import ACCELERATION
from dphpc.md.engine import Engine
from dphpc.md.integrators import Saved
from dphpc.md.relax import BoxDescent

DELAY = 20
"""Steps downhill before Δt grows; also the number of first steps in which it does not shrink."""

GROW, SHRINK = 1.1, 0.5
"""Factors by which Δt grows and shrinks."""

LONGEST, SHORTEST = 10.0, 0.02
"""Limits of Δt, in timesteps of the run."""

ALPHA, ALPHA_SHRINK = 0.25, 0.99
"""Initial α, the fraction of the velocity turned along the forces in a step, and its factor for each downhill step."""


class Fire:
    """The FIRE minimizer: atoms move downhill ever faster and more along the forces; all stop when they go uphill.

    With `box` the box is one more coordinate that moves so, and the enthalpy E + P₀V is minimized.

    All atoms have the mean mass m.  The minimum does not depend on the masses, and with equal ones the bonds of
    hydrogen are less stiff compared with slow motions (192 atoms of water take 205 steps to 0.05 eV/Å, 323 with their
    own masses).  Velocities are the minimizer's own, and zero when it has converged.

    Parameters
    ----------
    tolerance
        eV/Å: it has converged when no atom's force exceeds this.
    max_move
        Å: largest displacement of an atom in a step, and of neighbors by the strain of the box.
    box
        The box's coordinates, if it moves.
    """

    frozen = 3
    dynamic = False
    baths = ()

    def __init__(self, tolerance: float, max_move: float, box: BoxDescent | None = None) -> None:
        self.tolerance, self.max_move = tolerance, max_move
        self.box, self.moves_box = box, box is not None
        self.pace, self.alpha = 1.0, ALPHA  # Δt in timesteps of the run
        self.steps, self.downhill = 0, 0  # all steps, and those since the last uphill one
        self.moved = 0.0  # ps: Δt of the last move
        self.force = math.nan  # eV/Å: the largest
        self.mass = math.nan  # u: of each atom

    def step(self, engine: Engine, temperature: float) -> None:
        """F·v < 0: x −= ½Δt v, v = 0;  else v += Δt F/m, v = (1 − α) v + α |v| F/|F|, x += Δt v;  F = F(x)."""
        engine.clock = engine.step + 1, engine.time  # time does not pass
        with engine.timers("integrate"):
            sums = total(engine.comm.allreduce(engine.moves.descent_sums()))
            power, v2, f2 = (sums + self.box.sums() if self.box else sums).tolist()
        self.steps += 1
        if power < 0.0:
            self._turn_back(engine)
        else:
            self._descend(engine, math.sqrt(v2 / f2) if f2 else 0.0)
        engine.update_forces()
        self._look(engine)

    def begin(self, engine: Engine) -> None:
        """Stop all atoms and measure their forces, before the first step; collective."""
        engine.to_host()
        self.mass = float(engine.momentum()[3:].sum()) / (3 * engine.n_atoms - sum(engine.fixed.along))
        engine.host.scale_velocities(0.0)
        engine.moves.steer(0.0, 0.0)
        if self.box:
            self.box.begin(engine)
        self._look(engine)

    @property
    def converged(self) -> bool:
        """Whether no atom's force, and no free component of the stress, exceeds its tolerance."""
        return self.force <= self.tolerance and (self.box is None or self.box.converged)

    def outcome(self, engine: Engine) -> str:
        """A line for the screen at its end; collective."""
        energy = float(total(engine.comm.allreduce(engine.outputs.energy_parts)))
        values, wanted = f"after {self.steps} steps: E_pot {energy:.6f} eV, F_max {self.force:.4g} eV/Å", ""
        if self.box:
            wanted = f" and {self.box.tolerance:g} bar"
            lengths = " × ".join(f"{length:.6g}" for length in np.linalg.norm(engine.state.box.matrix, axis=1))
            values += f", stress off by {self.box.stress:.4g} bar, box {lengths} Å"
        if self.converged:
            return f"minimized: converged {values}"
        return f"warning:   the minimization has not converged {values}, not {self.tolerance:g} eV/Å{wanted}"

    def forget(self) -> None:
        """Do nothing, as velocities and forces are measured in each step."""

    def save(self) -> Saved:
        """All numbers of the minimizer."""
        numbers = self.pace, self.alpha, self.steps, self.downhill, self.moved, self.force, self.mass
        return {"fire": np.array(numbers, np.float64)} | ({"box": self.box.save()} if self.box else {})

    def load(self, saved: Saved) -> None:
        """Restore all numbers of the minimizer."""
        self.pace, self.alpha, steps, downhill, self.moved, self.force, self.mass = saved["fire"].tolist()
        self.steps, self.downhill = int(steps), int(downhill)
        if self.box:
            self.box.load(saved["box"])

    def _turn_back(self, engine: Engine) -> None:
        self._drift(engine, -0.5 * self.moved)
        with engine.timers("integrate"):
            self._steer(engine, 0.0, 0.0)
        self.alpha, self.downhill = ALPHA, 0
        if self.steps > DELAY:
            self.pace = max(SHRINK * self.pace, SHORTEST)

    def _descend(self, engine: Engine, turn: float) -> None:
        """Turn velocities along the forces and move the atoms; `turn` is |v|/|F|."""
        self.downhill += 1
        if self.downhill > DELAY:
            self.pace, self.alpha = min(GROW * self.pace, LONGEST), ALPHA_SHRINK * self.alpha
        dt, keep = self.pace * engine.timestep, 1.0 - self.alpha
        with engine.timers("integrate"):
            self._steer(engine, keep, keep * dt * ACCELERATION / self.mass + self.alpha * turn)
            speed = max(self._largest(engine)[0], self.box.speed if self.box else 0.0)
        self.moved = min(dt, self.max_move / speed) if speed else dt
        self._drift(engine, self.moved)

    def _steer(self, engine: Engine, keep: float, push: float) -> None:
        engine.moves.steer(keep, push)
        if self.box:
            self.box.steer(keep, push)

    def _drift(self, engine: Engine, dt: float) -> None:
        engine.drift(dt)
        if self.box:
            self.box.drift(engine, dt)

    def _look(self, engine: Engine) -> None:
        with engine.timers("integrate"):
            self.force = self._largest(engine)[1]
            if self.box:
                self.box.look(engine)
            if self.converged:
                self._steer(engine, 0.0, 0.0)

    @staticmethod
    def _largest(engine: Engine) -> list[float]:
        """The largest speed (Å/ps) and the largest force (eV/Å) of all ranks' atoms."""
        return np.sqrt(engine.comm.allreduce(engine.moves.largest_squares(), "max")).tolist()
