"""The `se_e2_a` operations in plain NumPy, one array per pair: slow, and the judge of every other back end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Floats
from dphpc.model.descriptor import COUNTED, USED
from dphpc.model.env_mat import environment_rows
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters


@dataclass
class _Pairs:
    """Pairs inside rcut that add to the moments, and the numbers of free slots."""

    center: NDArray[np.int64]  # (n_pairs,) row in env.centers
    first: NDArray[np.int32]  # (n_pairs,) atom i
    second: NDArray[np.int64]  # (n_pairs,) atom j
    displacement: NDArray[np.float64]  # (n_pairs, 3)
    rows: NDArray[np.float64]  # (n_pairs, 4) normalized
    derivatives: NDArray[np.float64]  # (n_pairs, 4, 3)
    table: NDArray[np.int32]  # (n_pairs,)
    center_types: NDArray[np.int32]  # (n_c,)
    free: NDArray[np.float64]  # (n_c, ntypes): sel_t − n_t


def used_pairs(
    env: Environment, p: SeAParameters
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The pairs inside rcut that add to the moments, and the free slots of the centers.

    Returns
    -------
    center, second, displacement, free
        (n_pairs,) row in `env.centers`, (n_pairs,) neighbor j, (n_pairs, 3) Å from center to neighbor, and
        (n_c, ntypes) sel_t − n_t.
    """
    counts = np.diff(env.neighbors.offsets)[env.centers]
    center = np.repeat(np.arange(len(env.centers)), counts)
    starts = np.repeat(env.neighbors.offsets[env.centers], counts)
    within = np.arange(len(center)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = env.centers[center]
    second = env.neighbors.indices[starts + within].astype(np.int64)
    displacement = env.positions[second] - env.positions[first]
    if p.round_displacements:
        displacement = displacement.astype(np.float32).astype(np.float64)
    flags = p.flags[env.types[first], env.types[second]]
    inside = np.linalg.norm(displacement, axis=1) < p.rcut
    free = np.tile(p.sel.astype(np.float64), (len(env.centers), 1))
    counted = inside & (flags & COUNTED > 0)
    np.subtract.at(free, (center[counted], env.types[second[counted]]), 1.0)
    used = inside & (flags & USED > 0)
    return center[used], second[used], displacement[used], free


def _pairs(env: Environment, p: SeAParameters) -> _Pairs:
    center, second, displacement, free = used_pairs(env, p)
    first = env.centers[center]
    rows, derivatives = environment_rows(displacement, p.rcut, p.rcut_smth, p.protection)
    ti, tj = env.types[first], env.types[second]
    rows[:, 0] -= p.davg[ti]
    deviation = p.dstd[ti][:, [0, 1, 1, 1]]
    table = p.network[ti, tj]
    return _Pairs(
        center, first, second, displacement, rows / deviation, derivatives / deviation[:, :, None], table,
        env.types[env.centers], free,
    )  # fmt: skip


def moments(env: Environment, p: SeAParameters, e: Embedding) -> tuple[Floats, float]:
    """See `contract.SeAOps.moments`."""
    q = _pairs(env, p)
    g, _ = e.table.evaluate(q.rows[:, 0], q.table)
    result = np.zeros((len(env.centers), 4, e.table.n_channels), g.dtype)
    np.add.at(result, q.center, q.rows.astype(g.dtype)[:, :, None] * g[:, None, :])
    result[:, 0] += np.einsum("ct,ctm->cm", q.free.astype(g.dtype), e.empty[q.center_types])
    return result * g.dtype.type(p.scale), float(q.rows[:, 0].max(initial=-np.inf))


def features(moments: Floats, axis: int) -> Floats:
    """See `contract.SeAOps.features`."""
    return np.einsum("nam,nak->nmk", moments, moments[:, :, :axis]).reshape(len(moments), -1)


def features_adjoint(moments: Floats, adjoint: Floats) -> Floats:
    """See `contract.SeAOps.features_adjoint`."""
    n, _, m = moments.shape
    y = adjoint.reshape(n, m, -1)
    axis = y.shape[2]
    result = np.einsum("nmk,nak->nam", y, moments[:, :, :axis])
    result[:, :, :axis] += np.einsum("nmk,nam->nak", y, moments)
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
    q = _pairs(env, p)
    g, dg = e.table.evaluate(q.rows[:, 0], q.table)
    adjoint = moments_adjoint[q.center] * p.scale
    rows_adjoint = np.einsum("nam,nm->na", adjoint, g)
    rows_adjoint[:, 0] += np.einsum("nam,na,nm->n", adjoint, q.rows, dg)
    gradient = np.einsum("na,nax->nx", rows_adjoint, q.derivatives)  # ∂E_i/∂r_ij
    np.add.at(forces, q.first, gradient)
    np.add.at(forces, q.second, -gradient)
    virial = -gradient[:, :, None] * q.displacement[:, None, :]
    center_virial[:] = 0.0
    np.add.at(center_virial, q.center, virial)
    if atom_virial is not None:
        np.add.at(atom_virial, q.second, virial)


def _rows_tangent(q: _Pairs, direction: NDArray[np.float64], strain: NDArray[np.float64]) -> NDArray[np.float64]:
    r_dot = direction[q.second] - direction[q.first]
    r_dot = r_dot + np.einsum("nxy,ny->nx", strain[q.center], q.displacement)
    return np.einsum("nax,nx->na", q.derivatives, r_dot)


def tangent(
    env: Environment, p: SeAParameters, e: Embedding, direction: NDArray[np.float64], strain: NDArray[np.float64]
) -> Floats:
    """See `contract.SeAOps.tangent`."""
    q = _pairs(env, p)
    g, dg = e.table.evaluate(q.rows[:, 0], q.table)
    rows_dot = _rows_tangent(q, direction, strain)
    g_dot = dg * rows_dot[:, :1]
    result = np.zeros((len(env.centers), 4, e.table.n_channels), np.float64)
    np.add.at(result, q.center, rows_dot[:, :, None] * g[:, None, :] + q.rows[:, :, None] * g_dot[:, None, :])
    return (result * p.scale).astype(g.dtype)


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
    q = _pairs(env, p)
    rows_dot = _rows_tangent(q, direction, strain)
    bar, bar_dot = moments_adjoint[q.center] * p.scale, tangent_adjoint[q.center] * p.scale
    g_bar = np.einsum("nam,na->nm", bar, q.rows) + np.einsum("nam,na->nm", bar_dot, rows_dot)
    slope_bar = np.einsum("nam,na->nm", bar_dot, q.rows) * rows_dot[:, :1]
    coefficients = np.zeros(e.table.coefficients.shape, np.float64)
    for w in np.unique(q.table):
        here = q.table == w
        grid = e.table.grids[w]
        index, t = grid.locate(q.rows[here, 0])
        slope_per_t = slope_bar[here] / grid.widths[index][:, None]
        for k in range(6):
            term = g_bar[here] * (t**k)[:, None]
            if k:
                term = term + slope_per_t * (k * t ** (k - 1))[:, None]
            np.add.at(coefficients[w, :, k], index, term)
    empty = np.zeros(e.empty.shape, np.float64)
    first_row = moments_adjoint[:, 0] * p.scale
    np.add.at(empty, q.center_types, q.free[:, :, None] * first_row[:, None, :])
    return coefficients, empty
