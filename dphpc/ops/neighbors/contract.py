"""What a neighbor search takes and returns, whatever builds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import RunError


@dataclass(frozen=True)
class Neighbors:
    """Neighbors of the local atoms in compressed rows.

    Attributes
    ----------
    offsets
        (n_local + 1,) int64: the neighbors of atom i are `indices[offsets[i]:offsets[i + 1]]`.
    indices
        (n_pairs,) int32 into the local atoms and ghosts.  A row is sorted by the neighbor's type, then its id, then its
        position, and so does not depend on the order of the atoms in memory.  The list is full: a pair of two local
        atoms is in the rows of both.
    reach
        Å (cutoff + skin); all pairs nearer than this are listed.
    """

    offsets: NDArray[np.int64]
    indices: NDArray[np.int32]
    reach: float

    @property
    def n_pairs(self) -> int:
        """Length of the list."""
        return len(self.indices)


class BuildNeighbors(Protocol):
    """Builds the list of all pairs nearer than `reach` among (n_all, 3) positions, rows for the first n_local.

    Periodic images are in `positions` as ghosts, after the local atoms; a ghost has its owner's type and id.  `types`
    and `ids` are (n_all,).
    """

    def __call__(
        self,
        positions: NDArray[np.float64],
        types: NDArray[np.int32],
        ids: NDArray[np.int64],
        n_local: int,
        reach: float,
    ) -> Neighbors: ...


def position_not_finite(atom: int, n_local: int) -> RunError:
    """The error of a neighbor search for the atom at this index of `positions`."""
    kind = "local" if atom < n_local else "ghost"
    return RunError("a position is not finite", where=f"atom {atom} ({kind})", remedy="reduce the time step")
