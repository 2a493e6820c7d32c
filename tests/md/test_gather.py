"""Atoms in the order of their ids, to one rank that writes or to several."""

import numpy as np
import pytest

from dphpc.core.errors import RunError
from dphpc.md.deferred import at_once
from dphpc.md.gather import collect, slabs
from dphpc.parallel.comm import Communicator, agree

IDS = {
    "gaps": np.array([3, 4, 9, 10, 11, 500, 501, 502, 90, 91, 1000]),
    "one far away": np.array([*range(1, 30), 10**15]),
    "fewer than ranks": np.array([7]),
    "none": np.array([], int),
}


@pytest.mark.mpi
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("all_write", [False, True])
def test_slabs_hold_all_atoms_in_order(comm: Communicator, ids: np.ndarray, chunk: int, all_write: bool) -> None:
    n_writers = comm.size if all_write else 1
    mine = np.random.default_rng(1).permutation(ids)[comm.rank :: comm.size]
    fields = {"x": mine[:, None] * [2.0, 3.0], "type": (mine % 5).astype(np.int32)}
    parts = list(slabs(mine, fields, comm, n_writers, chunk))
    assert all(len(part["ids"]) <= min(chunk, -(-len(ids) // n_writers)) for _, part in parts)
    assert comm.rank < n_writers or not any(len(part["ids"]) for _, part in parts)
    everywhere = sorted(
        (part for own in comm.allgather(parts) for part in own if len(part[1]["ids"])), key=lambda p: p[0]
    )
    place = 0
    for first, part in everywhere:
        assert first == place
        place += len(part["ids"])
        assert np.array_equal(part["ids"], np.sort(ids)[first:place])
        assert np.array_equal(part["x"], part["ids"][:, None] * [2.0, 3.0])
        assert np.array_equal(part["type"], part["ids"] % 5)
        assert part["type"].dtype == np.int32
    assert place == len(ids)


@pytest.mark.mpi
def test_what_one_rank_cannot_write_keeps_none_waiting(comm: Communicator) -> None:
    ids = np.arange(comm.rank, 100, comm.size)
    closed, last = [], comm.size - 1

    def write(first: int, part: dict[str, np.ndarray]) -> None:
        if comm.rank == last:
            raise OSError("full")

    error = at_once(collect(ids, {}, comm, write, lambda: closed.append(1), comm.size))
    assert closed == [1]
    assert isinstance(error, OSError) == (comm.rank == last)
    with pytest.raises((OSError, RunError), match="full"):
        agree(comm, error)
    error = at_once(collect(ids, {}, comm, lambda first, part: None, lambda: write(0, {}), comm.size))
    assert isinstance(error, OSError) == (comm.rank == last)
