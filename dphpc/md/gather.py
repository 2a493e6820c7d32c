"""Gathers the atoms of all ranks sorted by id, a bounded number at a time, on the ranks that write."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from dphpc.parallel.comm import Communicator

CHUNK = 1 << 17
"""Most atoms on a writing rank at a time."""

Part = dict[str, NDArray]
"""`ids` and other fields of some atoms by name, (n, …) each."""


def slabs(
    ids: NDArray[np.int64], fields: Part, comm: Communicator, n_writers: int = 1, chunk: int = CHUNK
) -> Iterator[tuple[int, Part]]:
    """Give all ranks' atoms, sorted by id, slab by slab to the first `n_writers` ranks in turn; collective.

    Parameters
    ----------
    ids, fields
        Ids and other fields of this rank's atoms, (n_local, …) each.

    Yields
    ------
    The number of atoms before the slab, and the `ids` and fields of its atoms.  All ranks take part in every exchange;
    those that do not write, or for which no slab is left, receive no atoms.
    """
    order = np.argsort(ids)
    own = ids[order]
    n_atoms = int(comm.allreduce(np.array([len(ids)], np.int64))[0])
    chunk = max(1, min(chunk, -(-n_atoms // n_writers)))
    starts = np.arange(0, n_atoms, chunk)
    cuts = np.append(np.searchsorted(own, _ids_at(starts, own, comm)), len(own))
    for turn in range(0, len(starts), n_writers):
        ends = cuts[turn : turn + n_writers + 1]
        mine = order[ends[0] : ends[-1]]
        counts = np.zeros(comm.size, np.int64)
        counts[: len(ends) - 1] = np.diff(ends)
        coming = comm.exchange(counts)
        part = {
            name: _deal(np.take(array, mine, axis=0), counts, coming, comm)
            for name, array in {"ids": ids, **fields}.items()
        }
        if np.count_nonzero(coming) > 1:
            by_id = np.argsort(part["ids"], kind="stable")  # a merge: the rows from each rank are sorted
            part = {name: rows[by_id] for name, rows in part.items()}
        yield min((turn + comm.rank) * chunk, n_atoms), part


def collect(
    ids: NDArray[np.int64],
    fields: Part,
    comm: Communicator,
    write: Callable[[int, Part], None],
    close: Callable[[], None],
    n_writers: int = 1,
) -> Generator[None, None, Exception | None]:
    """Pass all atoms to `write` on the first `n_writers` ranks, in slabs, and call `close` there; collective.

    It yields after each slab, equally often on all ranks.

    Returns
    -------
    The first error of this rank's `write` and `close`.  It is not raised, so that no rank is left waiting; the ranks
    must agree on it afterwards.
    """
    error: Exception | None = None
    for first, part in slabs(ids, fields, comm, n_writers):
        if comm.rank < n_writers and error is None:
            try:
                write(first, part)
            except Exception as caught:
                error = caught
        yield
    if comm.rank < n_writers:
        try:
            close()
        except Exception as caught:
            error = error or caught
    return error


def _ids_at(places: NDArray[np.intp], own: NDArray[np.int64], comm: Communicator) -> NDArray[np.int64]:
    """The ids at `places` in the sorted ids of all ranks, of which `own`, sorted, are this rank's; collective.

    Ids may have gaps of any width, so they are found by bisection, all at once.
    """
    span = np.array([own[0], -own[-1]] if len(own) else [np.iinfo(np.int64).max] * 2, np.int64)
    low, high = (np.full(len(places), bound) for bound in comm.allreduce(span, "min") * [1, -1])
    while (low < high).any():
        middle = low + (high - low) // 2
        enough = comm.allreduce(np.searchsorted(own, middle, side="right")) > places
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


def _deal(rows: NDArray, counts: NDArray[np.int64], coming: NDArray[np.int64], comm: Communicator) -> NDArray:
    """Send the next `counts[k]` rows to each rank k in turn, receive `coming[k]` from it; collective."""
    if comm.size == 1:
        return rows
    received = np.empty((int(coming.sum()), *rows.shape[1:]), rows.dtype)
    sends = np.split(rows, np.cumsum(counts)[:-1])
    receives = np.split(received, np.cumsum(coming)[:-1])
    receives[comm.rank][...] = sends[comm.rank]
    comm.post(
        *([(k, p) for k, p in enumerate(parts) if len(p) and k != comm.rank] for parts in (sends, receives))
    ).wait()
    return received
