"""The operations of the `se_e2_a` descriptor: their arguments and results, for every back end.

All quantities of one center i (type c) with neighbors j (type t), r = x_j − x_i:

    R̃_ij   normalized environment row (4,)              G_ij = G_net(c,t)(s̃_ij)  (M,)
    A_i    = [ Σ_j R̃_ij ⊗ G_ij + e₀ ⊗ Σ_t (sel_t − n_t) empty[c,t] ] · scale     (4, M)
    D_i    = A_iᵀ · A_i[:, :axis]                                                  (M, axis)

n_t counts the neighbors inside rcut that take a slot (`COUNTED`).  `moments` gives A, `features` D;
`forces_into` turns Ā = ∂E/∂A into forces and virial; `tangent` is dA/dε along x_j + ε·d_j with an
additional strain of every r; `tangent_adjoint` is the gradient of Σ Ā·A + Ǡ·Ȧ with respect to the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Floats
from dphpc.model.dp_model import DPModel
from dphpc.ops.neighbors.contract import Neighbors


@dataclass(frozen=True)
class SeAParameters:
    """Scalars and small arrays of a descriptor in the form that the kernels take.

    Attributes
    ----------
    davg, dstd
        (ntypes,) and (ntypes, 2) float64.
    network
        (ntypes, ntypes) int32: index of the network, and table, of a (center, neighbor) pair.
    flags
        (ntypes, ntypes) uint8: `USED | COUNTED` of a (center, neighbor) pair.
    round_displacements
        Whether every r is rounded to float32 before anything is computed from it.
    """

    rcut: float
    rcut_smth: float
    protection: float
    scale: float
    axis_neuron: int
    sel: NDArray[np.int32]
    davg: NDArray[np.float64]
    dstd: NDArray[np.float64]
    network: NDArray[np.int32]
    flags: NDArray[np.uint8]
    round_displacements: bool = False

    @classmethod
    def of(cls, model: DPModel) -> SeAParameters:
        """The parameters of a model's descriptor, with the model's excluded pairs in the flags."""
        d = model.descriptor
        return cls(
            rcut=d.rcut,
            rcut_smth=d.rcut_smth,
            protection=d.env_protection,
            scale=d.scale,
            axis_neuron=d.axis_neuron,
            sel=d.slots(),
            davg=np.ascontiguousarray(d.davg, np.float64),
            dstd=np.ascontiguousarray(d.dstd, np.float64),
            network=d.network_index(),
            flags=model.pair_flags(),
        )


@dataclass(frozen=True)
class Embedding:
    """The table and its values at missing slots, in the precision of the computation.

    `empty` is (ntypes, ntypes, M), `SeE2A.empty_slots` of the table.  Only the reference takes anything but a
    `RadialTable`.
    """

    table: Any
    empty: Floats


@dataclass(frozen=True)
class Environment:
    """Atoms and neighbors; `centers` (n_c,) int32 are the local atoms to work on, in any order."""

    positions: NDArray[np.float64]
    types: NDArray[np.int32]
    neighbors: Neighbors
    centers: NDArray[np.int32]


class SeAOps(Protocol):
    """A back end.  Every array is C-contiguous; results have the table's precision unless said otherwise.

    `native` has the passes of training as methods of a tape.
    """

    def moments(self, env: Environment, p: SeAParameters, e: Embedding) -> tuple[Floats, float]:
        """A (n_c, 4, M), and the largest s̃ met: beyond `table.upper` the values are extrapolated."""

    def features(self, moments: Floats, axis: int) -> Floats:
        """D (n_c, M·axis), index m·axis + k."""

    def features_adjoint(self, moments: Floats, adjoint: Floats) -> Floats:
        """Σ adjoint·D differentiated by A: (n_c, 4, M).  Linear in `moments` and in `adjoint`.

        `native` has it inside its fitting nets only.
        """

    def forces_into(
        self,
        env: Environment,
        p: SeAParameters,
        e: Embedding,
        moments_adjoint: Floats,
        forces: NDArray[np.float64],
        center_virial: NDArray[np.float64],
        atom_virial: NDArray[np.float64] | None = None,
    ) -> None:
        """Add −∂E/∂x to `forces` (n_all, 3), ghosts included, given Ā = ∂E/∂A (n_c, 4, M).

        `center_virial` (n_c, 3, 3) is set to −Σ_j ∂E_i/∂r_ij ⊗ r_ij; `atom_virial` (n_all, 3, 3), where
        given, has the same terms added to the neighbor j, which is DeePMD-kit's atomic virial.
        """

    def tangent(
        self,
        env: Environment,
        p: SeAParameters,
        e: Embedding,
        direction: NDArray[np.float64],
        strain: NDArray[np.float64],
    ) -> Floats:
        """Ȧ (n_c, 4, M) along ṙ_ij = d_j − d_i + strain_i·r_ij; `direction` (n_all, 3), `strain` (n_c, 3, 3)."""

    def tangent_adjoint(
        self,
        env: Environment,
        p: SeAParameters,
        e: Embedding,
        direction: NDArray[np.float64],
        strain: NDArray[np.float64],
        moments_adjoint: Floats,
        tangent_adjoint: Floats,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gradient of Σ Ā·A + Ǡ·Ȧ: float64 arrays shaped like `table.coefficients` and `empty`."""
