"""Ghosts: copies of the atoms around a rank's brick, from other ranks or from the far side of the box.

`build_ghosts` finds them one direction at a time and passes on the ghosts of the directions before, so that six
messages reach all 26 bricks around.  Where a brick is thinner than the reach, atoms travel several hops; a rank may be
its own neighbor, through the box's end, any number of times (a small cell with many images is no special case).

What is sent every step goes straight from owner to ghost, one message for each pair of ranks: ghosts stand in memory by
their owners' ranks, so that messages arrive where they belong.  `start_refresh` and `start_reduce` leave the messages
under way, while the caller works on atoms that need none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.state import GHOSTED, State, row_dtype
from dphpc.parallel.comm import Communicator, Exchange
from dphpc.parallel.domain import Domain
from dphpc.parallel.flight import Flight
from dphpc.parallel.migrate import exchange_rows

_ORIGIN = (("shift", np.int32, (3,)), ("home", np.int32, ()), ("index", np.int32, ()))


@dataclass(frozen=True)
class Routes:
    """Which atoms are whose ghosts, as the last `build_ghosts` found it.

    Attributes
    ----------
    partners
        The ranks that this one exchanges messages with.
    send
        (n_send,) local atoms that are ghosts: of this rank itself first, then of one partner after the other.
    send_bounds, ghost_bounds
        (len(partners) + 2,) where the parts of this rank and of each partner begin and end in `send`, and among the
        ghosts.
    displacements
        (n_ghost, 3) Å, whole box vectors from each ghost's owner to it.
    """

    partners: list[int]
    send: NDArray[np.int32]
    send_bounds: NDArray[np.int64]
    ghost_bounds: NDArray[np.int64]
    displacements: NDArray[np.float64]


class Halo:
    """The ghosts of one rank's brick; also the `Halo` that a potential may use."""

    def __init__(self, domain: Domain, comm: Communicator) -> None:
        self.domain, self.comm = domain, comm
        self._n_local = 0
        self._send = np.zeros(0, np.int32)  # local atoms in the order of the ranks that have them as ghosts
        self._send_bounds = self._ghost_bounds = np.zeros(2, np.int64)  # of each partner, and of this rank itself
        self._partners: list[int] = []
        self._displacements = np.zeros((0, 3))
        self._buffer = np.zeros(0, np.uint8)

    @property
    def routes(self) -> Routes:
        """What a halo needs that keeps its atoms elsewhere; not to be changed."""
        return Routes(self._partners, self._send, self._send_bounds, self._ghost_bounds, self._displacements)

    @property
    def homes(self) -> NDArray[np.int64]:
        """(n_ghost,) the rank that owns each ghost."""
        return np.repeat([self.comm.rank, *self._partners], np.diff(self._ghost_bounds))

    @property
    def n_messages(self) -> int:
        """Messages that this rank sends in one refresh."""
        return int(np.count_nonzero(np.diff(self._send_bounds)[1:]))

    @property
    def bytes_sent(self) -> int:
        """Bytes of positions that this rank sends to others in one refresh."""
        return 24 * int(self._send_bounds[-1] - self._send_bounds[1])

    def build_ghosts(self, state: State, reach: float) -> None:
        """Give the state all ghosts within `reach` (Å) of the brick; collective.

        Local atoms must be wrapped and in their owner's brick (`migrate`).
        """
        n = self._n_local = state.n_local
        state.resize(n, 0)
        origin = np.zeros(n, np.dtype(list(_ORIGIN)))
        origin["home"], origin["index"] = self.comm.rank, np.arange(n)
        for axis in range(3):
            origin = self._build_along(axis, state, origin, reach)
        self._address(state, origin[n:], reach)
        # Until here ghosts carry their owner's position: one expression forms a ghost's, whatever its route.
        self._displace(state, slice(None))

    def start_refresh(self, state: State) -> Flight:
        """Begin to bring the ghosts' positions up to date; local atoms must stay until it has landed.  Collective."""
        exchange = self._start_refresh(state.positions)
        own = int(self._ghost_bounds[1])
        self._displace(state, slice(0, own))  # no need to wait for these
        return Flight(exchange, lambda: self._displace(state, slice(own, None)))

    def start_reduce(self, state: State) -> Flight:
        """Begin to add the forces on ghosts to their owners'; ghosts' must stay until it has landed.  Collective."""
        return self._start_reduce(state.forces)

    def refresh_ghosts(self, state: State) -> None:
        """Bring the ghosts' positions up to date; collective."""
        self.start_refresh(state).land()

    def refresh(self, array: NDArray) -> None:
        """Overwrite the ghost part of a per-atom array (n_all, …) with the owners' values; collective."""
        self._start_refresh(array).wait()

    def reduce(self, array: NDArray) -> None:
        """Add the ghost part of a per-atom array (n_all, …) to the owners' entries and zero it; collective."""
        self._start_reduce(array).land()

    def _displace(self, state: State, which: slice) -> None:
        ghosts = state.positions[state.n_local :][which]
        np.add(ghosts, self._displacements[which], out=ghosts)

    def _start_refresh(self, array: NDArray) -> Exchange:
        buffer = self._view(array)
        np.take(array, self._send, axis=0, out=buffer, mode="clip")
        ghosts = array[self._n_local :]
        own = self._send_bounds[1]
        ghosts[:own] = buffer[:own]
        return self.comm.post(self._parts(buffer, self._send_bounds), self._parts(ghosts, self._ghost_bounds))

    def _start_reduce(self, array: NDArray) -> Flight:
        buffer, ghosts = self._view(array), array[self._n_local :]
        own = self._send_bounds[1]
        buffer[:own] = ghosts[:own]
        exchange = self.comm.post(self._parts(ghosts, self._ghost_bounds), self._parts(buffer, self._send_bounds))

        def finish() -> None:
            # Column by column: NumPy adds single numbers several times faster than rows.
            for column, back in zip(_columns(array), _columns(buffer), strict=True):
                np.add.at(column, self._send, back)
            ghosts[...] = 0

        return Flight(exchange, finish)

    def _parts(self, array: NDArray, bounds: NDArray[np.int64]) -> list[tuple[int, NDArray]]:
        """The partners' parts of an array, this rank's own left out."""
        pieces = zip(self._partners, bounds[1:-1].tolist(), bounds[2:].tolist(), strict=True)
        return [(rank, array[first:last]) for rank, first, last in pieces if last > first]

    # How ghosts are found.

    def _build_along(self, axis: int, state: State, origin: NDArray, reach: float) -> NDArray:
        """Exchange in both senses of one direction; returns where all atoms so far come from."""
        low, high = self.domain.interval(axis)
        width = reach / state.box.heights[axis]
        start = state.n_all
        coordinate = _coordinate(state, origin, axis, 0)
        parts = [origin]
        for direction in (1, -1):
            candidates, where = np.arange(start), coordinate
            for _ in range(self.domain.hops(axis, reach)):
                near = where > high - width if direction > 0 else where < low + width
                first = state.n_all
                received = self._hop(axis, direction, state, candidates[near], parts)
                parts.append(received)
                candidates = np.arange(first, state.n_all)
                where = _coordinate(state, received, axis, first)
        return np.concatenate(parts)

    def _hop(self, axis: int, direction: int, state: State, send: NDArray[np.int64], origins: list[NDArray]) -> NDArray:
        """Send atoms one brick on, append what arrives as ghosts and return where it comes from."""
        rows = np.empty(len(send), row_dtype(GHOSTED, *_ORIGIN))
        for f in GHOSTED:
            rows[f.name] = getattr(state, f.name)[send]
        origin = _take(origins, send)
        for name, *_ in _ORIGIN:
            rows[name] = origin[name]
        if self.domain.crosses(axis, direction):
            rows["shift"][:, axis] -= direction
        to, source = self.domain.partner(axis, direction), self.domain.partner(axis, -direction)
        received = exchange_rows(self.comm, rows, to, source)
        first = state.n_all
        state.resize(state.n_local, state.n_ghost + len(received))
        for f in GHOSTED:
            getattr(state, f.name)[first:] = received[f.name]
        arrived = np.empty(len(received), origin.dtype)
        for name, *_ in _ORIGIN:
            arrived[name] = received[name]
        return arrived

    def _address(self, state: State, origin: NDArray, reach: float) -> None:
        """Sort the ghosts by owner, tell each owner which of its atoms are ghosts here, and learn the same."""
        partners = self._partners = self.domain.around(reach)
        ranks = np.array([self.comm.rank, *partners])
        place = np.argsort(ranks)
        of_ghost = place[np.searchsorted(ranks, origin["home"], sorter=place)]
        order = np.argsort(of_ghost, kind="stable")
        state.reorder_ghosts(order)
        origin = origin[order]
        self._displacements = origin["shift"] @ state.box.matrix
        counts = np.bincount(of_ghost, minlength=len(ranks))
        self._ghost_bounds = np.concatenate(([0], np.cumsum(counts)))
        wanted = np.zeros(len(ranks), np.int64)
        wanted[0] = counts[0]
        self.comm.post(
            [(rank, counts[k + 1 : k + 2]) for k, rank in enumerate(partners)],
            [(rank, wanted[k + 1 : k + 2]) for k, rank in enumerate(partners)],
        ).wait()
        self._send_bounds = np.concatenate(([0], np.cumsum(wanted)))
        index, self._send = np.ascontiguousarray(origin["index"]), np.empty(wanted.sum(), np.int32)
        self._send[: wanted[0]] = index[: counts[0]]
        self.comm.post(self._parts(index, self._ghost_bounds), self._parts(self._send, self._send_bounds)).wait()

    def _view(self, array: NDArray) -> NDArray:
        """The persistent buffer as one row of the array's shape and type for each atom that is sent."""
        n = len(self._send)
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        if len(self._buffer) < n * row_bytes:
            self._buffer = np.empty(n * row_bytes, np.uint8)
        return self._buffer[: n * row_bytes].view(array.dtype).reshape(n, *array.shape[1:])


def _columns(array: NDArray) -> NDArray:
    """(k, n) view of an array (n, …) with k numbers in each row."""
    return array.reshape(len(array), math.prod(array.shape[1:])).T


def _coordinate(state: State, origin: NDArray, axis: int, first: int) -> NDArray[np.float64]:
    """Fractional coordinate along `axis` of the atoms from `first` on, which stand shifted from their owners."""
    return state.box.fractional(state.positions[first : first + len(origin)], axis) + origin["shift"][:, axis]


def _take(parts: list[NDArray], index: NDArray[np.int64]) -> NDArray:
    """Rows of an array that is held in parts; `index` ascends."""
    bounds = np.cumsum([0, *(len(p) for p in parts)])
    cuts = np.searchsorted(index, bounds)
    taken = [p[index[a:b] - start] for p, start, a, b in zip(parts, bounds[:-1], cuts[:-1], cuts[1:], strict=True)]
    return np.concatenate(taken)
