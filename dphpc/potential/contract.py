"""What the engine, the trainer and the calculators see of a potential."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.core.exact_sum import no_sum, total
from dphpc.core.state import State
from dphpc.ops.energy.card import CardSums, CardSystem
from dphpc.ops.neighbors.contract import Neighbors

SAMPLE = 16384
"""Atoms of a rank whose neighbors are looked over at the start of a run."""


class Halo(Protocol):
    """What a potential may ask of the ranks around: per-atom arrays sent to ghosts, or summed back from them.

    Arrays are (n_all, …), local atoms first.  Both are collective calls, not for `compute` on some of a rank's atoms:
    then the engine's own messages are under way, and ranks do not have as many such calls.
    """

    def refresh(self, array: NDArray) -> None:
        """Overwrite the ghost part with the owners' values."""
        ...

    def reduce(self, array: NDArray) -> None:
        """Add the ghost part to the owners' entries and leave the ghost part zero."""
        ...


@dataclass
class Outputs:
    """Results of one rank's atoms; `Potential.compute` adds to them.

    Attributes
    ----------
    forces
        (n_all, 3) eV/Å, ghosts included: their share is still to be sent back to the owners.
    energy_parts, virial_parts
        (3,) and (3, 3, 3) eV, of the local centers, as `core.exact_sum` keeps sums over atoms.
    atom_energy
        (n_local,) eV or None.
    atom_virial
        (n_all, 3, 3) eV, at the neighbor of each pair as DeePMD-kit defines it, or None.
    force_spacing
        eV/Å, of which every term added to `forces` is to be a multiple; 0 for as it comes.
    """

    forces: NDArray[np.float64]
    energy_parts: NDArray[np.float64] = field(default_factory=no_sum)
    virial_parts: NDArray[np.float64] = field(default_factory=lambda: no_sum(3, 3))
    atom_energy: NDArray[np.float64] | None = None
    atom_virial: NDArray[np.float64] | None = None
    force_spacing: float = 0.0

    @classmethod
    def zeros(cls, n_local: int, n_all: int, *, atomic: bool = False) -> Outputs:
        """Empty results; with the per-atom arrays if `atomic`."""
        return cls(
            np.zeros((n_all, 3)),
            atom_energy=np.zeros(n_local) if atomic else None,
            atom_virial=np.zeros((n_all, 3, 3)) if atomic else None,
        )

    @property
    def energy(self) -> float:
        """eV, of the local centers."""
        return float(total(self.energy_parts))

    @property
    def virial(self) -> NDArray[np.float64]:
        """(3, 3) eV, −Σ ∂E/∂r ⊗ r of the local centers."""
        return total(self.virial_parts)


class Potential(Protocol):
    """A term of the energy, or a sum of terms.

    `cutoff` (Å) is how far an atom sees; `type_map` names the types that `state.types` counts.
    """

    cutoff: float
    type_map: list[str]

    def compute(
        self,
        state: State,
        neighbors: Neighbors,
        halo: Halo | None,
        outputs: Outputs,
        centers: NDArray[np.int32] | None = None,
    ) -> None:
        """Add energy, forces and virial of the local atoms, or of those at `centers` alone, to `outputs`.

        With `outputs.force_spacing`, what is added depends neither on the order of the atoms in memory nor on which of
        them are evaluated together.

        Raises
        ------
        RunError
            A result is not finite or two atoms overlap; the message names the atom's id.
        """
        ...

    def memory_per_atom(self) -> float:
        """Bytes the evaluation needs for each local atom beside the state and the neighbor list."""
        ...


@runtime_checkable
class CardPotential(Potential, Protocol):
    """A potential that can be evaluated where the atoms live on a GPU; `device` is None where it has none."""

    device: Device | None

    def version(self) -> Hashable:
        """Changes with all that `launch` does but what system and sums say: part of the key when that is replayed."""
        ...

    def expect(self, counts: NDArray[np.int64]) -> None:
        """Prepare for a run that has so many atoms of each type (ntypes,) on all ranks together."""
        ...

    @property
    def rows(self) -> NDArray[np.int64]:
        """(ntypes,) how many atoms of a type are evaluated at a time: fewer cost as much."""
        ...

    def place(self, parts: NDArray[np.int64], by_type: Array) -> None:
        """Take up the local atoms in parts that are launched by themselves.

        Parameters
        ----------
        parts
            (n_parts, ntypes) how many atoms of each type a part has.
        by_type
            (n_local,) int32 on the GPU: the atoms of type 0, those of the first part first, then of type 1, …
        """
        ...

    def look_over(self, state: State, neighbors: Neighbors) -> None:
        """Say once what is unusual about the surroundings of these atoms, which `compute` has not seen."""
        ...

    def list_on_card(self, neighbors: Neighbors) -> tuple[Array, Array]:
        """Offsets and indices of a list in the GPU's memory, until it is given another."""
        ...

    def launch(self, system: CardSystem, sums: CardSums, part: int = 0) -> None:
        """Add energy, forces and virial of the local atoms of a part to the sums, without waiting for it.

        Where `sums.trouble` is not 0 afterwards, the results are void and `compute` can say why.
        """
        ...


def card_of(potential: Potential) -> Device | None:
    """The GPU on which a potential can be evaluated where the atoms live, if it has one."""
    return potential.device if isinstance(potential, CardPotential) else None
