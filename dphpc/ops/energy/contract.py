"""Energies of atoms of one type and the forces they exert: descriptor, fitting net and the way back in one operation.

It is `se_a`'s moments and features, the fitting net's energies and adjoint, and `se_a`'s adjoint of the features and
forces in a row; a back end may keep all that stands between positions and forces in its caches.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.model.networks import Network
from dphpc.ops.se_a.contract import Embedding, Environment, Floats, SeAParameters


class Accumulators(NamedTuple):
    """What results are added to.

    Attributes
    ----------
    forces
        (n_all, 3) eV/Å, ghosts included.
    virial
        (3, 3, 3) eV, −Σ ∂E/∂r ⊗ r in the parts of `core.exact_sum`.
    atom_virial
        (n_all, 3, 3) eV at the neighbor of each pair, or None.
    force_spacing
        eV/Å, a power of two of which each pair's force is to be a multiple, so that forces do not depend on the order
        in which they are added; 0 for as it comes.
    """

    forces: NDArray[np.float64]
    virial: NDArray[np.float64]
    atom_virial: NDArray[np.float64] | None = None
    force_spacing: float = 0.0


class EnergyOps(Protocol):
    """A back end."""

    def prepare(self, network: Network, channels: int, axis: int) -> Any:
        """The fitting net of a type as `energy_and_forces` wants it; to be made once.

        Its inputs are channels·axis features and what other columns there are.
        """
        ...

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

        `columns` (n_c, n_columns) are the net's inputs beside the features, in the net's precision.  Where the
        largest s̃ lies beyond `table.upper`, all results are extrapolated.
        """
        ...
