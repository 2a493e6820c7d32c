"""One structure in one process: its atoms, their periodic images as ghosts, and the neighbor list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.box import MAX_COORDINATE, MIN_HEIGHT, Box
from dphpc.core.errors import DataError, InputError
from dphpc.core.images import fold_ghosts, periodic_images
from dphpc.core.state import State
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.neighbors.native import build_neighbors


@dataclass(frozen=True)
class Surroundings:
    """Atoms, images and neighbor list of a structure, and which atom each image belongs to.

    Attributes
    ----------
    owners
        (n_ghost,) the atom whose image a ghost is.
    displacements
        (n_ghost, 3) Å from an atom to its image.
    wrapping
        (n_local, 3) Å, subtracted from each position to bring it into the box.
    """

    state: State
    neighbors: Neighbors
    owners: NDArray[np.int32]
    displacements: Doubles
    wrapping: Doubles

    @classmethod
    def of(cls, positions: Doubles, box: Box | None, types: NDArray[np.int32], reach: float) -> Surroundings:
        """Images and neighbors within `reach` (Å) of positions (n, 3) Å with types (n,); without a box it is open.

        Raises
        ------
        DataError
            A position is not finite or beyond `MAX_COORDINATE`, or the box is thinner than `MIN_HEIGHT`.
        """
        _check_positions(positions)
        box = box or Box.around(positions)
        height = min((h for h, repeats in zip(box.heights, box.periodic, strict=True) if repeats), default=np.inf)
        if height < MIN_HEIGHT:
            raise DataError(f"the cell repeats at {height:.3g} Å", expected=f"{MIN_HEIGHT} Å or more, lengths in Å")
        n = len(positions)
        wrapping = box.wrap_shifts(positions) @ box.matrix
        wrapped = positions - wrapping
        owners, shifts = periodic_images(wrapped, box, reach)
        displacements = shifts @ box.matrix
        state = State(box, n)
        state.resize(n, len(owners))
        state.ids[:n], state.ids[n:] = np.arange(n), owners
        state.types[:n], state.types[n:] = types, types[owners]
        state.positions[:n], state.positions[n:] = wrapped, wrapped[owners] + displacements
        neighbors = build_neighbors(state.positions, state.types, state.ids, n, reach)
        return cls(state, neighbors, owners, displacements, wrapping)

    def move_to(self, positions: Doubles) -> None:
        """Move atoms and images to new positions (n_local, 3) Å, not wrapped; the neighbor list stays."""
        n = self.state.n_local
        local, ghosts = self.state.positions[:n], self.state.positions[n:]
        np.subtract(positions, self.wrapping, out=local)
        np.add(local[self.owners], self.displacements, out=ghosts)

    def fold(self, array: Doubles) -> Doubles:
        """(n_local, …): a per-atom array (n_all, …) with each ghost's values added to its owner's."""
        return fold_ghosts(array, self.owners, self.state.n_local)


def _check_positions(positions: Doubles) -> None:
    """Raise DataError for positions (n, 3) that are not finite or too far away."""
    wrong = ~(np.abs(positions) <= MAX_COORDINATE).all(axis=1)  # true of NaN
    if wrong.any():
        atom = int(np.argmax(wrong))
        problem = f"beyond {MAX_COORDINATE:g} Å" if np.isfinite(positions[atom]).all() else "not finite"
        raise DataError(f"the position of atom {atom} is {problem}")


def nearest_pair(positions: Doubles, neighbors: Neighbors) -> tuple[int, int]:
    """Indices of the two nearest atoms of a neighbor list; positions (n_all, 3) Å."""
    first = np.repeat(np.arange(len(neighbors.offsets) - 1), np.diff(neighbors.offsets))
    distances = np.linalg.norm(positions[neighbors.indices] - positions[first], axis=1)
    k = int(np.argmin(distances))
    return int(first[k]), int(neighbors.indices[k])


class KeptSurroundings:
    """The surroundings of a structure whose atoms move, rebuilt only when necessary.

    Parameters
    ----------
    cutoff
        Å that the neighbor list must reach at any time.
    skin
        Å that it reaches beyond the cutoff when built.  It is rebuilt when an atom has moved by half of that, or cell,
        boundaries or types have changed.

    Attributes
    ----------
    builds
        How often the list was built.

    Raises
    ------
    InputError
        The skin is negative.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if not skin >= 0.0:
            raise InputError(f"the skin is {skin} Å", expected="0 or more")
        self.cutoff, self.skin = cutoff, skin
        self.builds = 0
        self._kept: Surroundings | None = None
        self._key: tuple[NDArray, ...] = ()
        self._built_at = np.zeros((0, 3))

    def at(
        self, positions: Doubles, cell: Doubles, periodic: NDArray[np.bool_], types: NDArray[np.int32]
    ) -> Surroundings:
        """The surroundings at these positions (n, 3) Å, in a cell as `Box.of_cell` takes it.

        The returned object is overwritten by the next call.

        Raises
        ------
        DataError
            A position is not finite or too far away, or the cell spans no volume or is too thin.
        """
        key = (cell, periodic, types)
        if self._kept is not None and all(map(np.array_equal, key, self._key)) and self._near(positions):
            self._kept.move_to(positions)
            return self._kept
        self._kept = None  # frees the old list before the new one is made, and leaves none after a failure
        _check_positions(positions)
        box = Box.of_cell(cell, periodic, positions)
        self._kept = Surroundings.of(positions, box, types, self.cutoff + self.skin)
        self._key, self._built_at = tuple(np.array(part) for part in key), positions.copy()
        self.builds += 1
        return self._kept

    def __getstate__(self) -> dict[str, Any]:
        # A copy or pickle builds a list of its own.
        return {**self.__dict__, "_kept": None, "_key": (), "_built_at": np.zeros((0, 3))}

    def _near(self, positions: Doubles) -> bool:
        moved = positions - self._built_at
        # A NaN fails the comparison.
        return bool(np.einsum("ij,ij->i", moved, moved).max(initial=0.0) < (0.5 * self.skin) ** 2)
