"""Ghosts: copies of the atoms around a rank's brick, from other ranks or from the far side of the box.

`build_ghosts` goes one direction at a time and passes on the ghosts of the directions before, so that
six messages reach all 26 bricks around.  Where a brick is thinner than the reach, atoms travel several
hops; a rank may be its own neighbor, through the box's end, any number of times (a small cell with
many images is no special case).  What was sent and received is kept as a list of `Swap`s, which
`refresh_ghosts` replays every step and `reduce_ghost_forces` runs backwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.state import GHOSTED, State, row_dtype
from dphpc.parallel.comm import Communicator
from dphpc.parallel.domain import Domain
from dphpc.parallel.migrate import exchange_rows


@dataclass(frozen=True)
class Swap:
    """One message of a halo exchange.

    Attributes
    ----------
    to, source
        Ranks to send to and to receive from, or `NOBODY`.
    send
        (n_send,) which atoms (local or ghosts received earlier) go.
    first, last
        The ghosts that arrive.
    """

    to: int
    source: int
    send: NDArray[np.int32]
    first: int
    last: int


class Halo:
    """The ghosts of one rank's brick; also the `Halo` that a potential may use."""

    def __init__(self, domain: Domain, comm: Communicator) -> None:
        self.domain, self.comm = domain, comm
        self._swaps: list[Swap] = []
        self._displacements = np.zeros((0, 3))
        self._buffer = np.zeros(0, np.uint8)

    @property
    def memory(self) -> int:
        """Bytes that the exchange keeps between rebuilds."""
        return sum(s.send.nbytes for s in self._swaps) + self._displacements.nbytes + self._buffer.nbytes

    def build_ghosts(self, state: State, reach: float) -> None:
        """Give the state all ghosts within `reach` (Å) of the brick; collective.

        Local atoms must be wrapped and in their owner's brick (`migrate`).
        """
        state.resize(state.n_local, 0)
        self._swaps.clear()
        shifts = np.zeros((state.n_local, 3), np.int32)
        for axis in range(3):
            shifts = self._build_along(axis, state, shifts, reach)
        ghosts = slice(state.n_local, state.n_all)
        self._displacements = shifts[ghosts] @ state.box.matrix
        # Until here ghosts carry their owner's position: one expression forms a ghost's, whatever its route.
        state.positions[ghosts] += self._displacements
        largest = max((max(len(s.send), s.last - s.first) for s in self._swaps), default=0)
        self._buffer = np.empty(largest * 24, np.uint8)

    def refresh_ghosts(self, state: State) -> None:
        """Bring the ghosts' positions up to date; collective."""
        self.refresh(state.positions)
        ghosts = state.positions[state.n_local :]
        np.add(ghosts, self._displacements, out=ghosts)

    def reduce_ghost_forces(self, state: State) -> None:
        """Add the forces on ghosts to their owners'; collective."""
        self.reduce(state.forces)

    def refresh(self, array: NDArray) -> None:
        """Overwrite the ghost part of a per-atom array (n_all, …) with the owners' values; collective."""
        for swap in self._swaps:
            buffer = self._view(array, len(swap.send))
            np.take(array, swap.send, axis=0, out=buffer, mode="clip")
            self.comm.sendrecv(buffer, swap.to, array[swap.first : swap.last], swap.source)

    def reduce(self, array: NDArray) -> None:
        """Add the ghost part of a per-atom array (n_all, …) to the owners' entries and zero it; collective."""
        for swap in reversed(self._swaps):
            buffer = self._view(array, len(swap.send))
            buffer[...] = 0  # stays so where nobody is there to send
            ghosts = array[swap.first : swap.last]
            self.comm.sendrecv(ghosts, swap.source, buffer, swap.to)
            array[swap.send] += buffer  # an atom is at most once in a swap
            ghosts[...] = 0

    def _build_along(self, axis: int, state: State, shifts: NDArray[np.int32], reach: float) -> NDArray[np.int32]:
        """Exchange in both senses of one direction; returns the shifts of all atoms so far."""
        low, high = self.domain.interval(axis)
        width = reach / state.box.heights[axis]
        start = state.n_all
        coordinate = _coordinate(state, shifts, axis, 0)
        all_shifts = [shifts]
        for direction in (1, -1):
            candidates, where = np.arange(start, dtype=np.int32), coordinate
            for _ in range(self.domain.hops(axis, reach)):
                near = where > high - width if direction > 0 else where < low + width
                first = state.n_all
                received = self._swap(axis, direction, state, candidates[near], all_shifts)
                all_shifts.append(received)
                candidates = np.arange(first, state.n_all, dtype=np.int32)
                where = _coordinate(state, received, axis, first)
        return np.concatenate(all_shifts)

    def _swap(
        self, axis: int, direction: int, state: State, send: NDArray[np.int32], shifts: list[NDArray[np.int32]]
    ) -> NDArray[np.int32]:
        """One hop: send atoms one brick on, append what arrives as ghosts and return its shifts."""
        rows = np.empty(len(send), row_dtype(GHOSTED, ("shift", np.int32, (3,))))
        for f in GHOSTED:
            rows[f.name] = getattr(state, f.name)[send]
        rows["shift"] = _take(shifts, send)
        if self.domain.crosses(axis, direction):
            rows["shift"][:, axis] -= direction
        to, source = self.domain.partner(axis, direction), self.domain.partner(axis, -direction)
        received = exchange_rows(self.comm, rows, to, source)
        first = state.n_all
        state.resize(state.n_local, state.n_ghost + len(received))
        for f in GHOSTED:
            getattr(state, f.name)[first:] = received[f.name]
        self._swaps.append(Swap(to, source, send, first, state.n_all))
        return np.ascontiguousarray(received["shift"])

    def _view(self, array: NDArray, n: int) -> NDArray:
        """The persistent buffer as n rows of the array's shape and type."""
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        if len(self._buffer) < n * row_bytes:
            self._buffer = np.empty(n * row_bytes, np.uint8)
        return self._buffer[: n * row_bytes].view(array.dtype).reshape(n, *array.shape[1:])


def _coordinate(state: State, shifts: NDArray[np.int32], axis: int, first: int) -> NDArray[np.float64]:
    """Fractional coordinate along `axis` of the atoms from `first` on, which stand `shifts` from their owners."""
    inverse = state.box.inverse[:, axis]
    return (state.positions[first:] - state.box.origin) @ inverse + shifts[:, axis]


def _take(parts: list[NDArray[np.int32]], index: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rows of an array that is held in parts; `index` ascends."""
    bounds = np.cumsum([0, *(len(p) for p in parts)])
    cuts = np.searchsorted(index, bounds)
    taken = [p[index[a:b] - start] for p, start, a, b in zip(parts, bounds[:-1], cuts[:-1], cuts[1:], strict=True)]
    return np.concatenate(taken)
