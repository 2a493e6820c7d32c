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
        (n_pairs,) int32 into the local atoms and ghosts; within a row sorted by the neighbor's type,
        then by its id, then by its position: in the same order
        whatever the order of the atoms in memory.  Every pair of a local atom is in its own row (full list).
    reach
        Å: all pairs nearer than this are listed (cutoff + skin); pairs between cutoff and reach may be.
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

    Ghosts stand explicitly in `positions`: no periodicity here.  `types` and `ids` (n_all,) order each row; a ghost
    has its owner's.
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
    """The error that a search raises, with the atom's place in `positions`."""
    kind = "local" if atom < n_local else "ghost"
    return RunError("a position is not finite", where=f"atom {atom} ({kind})", remedy="reduce the time step")
