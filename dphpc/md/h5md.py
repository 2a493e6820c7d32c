"""H5MD trajectories: one file of arrays, which grow by a frame at a time; older files are continued as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.errors import DataError
from dphpc.md.config import Trajectory
from dphpc.md.extent import Extent, extent_of_frames
from dphpc.md.gather import Part
from dphpc.md.hdf5 import has_room, open_to_fill, with_room
from dphpc.parallel.comm import Communicator

if TYPE_CHECKING:
    from dphpc.md.trajectory import Frame

CHUNK = 1 << 16
"""Atoms of a frame in a chunk of the file."""

ATOM_BYTES, FRAME_BYTES, BOX_BYTES = 200, 1 << 18, 72
"""Most bytes of a frame: per atom for its four fields, 84 bytes, and the unused rest of their chunks; per frame for
HDF5's metadata; and per earlier frame for its box, which is stored once the box has changed in an older file."""

_FIELDS = {"position": "positions", "image": "images", "velocity": "velocities", "force": "forces"}
_UNITS = {"position": "Angstrom", "image": "", "velocity": "Angstrom ps-1", "force": "eV Angstrom-1"}


class H5mdWriter:
    """H5MD 1.1 (https://www.nongnu.org/h5md); the file is closed between frames, so a crash cannot harm it."""

    def __init__(
        self, path: Path, species: list[str], masses: NDArray[np.float64], settings: Trajectory,
        resume_at: int | None, comm: Communicator,
    ) -> None:  # fmt: skip
        self.path, self.species, self.masses, self.comm = path, species, masses, comm
        self.frames = resume_at or 0
        self.file: h5py.File | None = None
        if comm.rank == 0 and resume_at is not None:
            self._require_fields({"velocity": settings.velocities, "force": settings.forces})
        elif comm.rank == 0:
            with h5py.File(path, "w") as file:
                h5md = file.create_group("h5md")
                h5md.attrs["version"] = np.array([1, 1], np.int32)
                h5md.create_group("author").attrs["name"] = "unknown"
                h5md.create_group("creator").attrs.update({"name": "dphpc", "version": "1"})

    def begin(self, frame: Frame) -> None:
        """Write step, time and box, and allocate space for the atoms."""
        # HDF5 crashes if the disk gets full while it writes: allocate the space first.  It gives back what is left.
        with open(self.path, "r+b") as file:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), self._bytes_of(frame))
        with h5py.File(self.path, "r+") as file:
            atoms = file.get("particles/all") or self._create(file, frame)
            for name, key in _FIELDS.items():
                if key in frame.fields:
                    values = atoms[name]["value"]
                    values.resize(self.frames + 1, axis=0)
                    if not has_room(values):  # in an older file
                        for first in range(0, frame.n_atoms, CHUNK):
                            values[self.frames, first : first + CHUNK] = 0
            _note_box(atoms, frame.box, self.frames)
            for name, value in (("step", frame.step), ("time", frame.time_ps)):
                atoms["position"][name].resize(self.frames + 1, axis=0)
                atoms["position"][name][self.frames] = value

    def add(self, first: int, part: Part) -> None:
        """Write atoms; the first call opens the file, on all writing ranks together."""
        self.file = self.file or open_to_fill(self.path, self.comm)
        atoms, place = self.file["particles/all"], slice(first, first + len(part["ids"]))
        for name, key in _FIELDS.items():
            if key in part:
                atoms[name]["value"][self.frames, place] = part[key]
        if self.frames == 0:
            for name, rows in (("id", part["ids"]), ("species", part["types"]), ("mass", self.masses[part["types"]])):
                atoms[name][place] = rows

    def end(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
        self.file, self.frames = None, self.frames + 1

    def extent(self) -> Extent:
        """How far the file is written, in frames; forces it to disk."""
        return extent_of_frames(self.path, self.frames)

    def _require_fields(self, wanted: Mapping[str, bool]) -> None:
        """Refuse to continue a file with other fields: in H5MD all fields have the same number of frames."""
        with h5py.File(self.path, "r") as file:
            for name, is_wanted in wanted.items():
                if (name in file["particles/all"]) != is_wanted:
                    there, key = "no " * is_wanted + _FIELDS[name], _FIELDS[name]
                    raise DataError(
                        f"the file to go on with has {there}", where=str(self.path),
                        expected=f"{key}: {str(not is_wanted).lower()}", remedy="keep it so, or name another file",
                    )  # fmt: skip

    def _bytes_of(self, frame: Frame) -> int:
        return FRAME_BYTES + ATOM_BYTES * frame.n_atoms + BOX_BYTES * self.frames

    def _create(self, file: h5py.File, frame: Frame) -> h5py.Group:
        n, box = frame.n_atoms, frame.box
        atoms = file.create_group("particles/all")
        group = atoms.create_group("box")
        group.attrs["dimension"] = 3
        group.attrs["boundary"] = ["periodic" if p else "none" for p in box.periodic]
        for name, key in _FIELDS.items():
            if key in frame.fields:
                group, kind = atoms.create_group(name), np.int32 if key == "images" else np.float64
                shapes = {"maxshape": (None, n, 3), "chunks": (1, max(1, min(n, CHUNK)), 3)}
                group.create_dataset("value", (0, n, 3), kind, **shapes, dcpl=with_room())
                group["value"].attrs["unit"] = _UNITS[name]
        first = atoms["position"]
        first.create_dataset("step", (0,), np.int64, maxshape=(None,), chunks=(1024,))
        first.create_dataset("time", (0,), np.float64, maxshape=(None,), chunks=(1024,)).attrs["unit"] = "ps"
        for name in _FIELDS:
            if name in atoms and name != "position":
                atoms[name]["step"], atoms[name]["time"] = first["step"], first["time"]  # hard links, as H5MD allows
        _create_edges(atoms, np.empty((0, *_edges_of(box).shape)))
        names = h5py.enum_dtype({name: k for k, name in enumerate(self.species)}, basetype="i4")
        atoms.create_dataset("species", (n,), names, dcpl=with_room())
        atoms.create_dataset("id", (n,), np.int64, dcpl=with_room())
        atoms.create_dataset("mass", (n,), np.float64, dcpl=with_room()).attrs["unit"] = "u"
        return atoms


def _edges_of(box: Box) -> NDArray[np.float64]:
    """The edges of a box: (3,) of a cuboid, else (3, 3)."""
    return np.diag(box.matrix) if box.is_cuboid else box.matrix


def _note_box(atoms: h5py.Group, box: Box, frames: int) -> None:
    """Add the box of the frame after `frames` others: vectors, for all of them, if any of their boxes is no cuboid.

    An older file has a single box for all frames, kept as long as it is the same.
    """
    group, now = atoms["box"], _edges_of(box)
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


def _create_edges(atoms: h5py.Group, edges: NDArray[np.float64], name: str = "edges") -> None:
    """Create the dataset of box edges, given those of earlier frames, (frames, 3) or (frames, 3, 3)."""
    shapes = {"maxshape": (None, *edges.shape[1:]), "chunks": (1024, *edges.shape[1:])}
    group = atoms["box"].create_group(name)
    group.create_dataset("value", data=edges, **shapes).attrs["unit"] = "Angstrom"
    group["step"], group["time"] = atoms["position/step"], atoms["position/time"]


def _replace_edges(atoms: h5py.Group, edges: NDArray[np.float64]) -> None:
    _create_edges(atoms, edges, "new edges")
    atoms.file.flush()  # a process that is killed here leaves the old ones
    del atoms["box/edges"]
    atoms["box"].move("new edges", "edges")
