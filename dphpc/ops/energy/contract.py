"""Energies of atoms of one type and their forces: descriptor, fitting net and backward pass in one operation.

It combines `se_a`'s moments and features, the fitting net's energies and adjoint, and `se_a`'s adjoint of features and
forces, so that a back end can keep all intermediate results in caches.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Floats
from dphpc.model.networks import Network
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters


class Accumulators(NamedTuple):
    """Arrays to which results are added.

    Attributes
    ----------
    forces
        (n_all, 3) eV/Å, ghosts included.
    virial
        (3, 3, 3) eV, −Σ ∂E/∂r ⊗ r in the parts of `core.exact_sum`.
    atom_virial
        (n_all, 3, 3) eV at the neighbor of each pair, or None.
    force_spacing
        eV/Å, a power of two; each pair's force is rounded to a multiple of it, so that the sums do not depend on the
        order of their terms.  0: no rounding.
    """

    forces: NDArray[np.float64]
    virial: NDArray[np.float64]
    atom_virial: NDArray[np.float64] | None = None
    force_spacing: float = 0.0


class EnergyOps(Protocol):
    """A back end."""

    def prepare(self, network: Network, channels: int, axis: int) -> Any:
        """A type's fitting net in the form that `energy_and_forces` takes; made once.

        Its inputs are channels·axis features, followed by columns of parameters if there are any.
        """

    def energy_and_forces(
        self,
        env: Environment,
        p: SeAParameters,
        e: Embedding,
        net: Any,
        columns: Floats | None,
        out: Accumulators,
    ) -> tuple[NDArray[np.float64], float]:
        """Net outputs (n_c,) in eV for the environment's centers, and the largest s̃ met.

        `columns` (n_c, n_columns) are the net's inputs after the features, in the net's precision.  If the largest s̃
        is above `table.upper`, all results are extrapolated.
        """
