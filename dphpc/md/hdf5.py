"""HDF5 files that all ranks write at once, where h5py was built with MPI; rank 0 alone writes them elsewhere.

Rank 0 makes a file, its datasets and the room for them by itself.  What all write together are the atoms, each rank its
slabs, into room that is there: so no rank can be refused what another is given, and HDF5, which crashes where it cannot
write its own tables, has none to write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from dphpc.parallel.comm import Communicator


def n_writers(comm: Communicator) -> int:
    """How many ranks, from the first, write a file."""
    return comm.size if h5py.get_config().mpi else 1


def open_to_fill(path: Path, comm: Communicator) -> h5py.File:
    """A file whose datasets have their room; called by all ranks that write, together."""
    with_mpi = {"driver": "mpio", "comm": comm.handle} if n_writers(comm) > 1 else {}
    return h5py.File(path, "r+", **with_mpi)


def with_room() -> Any:
    """Properties of a dataset whose room is taken when it is made or grows, not when it is written."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    return properties


def has_room(dataset: h5py.Dataset) -> bool:
    """Whether a dataset was made `with_room`."""
    return bool(dataset.id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY)
