"""Boxes that are deformed at a given rate, as in a tensile test or under shear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.core.box import Box
from dphpc.core.exact_sum import exact_sum
from dphpc.md.engine import Engine
from dphpc.md.observables import pressure_volume
from dphpc.md.stages import Stage

PLACES = {"x": (0, 0), "y": (1, 1), "z": (2, 2), "xy": (1, 0), "xz": (2, 0), "yz": (2, 1)}
"""Where the rate of a direction stands in R: xy moves what is at y along x."""


class Deformation:
    """A flow of constant engineering rates R: from the beginning on, at the time t, positions x have become x F(t).

    F = 1 + R t, with a lower triangular R.  Box vectors, as rows h, become h F; so in LAMMPS' orientation a length is
    L₀ (1 + ε̇ t), and the tilt xy of an upright box is γ̇ t times the length along y.

    Velocities v are relative to the flow, and become v F⁻¹.  As F has no second derivative, ẍ = f/m of the true
    positions is then exactly ẋ = v + x L, v̇ = f/m − v L with L = F⁻¹ Ḟ: SLLOD (Evans, Morriss, Phys. Rev. A 30, 1528
    (1984)).  The flow does the work −P:L V, with the pressure of observables, kinetic part included.

    Parameters
    ----------
    rates
        1/ps by direction, one of `PLACES`.
    interval
        Time in ps between two moves.
    begun
        Number of a move and its time in ps, from which times are counted.
    """

    def __init__(self, rates: Mapping[str, float], interval: float, begun: tuple[int, float] = (0, 0.0)) -> None:
        self.rates, self.interval, self.begun = rate_matrix(rates), interval, begun
        self.shears = bool(np.tril(self.rates, -1).any())

    def move(self, engine: Engine, n: int) -> Doubles:
        """Move the box, and the atoms with it, from the time of move n − 1 to that of move n; collective.

        Returns
        -------
        (3,) eV taken from the atoms, in the parts of `core.exact_sum`: the work of the pressure, to the third order in
        the strain of the move.

        Raises
        ------
        RunError
            As in `Engine.update_forces`, on all ranks.
        """
        engine.moving = False
        # F⁻¹ F' − 1; columns, which stand for directions, that have no rate are 0 to the last bit.
        strain = engine.comm.bcast(self.interval * np.linalg.solve(self.gradient(n - 1), self.rates))
        before = pressure_volume(engine)
        matrix = engine.state.box.matrix
        engine.reshape_box(matrix + matrix @ strain, flips=self.shears, flows=True)
        engine.update_forces()
        # L dt at both ends: on the way F⁻¹ F' = 1 + s (strain), for s from 0 to 1.
        slopes = strain, strain @ np.linalg.inv(np.eye(3) + strain)
        taken = 0.5 * ((before * slopes[0]).sum() + (pressure_volume(engine) * slopes[1]).sum())
        return exact_sum(np.array([taken]))

    def gradient(self, n: int) -> Doubles:
        """(3, 3): F after move n."""
        first, time = self.begun
        return np.eye(3) + (time + (n - first) * self.interval) * self.rates


def rate_matrix(rates: Mapping[str, float]) -> Doubles:
    """(3, 3) 1/ps: R, from rates by direction."""
    matrix = np.zeros((3, 3))
    for direction, rate in rates.items():
        matrix[PLACES[direction]] = rate
    return matrix


def boxes_ahead(box: Box, stages: Sequence[Stage], timestep: float, done: int = 0) -> list[Box]:
    """The box, and those after each stage as its rates stretch them; what pressures will do to it is not known.

    Shear is left out: a box that leans too much is flipped back.

    Parameters
    ----------
    stages
        What is ahead; of the first of them `done` steps are behind.
    timestep
        ps.
    """
    boxes = [box]
    for stage in stages:
        stretch = np.diag(rate_matrix(stage.rates))
        now, end = (1.0 + n * timestep * stretch for n in (done, stage.steps))
        boxes.append(replace(boxes[-1], matrix=boxes[-1].matrix * (end / now)))
        done = 0
    return boxes


def open_vector(rates: Mapping[str, float], box: Box) -> str | None:
    """The name of a box vector that does not repeat, and that the rates would change; None if there is none."""
    changes = box.matrix @ rate_matrix(rates)
    changed = (name for name, p, change in zip("abc", box.periodic, changes, strict=True) if change.any() and not p)
    return next(changed, None)
