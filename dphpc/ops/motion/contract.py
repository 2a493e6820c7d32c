"""The elementary moves that integrators are made of, on the local atoms of one rank.

Where an atom is fixed its mass is infinite: along these directions forces and noise do not move it, and a minimizer
ignores its force.  Sums over velocities and forces leave these components out.

Sums over atoms are in the parts of `core.exact_sum`, so that they do not depend on the order of the atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from numpy.typing import NDArray

from dphpc.core.arrays import Doubles

EVERYONE = 0
"""Stands for all atoms, in place of the number of a group of them (`State.group`)."""

Combine = Callable[[Doubles], Doubles]
"""Adds an array up over all ranks; collective."""

Snapshot = Callable[[], dict[str, NDArray]]
"""Called, waits for and returns fields of the local atoms as they were when the snapshot was taken."""


class Account(Protocol):
    """The internal variables of a thermostat, such as the energy that it has exchanged, and the group on which it acts.

    While atoms move on a GPU, `scalars` lives there, and its values here are not up to date until they are fetched.
    Assigning a new array to `scalars` uploads it.
    """

    scalars: Doubles

    @property
    def group(self) -> int:
        """The number of its group, or `EVERYONE`."""


class Bath(Account, Protocol):
    """A thermostat that turns the kinetic energy of its group into a factor for their velocities.

    `kernel` names the function of `kernels/cuda/thermostats.cu` that does the same as `respond` on a GPU.
    """

    kernel: str

    def respond(self, kinetic: float, inputs: Doubles) -> float:
        """The factor for a kinetic energy in eV; `inputs` are the step's parameters and random numbers."""


class Moves(Protocol):
    """A back end."""

    def kick(self, dt: float) -> None:
        """v += dt f/m."""

    def drift(self, dt: float, kick: float = 0.0) -> None:
        """v += kick f/m, then x += dt v, in a deterministic run rounded to multiples of a spacing."""

    def rescale(self, bath: Bath, inputs: Doubles, combine: Combine, *, measured: bool) -> None:
        """v *= the bath's response to the kinetic energy, for its group; collective.

        Without `measured` the kinetic energy is not computed, and the bath gets NaN.
        """

    def randomize_velocities(self, account: Account, keep: float, temperature: float, seed: int, step: int) -> None:
        """v = keep·v + √((1 − keep²) kT/m) ξ for the account's group, with random numbers ξ of the stream LANGEVIN.

        The kinetic energy that these atoms lose is added to the account, (3,) in parts.
        """

    def put_velocities(self, velocities: Doubles) -> None:
        """Set the velocities from an array (n_local, 3) on the host."""

    def steer(self, keep: float, push: float) -> None:
        """v = keep·v + push·f where atoms are not fixed."""

    def descent_sums(self) -> Doubles:
        """(3, 3): Σ f·v, Σ v² and Σ f² over this rank's atoms where they are not fixed, in parts."""

    def largest_squares(self) -> Doubles:
        """(2,): the largest v² and the largest f² of this rank's atoms where they are not fixed."""

    def kinetic_energy(self, group: int = EVERYONE) -> Doubles:
        """(3,) eV: kinetic energy of a group's atoms on this rank, in parts."""

    def kinetic_tensor(self) -> Doubles:
        """(3, 3, 3) eV: Σ m v ⊗ v over this rank's atoms, in parts."""

    def snapshot(self, fields: Collection[str]) -> Snapshot:
        """A snapshot of fields of `core.state.State`; valid until atoms move on the host or the next is taken."""
