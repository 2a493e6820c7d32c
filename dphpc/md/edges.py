"""The box of each frame in an H5MD file."""

from __future__ import annotations

import h5py
import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box


def edges_of(box: Box) -> NDArray[np.float64]:
    """The edges of a box: (3,) of a cuboid, else (3, 3)."""
    return np.diag(box.matrix) if box.is_cuboid else box.matrix


def note_box(atoms: h5py.Group, box: Box, frames: int) -> None:
    """Add the box of the frame after `frames` others: vectors, for all of them, if any of their boxes is no cuboid.

    An older file has a single box for all frames, kept as long as it is the same.
    """
    group, now = atoms["box"], edges_of(box)
    if isinstance(group["edges"], h5py.Dataset):
        first = group["edges"][...]
        if np.array_equal(first, now):
            return
        _replace_edges(atoms, np.tile(first, (frames, *[1] * first.ndim)))
    if now.ndim == 2 and group["edges/value"].ndim == 2:
        _replace_edges(atoms, group["edges/value"][:frames][..., None] * np.eye(3))
    values = group["edges/value"]
    values.resize(frames + 1, axis=0)
    values[frames] = now if now.ndim == values.ndim - 1 else box.matrix


def create_edges(atoms: h5py.Group, edges: NDArray[np.float64], name: str = "edges") -> None:
    """Create the dataset of box edges, given those of earlier frames, (frames, 3) or (frames, 3, 3)."""
    shapes = {"maxshape": (None, *edges.shape[1:]), "chunks": (1024, *edges.shape[1:])}
    group = atoms["box"].create_group(name)
    group.create_dataset("value", data=edges, **shapes).attrs["unit"] = "Angstrom"
    group["step"], group["time"] = atoms["position/step"], atoms["position/time"]


def _replace_edges(atoms: h5py.Group, edges: NDArray[np.float64]) -> None:
    create_edges(atoms, edges, "new edges")
    atoms.file.flush()  # a process that is killed here leaves the old ones
    del atoms["box/edges"]
    atoms["box"].move("new edges", "edges")
