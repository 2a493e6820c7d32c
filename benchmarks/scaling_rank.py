"""What `scaling.py` starts on every rank: an MD run with each rank's phases and halo, or the network timed.

    mpirun -n 4 python benchmarks/scaling_rank.py md run.json
    mpirun -n 4 python benchmarks/scaling_rank.py network THREADS

Rank 0 prints one line, `RESULT` and JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dphpc.core.config import load_config
from dphpc.md.config import MdConfig
from dphpc.md.engine import Engine
from dphpc.md.run import Run
from dphpc.parallel.comm import Communicator, ends_together, world
from dphpc.parallel.migrate import migrate
from dphpc.parallel.placement import Placement, available_cores, placement

SIZES = tuple(8**k for k in range(1, 8))
"""Bytes of the messages timed: 8 to 2 M."""
COUNTED = 200_000
"""Atoms up to which the ghosts that a brick must have are counted one by one, for which a rank needs all atoms."""


def md(path: str, comm: Communicator) -> dict[str, Any]:
    """A run as the file says: seconds, phases and halo of every rank."""
    going = Run(load_config(MdConfig, path), comm, None)
    result, engine = going.go(), going.engine
    # Ghosts anew at the positions of now, so that what is there and what must be there are of one moment.
    migrate(engine.state, engine.domain, comm)
    engine.halo.build_ghosts(engine.state, engine.reach)
    sent = np.diff(engine.halo.routes.send_bounds)[1:]  # atoms whose positions go to each partner in a refresh
    own = {
        "atoms": engine.state.n_local, "ghosts": engine.state.n_ghost, "messages": int(np.count_nonzero(sent)),
        "bytes": 24 * int(sent.sum()), "least": least_ghosts(engine, comm), "seconds": result.seconds,
        "phases": result.phases,
    }  # fmt: skip
    box = engine.domain.box
    return {
        "steps": result.steps, "atoms": result.n_atoms, "rebuilds": result.rebuilds, "box": box.matrix.tolist(),
        "grid": engine.domain.grid, "reach": engine.reach, "ranks": comm.allgather(own),
    }  # fmt: skip


def least_ghosts(engine: Engine, comm: Communicator) -> tuple[int, int] | None:
    """Images of atoms within reach of this rank's brick, all and those of other ranks' atoms; None in large systems."""
    domain, state = engine.domain, engine.state
    if not all(domain.box.periodic) or engine.n_atoms > COUNTED:
        return None
    counts = []
    for positions in comm.allgather(state.positions[: state.n_local]):
        images = np.ones(len(positions), np.int64)
        fractional = domain.box.to_fractional(positions)
        for axis in range(3):
            (low, high), width = domain.interval(axis), engine.reach / domain.box.heights[axis]
            x = fractional[:, axis]
            # How many integers k bring x + k into [low − width, high + width).
            images *= (np.ceil(high + width - x) - np.ceil(low - width - x)).astype(np.int64)
        counts.append(int(images.sum()))
    others = sum(counts) - counts[comm.rank]
    return sum(counts) - state.n_local, others


def network(threads: str, comm: Communicator) -> dict[str, Any]:
    """Messages of two ranks to each other at once, a small all-reduce, and how crowded the cores are.

    The two are the first and the one half of all ranks away: on another node where there are several.
    """
    places = placement(comm, int(threads))
    found: dict[str, Any] = {"places": str(places), "crowding": crowding(places)}
    if comm.size == 1:
        return found
    far = comm.size // 2
    others, seconds = {0: [far], far: [0]}.get(comm.rank, []), []
    for size in SIZES:
        sends, receives = ([(rank, np.zeros(size, np.uint8)) for rank in others] for _ in range(2))
        comm.barrier()
        seconds.append(timed(lambda ways=(sends, receives): comm.post(*ways).wait(), max(10, min(500, 10**7 // size))))
    comm.barrier()
    numbers = np.zeros(3)
    allreduce = timed(partial(comm.allreduce, numbers, "max"), 200)
    return found | {"sizes": SIZES, "seconds": seconds, "allreduce": allreduce}


def timed(work: Callable[[], object], times: int) -> float:
    """Median seconds."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def crowding(places: Placement) -> float:
    """Threads for each core where there are most, at least 1."""
    return max(1.0, *(sum(p.threads for p in node) / available_cores(node) for node in places.nodes.values()))


def main() -> None:
    """One of both, on all ranks."""
    comm = world()
    with ends_together(comm):
        found = {"md": md, "network": network}[sys.argv[1]](sys.argv[2], comm)
    if comm.rank == 0:
        print("RESULT", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
