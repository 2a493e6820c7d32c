"""The `se_e2_a` operations on the CPU: the compiled kernels.

Precision follows the table: float64, or float32 ("mixed": displacements, rows and sums over pairs stay in float64,
channels in float32); with `SeAParameters.round_displacements` it is the plain "float32".

With the same number of threads results are the same in every run; moments, features and tangents do not even depend on
that number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc._native import kernels_of
from dphpc.core.arrays import Floats
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters
from dphpc.ops.threads import get_threads


def moments(env: Environment, p: SeAParameters, e: Embedding) -> tuple[Floats, float]:
    """See `contract.SeAOps.moments`."""
    dtype = e.table.coefficients.dtype
    result = np.empty((len(env.centers), 4, e.table.n_channels), dtype)
    largest = kernels_of(dtype).moments(env, p, e, get_threads(), result)
    return result, largest


def features(moments: Floats, axis: int) -> Floats:
    """See `contract.SeAOps.features`."""
    result = np.empty((len(moments), moments.shape[2] * axis), moments.dtype)
    kernels_of(moments.dtype).features(np.ascontiguousarray(moments), axis, get_threads(), result)
    return result


def forces_into(
    env: Environment,
    p: SeAParameters,
    e: Embedding,
    moments_adjoint: Floats,
    forces: NDArray[np.float64],
    center_virial: NDArray[np.float64],
    atom_virial: NDArray[np.float64] | None = None,
) -> None:
    """See `contract.SeAOps.forces_into`."""
    dtype = e.table.coefficients.dtype
    adjoint = np.ascontiguousarray(moments_adjoint, dtype)
    threads = get_threads()
    kernels_of(dtype).forces_into(env, p, e, threads, adjoint, forces, center_virial, atom_virial)


def tangent(
    env: Environment,
    p: SeAParameters,
    e: Embedding,
    direction: NDArray[np.float64],
    strain: NDArray[np.float64],
) -> Floats:
    """See `contract.SeAOps.tangent`."""
    dtype = e.table.coefficients.dtype
    result = np.empty((len(env.centers), 4, e.table.n_channels), dtype)
    kernels_of(dtype).tangent(env, p, e, get_threads(), *_contiguous(direction, strain), result)
    return result


def tangent_adjoint(
    env: Environment,
    p: SeAParameters,
    e: Embedding,
    direction: NDArray[np.float64],
    strain: NDArray[np.float64],
    moments_adjoint: Floats,
    tangent_adjoint: Floats,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `contract.SeAOps.tangent_adjoint`."""
    dtype = e.table.coefficients.dtype
    coefficients = np.empty(e.table.coefficients.shape, np.float64)
    empty = np.empty(e.empty.shape, np.float64)
    bars = (np.ascontiguousarray(x, dtype) for x in (moments_adjoint, tangent_adjoint))
    kernels_of(dtype).tangent_adjoint(
        env, p, e, get_threads(), *_contiguous(direction, strain), *bars, coefficients, empty
    )  # fmt: skip
    return coefficients, empty


def _contiguous(*arrays: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.ascontiguousarray(x, np.float64) for x in arrays)
