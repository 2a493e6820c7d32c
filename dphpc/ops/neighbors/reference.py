"""Neighbor search by all distances: plain, slow, obviously right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc.ops.neighbors.contract import Neighbors


def build_neighbors(
    positions: NDArray[np.float64],
    types: NDArray[np.int32],
    ids: NDArray[np.int64],
    n_local: int,
    reach: float,
) -> Neighbors:
    """See `contract.BuildNeighbors`."""
    rows = []
    for i in range(n_local):
        r2 = ((positions - positions[i]) ** 2).sum(axis=1)
        near = np.flatnonzero(r2 < reach * reach)
        near = near[near != i]
        x, y, z = positions[near].T
        rows.append(near[np.lexsort((z, y, x, ids[near], types[near]))].astype(np.int32))
    offsets = np.zeros(n_local + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Neighbors(offsets, np.concatenate(rows) if rows else np.zeros(0, np.int32), reach)
