"""Ghosts: copies of the atoms around a rank's brick, from other ranks or from the far side of the box.

In `build_ghosts` each owner finds the bricks that need its atoms as ghosts: some of the 26 bricks around, or of more
where bricks are thinner than the reach.  Through the periodic boundary a rank may be its own neighbor, any number of
times, so that a small cell with many images is no special case.  Only atoms near the brick's faces are looked at: a
caller that keeps its atoms elsewhere (on a GPU) has to bring only these.

Messages go directly from owner to ghost, one for each pair of ranks.  Ghosts are stored in the order of their owners'
ranks, so that a message is received straight into its place.  `start_refresh` and `start_reduce` leave the messages
under way, while the caller works on atoms that do not depend on them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dphpc.core.state import GHOSTED, State
from dphpc.parallel.comm import Communicator, Exchange, Message
from dphpc.parallel.domain import Domain, Image
from dphpc.parallel.flight import Flight


@dataclass(frozen=True)
class Routes:
    """Which atoms are ghosts of which ranks, as found by the last `build_ghosts`.

    Attributes
    ----------
    partners
        The ranks that this one exchanges messages with.
    send
        (n_send,) local atoms that are ghosts somewhere: first those of this rank itself, then those of each partner.
    send_bounds, ghost_bounds
        (len(partners) + 2,) where the part of this rank and that of each partner begin and end, in `send` and among
        the ghosts.
    displacements
        (n_ghost, 3) Å, from each ghost's owner to the ghost: whole box vectors.
    """

    partners: list[int]
    send: NDArray[np.int32]
    send_bounds: NDArray[np.int64]
    ghost_bounds: NDArray[np.int64]
    displacements: NDArray[np.float64]

    @property
    def n_own(self) -> int:
        """Number of ghosts that are images of this rank's own atoms."""
        return int(self.ghost_bounds[1])

    def of_owners(self, array: NDArray) -> list[Message]:
        """What is exchanged of an array (n_send, …) beside the atoms in `send`."""
        return messages(self.partners, array, self.send_bounds[1:].tolist())

    def of_ghosts(self, array: NDArray) -> list[Message]:
        """What is exchanged of an array (n_ghost, …)."""
        return messages(self.partners, array, self.ghost_bounds[1:].tolist())


def messages(partners: Sequence[int], array: NDArray, bounds: Sequence[int]) -> list[Message]:
    """The parts of an array for or from partners, which begin and end at bounds (len(partners) + 1,)."""
    parts = zip(partners, bounds[:-1], bounds[1:], strict=True)
    return [(rank, array[first:last]) for rank, first, last in parts if last > first]


