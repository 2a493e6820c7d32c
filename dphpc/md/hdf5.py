"""HDF5 files that all ranks write at once if h5py was built with MPI; else rank 0 alone writes them.

Rank 0 alone creates a file and its datasets and allocates their space.  Then all ranks write the atoms, each its slabs,
into allocated space.  So writing cannot fail on one rank and succeed on another, and HDF5, which crashes if it cannot
write its metadata, has none to write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from dphpc.parallel.comm import Communicator


def n_writers(comm: Communicator) -> int:
    """Number of ranks, from rank 0 on, that write a file."""
    return comm.size if h5py.get_config().mpi else 1


def open_to_fill(path: Path, comm: Communicator) -> h5py.File:
    """Open a file whose datasets have their space allocated; called by all writing ranks together."""
    with_mpi = {"driver": "mpio", "comm": comm.handle} if n_writers(comm) > 1 else {}
    return h5py.File(path, "r+", **with_mpi)


def with_room() -> Any:
    """Properties of a dataset whose space is allocated when it is created or grows, not when it is written."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    return properties


def has_room(dataset: h5py.Dataset) -> bool:
    """Whether the space of a dataset is allocated early, as `with_room` asks for."""
    return bool(dataset.id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY)
