"""Migration: atoms that have left their rank's brick move to the rank that owns their position."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import RunError
from dphpc.core.state import MIGRATING, State, pieces
from dphpc.parallel.comm import Communicator
from dphpc.parallel.domain import Domain


def migrate(state: State, domain: Domain, comm: Communicator) -> None:
    """Wrap the local atoms into the box and send each to its owner, however far away; collective.  Drops the ghosts."""
    state.resize(state.n_local, 0)
    wrap_(state)
    if domain.grid == (1, 1, 1):
        return
    leaves = domain.outside(state.positions, domain.own)
    moving = State(state.box)
    moving.append_local(state.rows(MIGRATING, np.flatnonzero(leaves)))
    deal(moving, domain, comm)
    if leaves.any():
        state.keep_local(np.flatnonzero(~leaves))
    state.append_local(moving.rows(MIGRATING, np.arange(moving.n_local)))


def deal(state: State, domain: Domain, comm: Communicator) -> None:
    """Send a state's wrapped atoms to their owners; afterwards it holds those of this rank.  Collective.

    One direction after the other.  Messages go only over distances in the grid that some atom of some rank travels.
    """
    distances = _distances_in_use(state, domain, comm)
    for axis in range(3):
        target = _target(state, domain, axis)
        distance = (target - domain.coordinates[axis]) % domain.grid[axis]
        leaving = [state.rows(MIGRATING, np.flatnonzero(distance == d)) for d in distances[axis]]
        if (distance != 0).any():
            state.keep_local(np.flatnonzero(distance == 0))
        for d, rows in zip(distances[axis], leaving, strict=True):
            to, source = _ring(domain, axis, d), _ring(domain, axis, -d)
            state.append_local(exchange_rows(comm, rows, to, source))


def wrap_(state: State) -> None:
    """Move local atoms into the box along its periodic directions, and count the box vectors in `images`."""
    for piece in pieces(state.n_local):
        shifts = state.box.wrap_shifts(state.positions[piece])
        out = np.flatnonzero(shifts.any(axis=1))
        state.positions[piece][out] -= shifts[out] @ state.box.matrix
        state.images[piece][out] += shifts[out]


def check_count(state: State, expected: int, comm: Communicator) -> None:
    """Check that no atom was lost; collective.

    Raises
    ------
    RunError
        The ranks together do not hold `expected` atoms.
    """
    found = int(comm.allreduce(np.array([state.n_local], np.int64))[0])
    if found != expected:
        error = RunError(f"{expected - found} of {expected} atoms were lost between the ranks")
        error.agreed, error.speaks = True, comm.rank == 0
        raise error


def exchange_rows(comm: Communicator, rows: NDArray, to: int, source: int) -> NDArray:
    """Send rows to one other rank, and receive those of one other, whatever their number."""
    n_rows, n_received = np.array([len(rows)], np.int64), np.zeros(1, np.int64)
    comm.post([(to, n_rows)], [(source, n_received)]).wait()
    received = np.empty((int(n_received[0]), *rows.shape[1:]), rows.dtype)
    comm.post([(to, rows)], [(source, received)]).wait()
    return received


def sort_spatially(state: State, domain: Domain, cell: float) -> None:
    """Order the local atoms by cells of about `cell` Å, so that neighbors are near in memory; drops the ghosts."""
    key = np.zeros(state.n_local, np.int64)
    for piece in pieces(state.n_local):
        for axis in range(3):
            low, high = domain.interval(axis)
            n_cells = max(1, int((high - low) * state.box.heights[axis] / cell))
            fractional = state.box.fractional(state.positions[piece], axis)
            place = ((fractional - low) * (n_cells / (high - low))).astype(np.int64)
            key[piece] *= n_cells
            key[piece] += np.clip(place, 0, n_cells - 1)
    state.keep_local(np.argsort(key, kind="stable"))


def _target(state: State, domain: Domain, axis: int) -> NDArray[np.intp]:
    return domain.place(state.box.fractional(state.positions[: state.n_local], axis), axis)


def _distances_in_use(state: State, domain: Domain, comm: Communicator) -> list[list[int]]:
    """For each direction the distances, in bricks up the ring, that some atom of some rank travels."""
    used = []
    for axis in range(3):
        distance = (_target(state, domain, axis) - domain.coordinates[axis]) % domain.grid[axis]
        used.append(np.bincount(distance, minlength=domain.grid[axis]) > 0)
    everywhere = comm.allreduce(np.concatenate(used).astype(np.int64), "max")
    parts = np.split(everywhere, np.cumsum(domain.grid)[:-1])
    return [[int(d) for d in np.flatnonzero(part) if d] for part in parts]


def _ring(domain: Domain, axis: int, distance: int) -> int:
    """The rank `distance` bricks up the grid, cyclic even where the box is not periodic."""
    where = list(domain.coordinates)
    where[axis] = (where[axis] + distance) % domain.grid[axis]
    return int(np.ravel_multi_index(where, domain.grid))
