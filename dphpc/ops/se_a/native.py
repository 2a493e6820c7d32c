"""The `se_e2_a` operations on the CPU: the compiled kernels.

Precision follows the table: float64, or float32 ("mixed": displacements, rows and sums over pairs stay in float64,
channels in float32); with `SeAParameters.round_displacements` it is the plain "float32".

With the same number of threads results are the same in every run; moments, features and tangents do not even depend on
that number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc._native import kernels_of
from dphpc.core.arrays import Floats
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters
from dphpc.ops.threads import get_threads


class SeATape:
    """The passes of a training step over one batch: the first reads the pairs for all.

    Use in this order: `moments`, `forces_into`, `tangent`, `tangent_adjoint`.  They are those of `contract.SeAOps`,
    without the arguments that an earlier one was given.  Some 120 bytes of each pair are kept; the memory stays for the
    next batch.
    """

    def __init__(self, dtype: Any) -> None:
        """`dtype` is the table's."""
        self.dtype = np.dtype(dtype)
        self._tape = kernels_of(self.dtype).SeATape()

    def moments(
        self, env: Environment, p: SeAParameters, e: Embedding, owners: NDArray[np.int32] | None = None
    ) -> tuple[Floats, float]:
        """See `contract.SeAOps.moments`; the last atoms are images of the local atoms `owners` (n_ghost,)."""
        self._embedding = e
        result = np.empty((len(env.centers), 4, e.table.n_channels), self.dtype)
        return result, self._tape.moments(env, owners, p, e, get_threads(), result)

    def forces_into(
        self, moments_adjoint: Floats, forces: NDArray[np.float64], center_virial: NDArray[np.float64]
    ) -> None:
        """See `contract.SeAOps.forces_into`; `forces` (n_local, 3) has those on images added to their owners'."""
        self._tape.forces_into(np.ascontiguousarray(moments_adjoint, self.dtype), forces, center_virial)

    def tangent(self, direction: NDArray[np.float64], strain: NDArray[np.float64]) -> Floats:
        """See `contract.SeAOps.tangent`; `direction` (n_local, 3), in which images follow their owners."""
        result = np.empty((len(strain), 4, self._embedding.table.n_channels), self.dtype)
        self._tape.tangent(*(np.ascontiguousarray(x, np.float64) for x in (direction, strain)), result)
        return result

    def tangent_adjoint(
        self, moments_adjoint: Floats, tangent_adjoint: Floats
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `contract.SeAOps.tangent_adjoint`."""
        coefficients = np.empty(self._embedding.table.coefficients.shape)
        empty = np.empty(self._embedding.empty.shape)
        bars = (np.ascontiguousarray(x, self.dtype) for x in (moments_adjoint, tangent_adjoint))
        self._tape.tangent_adjoint(*bars, coefficients, empty)
        return coefficients, empty


def moments(env: Environment, p: SeAParameters, e: Embedding) -> tuple[Floats, float]:
    """See `contract.SeAOps.moments`."""
    return SeATape(e.table.coefficients.dtype).moments(env, p, e)


def features(moments: Floats, axis: int) -> Floats:
    """See `contract.SeAOps.features`."""
    result = np.empty((len(moments), moments.shape[2] * axis), moments.dtype)
    kernels_of(moments.dtype).features(np.ascontiguousarray(moments), axis, get_threads(), result)
    return result
