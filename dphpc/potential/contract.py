"""The interface of a potential, all that MD engine, trainer and calculators see of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.core.exact_sum import no_sum, total
from dphpc.core.state import State
from dphpc.ops.energy.gpu import GpuSums, GpuSystem
from dphpc.ops.neighbors.contract import Neighbors

SAMPLE = 16384
"""Number of a rank's atoms whose neighbors are checked at the start of a run."""


class Halo(Protocol):
    """Communication that a potential may use: per-atom arrays are sent to ghosts, or summed back from them.

    Arrays are (n_all, …), local atoms first.  Both calls are collective.  They must not be used where `compute` works
    on some of a rank's atoms only: then the engine's own messages are under way, and the number of such calls differs
    from rank to rank.
    """

    def refresh(self, array: NDArray) -> None:
        """Overwrite the ghost part with the owners' values."""

    def reduce(self, array: NDArray) -> None:
        """Add the ghost part to the owners' entries and leave the ghost part zero."""


@dataclass
class Outputs:
    """Results for one rank's atoms, to which `Potential.compute` adds.

    Attributes
    ----------
    forces
        (n_all, 3) eV/Å; those on ghosts have yet to be added to their owners'.
    energy_parts, virial_parts
        (3,) and (3, 3, 3) eV, of the local centers, as `core.exact_sum` keeps sums over atoms.
    atom_energy
        (n_local,) eV or None.
    atom_virial
        (n_all, 3, 3) eV, each pair's share at the neighbor, as DeePMD-kit defines it; or None.
    force_spacing
        eV/Å; every term added to `forces` must be a multiple of it, so that the sum is exact; 0: no rounding.
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
        """Energy of the local atoms, eV."""
        return float(total(self.energy_parts))

    @property
    def virial(self) -> NDArray[np.float64]:
        """(3, 3) eV, −Σ ∂E/∂r ⊗ r over the pairs of the local atoms."""
        return total(self.virial_parts)


class Potential(Protocol):
    """A term of the energy, or a sum of terms.

    `cutoff` (Å) is the reach of an atom's interactions; `type_map` names the types in `state.types`.
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
        """Add energy, forces and virial of the local atoms, or only of those at `centers`, to `outputs`.

        With `outputs.force_spacing` the results depend neither on the order of the atoms in memory nor on which of them
        are evaluated together, to the last bit.

        Raises
        ------
        RunError
            A result is not finite or two atoms overlap; the message names the atom's id.
        """

    def memory_per_atom(self) -> float:
        """Bytes that the evaluation needs for each local atom, in addition to state and neighbor list."""


@runtime_checkable
class GpuPotential(Potential, Protocol):
    """A potential that can be evaluated on atoms in GPU memory, on its `device` (None: on the CPU only)."""

    device: Device | None

    def version(self) -> Hashable:
        """Changes whenever `launch` does something else with the same arguments: part of the key of `Device.replay`."""

    def expect(self, counts: NDArray[np.int64]) -> None:
        """Prepare for a run with these numbers of atoms of each type (ntypes,), over all ranks."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """(ntypes,) how many atoms of a type are evaluated at a time; fewer take as long."""

    def place(self, parts: NDArray[np.int64], by_type: Array) -> None:
        """Divide the local atoms into parts that can be launched one by one.

        Parameters
        ----------
        parts
            (n_parts, ntypes) number of atoms of each type in each part.
        by_type
            (n_local,) int32 on the GPU: the atoms of type 0 ordered by part, then those of type 1, …
        """

    def look_over(self, state: State, neighbors: Neighbors) -> None:
        """Warn once of unusual surroundings of these atoms, as `compute` would."""

    def list_on_gpu(self, neighbors: Neighbors) -> tuple[Array, Array]:
        """Offsets and indices of a neighbor list on the GPU; valid until the next call with another list."""

    def launch(self, system: GpuSystem, sums: GpuSums, part: int = 0) -> None:
        """Add energy, forces and virial of a part's atoms to the sums, without waiting for it.

        If `sums.trouble` is not 0 afterwards, the results are invalid, and `compute` raises the reason.
        """


def gpu_of(potential: Potential) -> Device | None:
    """The GPU on which a potential can be evaluated, None for the CPU."""
    return potential.device if isinstance(potential, GpuPotential) else None
