"""The elementary moves that integrators are made of, on the local atoms of one rank.

A fixed atom is one of infinite mass: forces and noise do not move it, and a minimizer takes no note of its force.

Sums over atoms are in the parts of `core.exact_sum`, so that they do not depend on who adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Combine = Callable[[Floats], Floats]
"""Adds an array up over all ranks; collective."""

Snapshot = Callable[[], dict[str, NDArray]]
"""Gives fields of the local atoms as they were when it was made, as soon as they are here."""


class Account(Protocol):
    """The numbers of a thermostat.

    While atoms move on a GPU `scalars` is there, and here only after a look at the GPU; a new array in its place is
    taken up.
    """

    scalars: Floats


class Bath(Account, Protocol):
    """A thermostat that answers the kinetic energy of all atoms with a factor for their velocities.

    `kernel`, of `kernels/cuda/thermostats.cu`, does on a GPU what `respond` does here.
    """

    kernel: str

    def respond(self, kinetic: float, inputs: Floats) -> float:
        """The factor at a kinetic energy in eV; `inputs` are the numbers of the step."""
        ...


class Moves(Protocol):
    """A back end."""

    def kick(self, dt: float) -> None:
        """v += dt f/m."""
        ...

    def drift(self, dt: float, kick: float = 0.0) -> None:
        """x += dt v, in a deterministic run by whole multiples of a spacing, after v += kick f/m."""
        ...

    def rescale(self, bath: Bath, inputs: Floats, combine: Combine, *, measured: bool) -> None:
        """v *= what the bath answers to the kinetic energy of all atoms; collective.

        It is told NaN where the kinetic energy is not to be `measured`.
        """
        ...

    def randomize_velocities(self, account: Account, keep: float, temperature: float, seed: int, step: int) -> None:
        """v = keep·v + √((1 − keep²) kT/m) ξ, ξ of the stream LANGEVIN.

        The account, (3,) in parts, takes the kinetic energy that these atoms lose.
        """
        ...

    def put_velocities(self, velocities: Floats) -> None:
        """Velocities (n_local, 3) from the host."""
        ...

    def steer(self, keep: float, push: float) -> None:
        """v = keep·v + push·f, of atoms that are not fixed."""
        ...

    def descent_sums(self) -> Floats:
        """(3, 3): Σ f·v, Σ v² and Σ f² of these atoms that are not fixed, in parts."""
        ...

    def largest_squares(self) -> Floats:
        """(2,): the largest v² and the largest f² of these atoms that are not fixed."""
        ...

    def kinetic_tensor(self) -> Floats:
        """(3, 3, 3) eV: Σ m v ⊗ v of these atoms, in parts."""
        ...

    def snapshot(self, fields: Collection[str]) -> Snapshot:
        """Fields of `core.state.State`, good until atoms move on the host or the next snapshot is made."""
        ...
