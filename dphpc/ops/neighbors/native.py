"""Neighbor search by cells: the compiled kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc._native import kernels
from dphpc.ops.neighbors.contract import Neighbors, position_not_finite
from dphpc.ops.threads import get_threads


def build_neighbors(
    positions: NDArray[np.float64],
    types: NDArray[np.int32],
    ids: NDArray[np.int64],
    n_local: int,
    reach: float,
) -> Neighbors:
    """See `contract.BuildNeighbors`.

    The search is linear in the number of atoms at bounded density; before it one thread sorts atoms and ghosts by type
    and id.  Rows do not depend on the number of threads.
    Scratch: 56 bytes for each local atom and ghost.

    Raises
    ------
    RunError
        A position is not finite; the message names the atom's place in `positions`.
    """
    assert reach > 0.0 and 0 <= n_local <= len(positions) == len(types) == len(ids)
    positions = np.ascontiguousarray(positions, np.float64)
    types = np.ascontiguousarray(types, np.int32)
    ids = np.ascontiguousarray(ids, np.int64)
    try:
        offsets, indices = kernels.build_neighbors(positions, types, ids, n_local, reach, get_threads())
    except ValueError as error:
        raise position_not_finite(int(str(error)), n_local) from None
    return Neighbors(offsets, indices, reach)