class Halo:
    """The ghosts of one rank's brick; also the `Halo` that a potential may use.

    Attributes
    ----------
    routes
        Not to be modified; a halo whose atoms are in GPU memory follows them.
    """

    def __init__(self, domain: Domain, comm: Communicator) -> None:
        self.domain, self.comm = domain, comm
        self._n_local = 0
        nothing = np.zeros(2, np.int64)
        self.routes = Routes([], np.zeros(0, np.int32), nothing, nothing, np.zeros((0, 3)))
        self._shifts, self._n_shifted = np.zeros((0, 3)), np.zeros(0, np.int64)
        self._buffer = np.zeros(0, np.uint8)

    def build_ghosts(self, state: State, reach: float) -> None:
        """Give the state all ghosts within `reach` (Å) of the brick; collective.

        Local atoms must be wrapped and in their owner's brick (`migrate`).
        """
        state.resize(state.n_local, 0)
        places = np.flatnonzero(self.domain.outside(state.positions, self.domain.interior(reach, images=True)))
        self.attach_ghosts(state, state.rows(GHOSTED, places), places, reach)

    def attach_ghosts(self, state: State, border: NDArray, places: NDArray[np.integer], reach: float) -> None:
        """As `build_ghosts`, but the atoms near faces are given and the state's are not looked at; collective.

        Parameters
        ----------
        border
            (n,) rows of the fields in `GHOSTED`: all local atoms outside of `Domain.interior` with `images`.
        places
            (n,) their places among the local atoms.
        """
        images, near = self.domain.images(reach), self._near(border["positions"], reach)
        partners = sorted({image.rank for image in images} - {self.comm.rank})
        ranks = [self.comm.rank, *partners]
        of_ranks = [[image for image in images if image.rank == rank] for rank in ranks]
        chosen = [list(map(near, of_rank)) for of_rank in of_ranks]
        sent = [np.array(list(map(len, of_rank)), np.int64) for of_rank in chosen]
        received = self._swap(partners, sent)
        send_bounds, ghost_bounds = (np.cumsum([0, *(n.sum() for n in counts)]) for counts in (sent, received))
        index = np.concatenate([np.zeros(0, np.intp), *itertools.chain(*chosen)])
        r = Routes(partners, places.take(index).astype(np.int32), send_bounds, ghost_bounds, np.zeros((0, 3)))
        packed, ghosts = border.take(index), np.empty(ghost_bounds[-1], border.dtype)
        ghosts[: r.n_own] = packed[: r.n_own]
        self.comm.post(r.of_owners(packed), r.of_ghosts(ghosts)).wait()
        # Seen from a partner, this brick is the image with the opposite shift, and the order of images is reversed.
        shifts = [image.shift for of_rank in of_ranks for image in reversed(of_rank)]
        self.routes = r
        self._shifts, self._n_shifted = np.array(shifts, np.float64).reshape(-1, 3), np.concatenate(received)
        self.follow_box(self.domain)
        state.set_ghosts(ghosts)
        self._n_local = state.n_local
        # The expression of `refresh_ghosts`, so that the positions have the same bits.
        self._displace(state, slice(None))

    def follow_box(self, domain: Domain) -> None:
        """Take over changed box vectors, with the same atoms on this rank; ghosts follow at the next refresh."""
        self.domain = domain
        displacements = np.repeat(self._shifts @ domain.box.matrix, self._n_shifted, axis=0)
        self.routes = replace(self.routes, displacements=displacements)

    def _near(self, positions: NDArray[np.float64], reach: float) -> Callable[[Image], NDArray[np.intp]]:
        """A function that gives, for an image, the indices of the positions within `reach` (Å) of its brick."""
        near: dict[tuple[int, int], NDArray[np.bool_]] = {}
        for axis in range(3):
            x, width = self.domain.box.fractional(positions, axis), reach / self.domain.box.heights[axis]
            for k in range(1, self.domain.hops(axis, reach) + 1):
                near[axis, k] = x > self.domain.interval(axis, k)[0] - width
                near[axis, -k] = x < self.domain.interval(axis, -k)[1] + width

        def places(image: Image) -> NDArray[np.intp]:
            return np.flatnonzero(np.logical_and.reduce([near[along] for along in enumerate(image.offset) if along[1]]))

        return places

    def _swap(self, partners: list[int], counts: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Send each partner its array of counts and receive its counts for this rank."""
        others = [counts[0], *map(np.empty_like, counts[1:])]
        ways = (list(zip(partners, way[1:], strict=True)) for way in (counts, others))
        self.comm.post(*ways).wait()
        return others

    def start_refresh(self, state: State) -> Flight:
        """Begin to refresh the ghosts' positions; local atoms must not move until it has landed.  Collective."""
        exchange = self._start_refresh(state.positions)
        own = self.routes.n_own
        self._displace(state, slice(0, own))  # own ghosts need no message
        return Flight(exchange, lambda: self._displace(state, slice(own, None)))

    def start_reduce(self, state: State) -> Flight:
        """Begin to add the forces on ghosts to their owners'; collective.

        Forces on ghosts of other ranks must not change until it has landed; those on images of this rank's own atoms
        are read only then.
        """
        return self._start_reduce(state.forces)

    def refresh_ghosts(self, state: State) -> None:
        """Set the ghosts' positions from their owners'; collective."""
        self.start_refresh(state).land()

    def refresh(self, array: NDArray) -> None:
        """Overwrite the ghost part of a per-atom array (n_all, …) with the owners' values; collective."""
        self._start_refresh(array).wait()

    def reduce(self, array: NDArray) -> None:
        """Add the ghost part of a per-atom array (n_all, …) to the owners' entries and zero it; collective."""
        self._start_reduce(array).land()

    def _displace(self, state: State, which: slice) -> None:
        ghosts = state.positions[state.n_local :][which]
        np.add(ghosts, self.routes.displacements[which], out=ghosts)

    def _start_refresh(self, array: NDArray) -> Exchange:
        r, buffer, ghosts = self.routes, self._view(array), array[self._n_local :]
        np.take(array, r.send, axis=0, out=buffer, mode="clip")
        ghosts[: r.n_own] = buffer[: r.n_own]
        return self.comm.post(r.of_owners(buffer), r.of_ghosts(ghosts))

    def _start_reduce(self, array: NDArray) -> Flight:
        r, buffer, ghosts = self.routes, self._view(array), array[self._n_local :]
        exchange = self.comm.post(r.of_ghosts(ghosts), r.of_owners(buffer))

        def finish() -> None:
            buffer[: r.n_own] = ghosts[: r.n_own]
            # Column by column: NumPy adds single numbers several times faster than rows.
            for column, back in zip(_columns(array), _columns(buffer), strict=True):
                np.add.at(column, r.send, back)
            ghosts[...] = 0

        return Flight(exchange, finish)

    def _view(self, array: NDArray) -> NDArray:
        """The persistent buffer as (n_send, …), with rows of the array's shape and type."""
        n = len(self.routes.send)
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        if len(self._buffer) < n * row_bytes:
            self._buffer = np.empty(n * row_bytes, np.uint8)
        return self._buffer[: n * row_bytes].view(array.dtype).reshape(n, *array.shape[1:])


def _columns(array: NDArray) -> NDArray:
    """View (k, n) of an array (n, …) with k numbers in each row."""
    return array.reshape(len(array), math.prod(array.shape[1:])).T
