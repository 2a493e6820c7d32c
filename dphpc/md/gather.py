"""Atoms of all ranks, in the order of their ids, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from dphpc.parallel.comm import Communicator, agree

CHUNK = 1 << 17
"""Atoms on rank 0 at a time."""


def in_id_order(
    ids: NDArray[np.int64], fields: dict[str, NDArray], comm: Communicator, chunk: int = CHUNK
) -> Iterator[dict[str, NDArray]]:
    """Chunks of all ranks' atoms sorted by id; collective.

    Parameters
    ----------
    ids, fields
        Of this rank's atoms, (n_local, …) each.

    Yields
    ------
    On rank 0 the next atoms' `ids` and fields; on other ranks as many empty dictionaries, so that all
    take part in every exchange.
    """
    order = np.argsort(ids)
    own = ids[order]
    span = np.array([own[0], -own[-1]] if len(own) else [np.iinfo(np.int64).max] * 2, np.int64)
    low, high = comm.allreduce(span, "min") * [1, -1]
    n_atoms = int(comm.allreduce(np.array([len(ids)], np.int64))[0])
    if n_atoms == 0:
        return
    # Ids may have gaps: ranges of ids are wider by that much, so that a chunk holds about `chunk` atoms.
    width = max(1, int(chunk * ((int(high) - int(low) + 1) / n_atoms)))
    for start in range(int(low), int(high) + 1, width):
        mine = order[slice(*np.searchsorted(own, [start, start + width]))]
        parts = {"ids": comm.gather_rows(ids[mine])}
        parts |= {name: comm.gather_rows(array[mine]) for name, array in fields.items()}
        if parts["ids"] is None:
            yield {}
        elif len(parts["ids"]):
            by_id = np.argsort(parts["ids"])
            yield {name: rows[by_id] for name, rows in parts.items() if rows is not None}
        else:
            yield {}


def collect(
    ids: NDArray[np.int64],
    fields: dict[str, NDArray],
    comm: Communicator,
    write: Callable[[dict[str, NDArray]], None],
    chunk: int = CHUNK,
) -> None:
    """Hand all atoms to `write` on rank 0, chunk by chunk in the order of their ids; collective.

    An error of `write` is raised on all ranks once the exchange is over.
    """
    error: Exception | None = None
    for part in in_id_order(ids, fields, comm, chunk):
        if part and error is None:
            try:
                write(part)
            except Exception as caught:
                error = caught
    agree(comm, error)
