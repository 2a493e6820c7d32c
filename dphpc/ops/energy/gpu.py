"""Arguments and results of energies on a GPU, as arrays in its memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array
from dphpc.core.exact_sum import FORCE_SPACING
from dphpc.ops.energy.contract import Accumulators

VIRIAL_SLOTS = 64
"""Number of places for the virial that blocks use in turn, so that they seldom wait for one another."""


@dataclass(frozen=True)
class GpuSystem:
    """Atoms and their neighbors in a GPU's memory.

    Attributes
    ----------
    positions, types
        (n_all, 3) float64 Å and (n_all,) int32, local atoms first.
    offsets, indices
        As in `neighbors.contract.Neighbors`.
    """

    positions: Array
    types: Array
    offsets: Array
    indices: Array


@dataclass(frozen=True)
class GpuSums:
    """GPU arrays to which results are added, as integer multiples of the spacing except for the energy.

    Attributes
    ----------
    forces, virial
        (3·n_all,) and (9·VIRIAL_SLOTS,) int64, the latter to be summed over slots.
    trouble
        (1,) int64, set to 1 if a pair's force is too large, and by `CudaEnergy.launch` also if an energy is not finite
        or a pair is nearer than the table reaches.  The results are then invalid.
    atom_virial
        (9·n_all,) int64, or None.
    energy
        (3,) float64 eV in the parts of `core.exact_sum`, only for `CudaEnergy.launch`.
    spacing
        Spacing of forces (eV/Å) and virials (eV).
    """

    forces: Array
    virial: Array
    trouble: Array
    atom_virial: Array | None = None
    energy: Array | None = None
    spacing: float = FORCE_SPACING

    @classmethod
    def within(cls, array: Array, n_all: int, spacing: float) -> GpuSums:
        """Sums that are slices of one int64 array: forces, virial, trouble and, if there is room, atomic virials."""
        ends = np.cumsum([3 * n_all, 9 * VIRIAL_SLOTS, 1])
        more = array[ends[2] :] if array.size > ends[2] else None
        return cls(array[: ends[0]], array[ends[0] : ends[1]], array[ends[1] : ends[2]], more, spacing=spacing)

    @staticmethod
    def size(n_all: int, atomic: bool) -> int:
        """Length of the array for `within`."""
        return (12 if atomic else 3) * n_all + 9 * VIRIAL_SLOTS + 1


def virial_parts(slots: NDArray[np.int64], spacing: float) -> NDArray[np.float64]:
    """(3, 3, 3) eV, the virial in the parts of `core.exact_sum`, from the integers in all slots."""
    slots = slots.reshape(VIRIAL_SLOTS, 3, 3)
    # A sum over all atoms may have more digits than float64 holds: two parts are exact.
    coarse, fine = (slots >> 30).sum(axis=0), (slots & (2**30 - 1)).sum(axis=0)
    return np.stack([coarse * (2.0**30 * spacing), fine * spacing, np.zeros((3, 3))])


def add_found(found: GpuSums, out: Accumulators) -> None:
    """Add downloaded sums to accumulators."""
    out.forces[...] += found.forces.reshape(out.forces.shape) * found.spacing
    out.virial[...] += virial_parts(found.virial, found.spacing)
    if out.atom_virial is not None and found.atom_virial is not None:
        out.atom_virial[...] += found.atom_virial.reshape(out.atom_virial.shape) * found.spacing
