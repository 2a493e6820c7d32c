"""Trajectory files: extended XYZ, LAMMPS dump and H5MD, with the atoms of each frame sorted by id.

Rank 0 writes them; H5MD is written by all ranks if `md/hdf5.py` can.

When a run is continued, a file is first cut back to where it was when the restart was written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from ase.units import fs as ASE_FS
from numpy.typing import NDArray

from dphpc.core import errors
from dphpc.core.box import Box
from dphpc.core.fixing import held_in
from dphpc.md.config import Trajectory
from dphpc.md.deferred import Work
from dphpc.md.engine import Engine
from dphpc.md.extent import Extent, extent_of_bytes
from dphpc.md.gather import Part, collect
from dphpc.md.h5md import H5mdWriter
from dphpc.md.hdf5 import n_writers
from dphpc.md.output import Output, cut_back, writing
from dphpc.parallel.comm import Communicator, agree, together


@dataclass(frozen=True)
class Frame:
    """What all atoms of a frame share, with the potential `energy` in eV, and the names of the `fields` of each atom.

    `info` are more values for the comment line of an extxyz frame; with `partly` some atoms are fixed, but not wholly.
    """

    step: int
    time_ps: float
    box: Box
    n_atoms: int
    energy: float
    fields: Collection[str]
    info: Mapping[str, float] = field(default_factory=dict)
    partly: bool = False


class FrameWriter(Output, Protocol):
    """Writes frames: for each its beginning, then its atoms part by part, then its end."""

    def begin(self, frame: Frame) -> None:
        """Begin a new frame; on rank 0."""

    def add(self, first: int, part: Part) -> None:
        """Write ids, types, positions and the other fields of the atoms from index `first` on; on writing ranks."""

    def end(self) -> None:
        """Finish the frame and flush it; on all writing ranks."""


def write_frame(
    writer: FrameWriter | None,
    engine: Engine,
    settings: Trajectory,
    energy: float,
    info: Mapping[str, float] | None = None,
) -> None:
    """Write the present atoms as a frame, or begin to, as work of `engine.deferred`; collective.

    Parameters
    ----------
    writer
        The result of `open_trajectory`.
    energy
        Potential energy in eV.
    info
        More values for the comment line of an extxyz frame.
    """
    names = ["types", "positions", "images", *["velocities"] * settings.velocities, *["forces"] * settings.forces]
    # Not for a committee's candidates: ASE takes the mask for a constraint and would report forces of 0 as labels.
    names += ["fixed"] * (settings.kind == "extxyz" and engine.fixed.n_atoms > 0 and info is None)
    partly = bool(engine.fixed.partly)
    frame = Frame(engine.step, engine.time, engine.state.box, engine.n_atoms, energy, names, info or {}, partly)
    engine.deferred.begin(_written(writer, engine, settings, frame))


def _written(writer: FrameWriter | None, engine: Engine, settings: Trajectory, frame: Frame) -> Work:
    """The deferred work of writing a frame; collective."""
    comm, box = engine.comm, frame.box
    snapshot = engine.moves.snapshot(("ids", *frame.fields))
    yield
    fields = snapshot()
    ids, (positions, images) = fields.pop("ids"), box.wrapped(fields["positions"], fields["images"])
    if settings.unwrap:
        positions, images = positions + images @ box.matrix, np.zeros_like(images)
    fields |= {"positions": positions, "images": images}
    with together(comm), writing(settings.file, engine, frame.step):
        if writer is not None and comm.rank == 0:
            writer.begin(frame)

    def add(first: int, part: Part) -> None:
        assert writer is not None
        with writing(settings.file, engine, frame.step):
            writer.add(first, part)

    def end() -> None:
        assert writer is not None
        with writing(settings.file, engine, frame.step):
            writer.end()

    agree(comm, (yield from collect(ids, fields, comm, add, end, _n_writers(settings, comm))))


def open_trajectory(
    settings: Trajectory,
    species: list[str],
    masses: NDArray[np.float64],
    resume_at: int | None,
    comm: Communicator,
    type_map: list[str] | None = None,
) -> FrameWriter | None:
    """The writer of a file, on writing ranks; `resume_at` is its extent at the restart, None to begin a new file.

    Types are indices into `species`; a LAMMPS dump numbers them by `type_map` if that is given.
    """
    if comm.rank >= _n_writers(settings, comm):
        return None
    path = Path(settings.file)
    with errors.writing(path, "the output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if settings.kind == "h5md":
            return H5mdWriter(path, species, masses, settings, resume_at, comm)
        if settings.kind == "extxyz":
            return ExtxyzWriter(path, species, masses, settings, resume_at)
        writer = LammpsWriter(path, species, masses, settings, resume_at)
        writer.number(type_map or species)
        return writer


def _n_writers(settings: Trajectory, comm: Communicator) -> int:
    return n_writers(comm) if settings.kind == "h5md" else 1


class TextWriter:
    """Base of the two text formats: writes the lines of many atoms with a single format string."""

    def __init__(
        self, path: Path, species: list[str], masses: NDArray[np.float64], settings: Trajectory, resume_at: int | None
    ) -> None:
        self.file = open(path, "w+b" if resume_at is None else "r+b")  # noqa: SIM115 (lives as long as the run)
        if resume_at is not None:
            self.file.truncate(resume_at)
            self.file.seek(resume_at)
        self._whole = resume_at or 0  # bytes of whole frames
        self.species, self.masses, self.settings = np.array(species), masses, settings

    def _write(self, text: str) -> None:
        with cut_back(self.file, self._whole):
            self.file.write(text.encode())

    def _write_table(self, columns: list[tuple[str, NDArray]]) -> None:
        """Write n lines of columns, each given by a format and an array (n,) or (n, k)."""
        n = len(columns[0][1])
        formats: list[str] = []
        parts: list[NDArray] = []
        for text, array in columns:
            for column in array.reshape(n, -1).T:
                formats.append(text)
                parts.append(column.astype(object))
        cells = np.stack(parts, axis=1).ravel()
        self._write((" ".join(formats) + "\n") * n % tuple(cells))

    def end(self) -> None:
        """Flush the frame."""
        with cut_back(self.file, self._whole):
            self.file.flush()
        self._whole = self.file.tell()

    def extent(self) -> Extent:
        """How far the file is written, in bytes; forces it to disk."""
        self.file.flush()
        return extent_of_bytes(self.file.fileno(), self.file.tell(), self.settings.kind)


class ExtxyzWriter(TextWriter):
    """Extended XYZ as ASE and OVITO read it; velocities as momenta in ASE's units."""

    def begin(self, frame: Frame) -> None:
        """Write the number of atoms and the comment line."""
        s, box = self.settings, frame.box
        properties = "species:S:1:pos:R:3" + ":momenta:R:3" * s.velocities + ":forces:R:3" * s.forces + ":id:I:1"
        self._partly = frame.partly
        properties += f":move_mask:L:{3 if frame.partly else 1}" * ("fixed" in frame.fields)
        words = []
        if any(box.periodic):
            words.append('Lattice="' + " ".join(repr(x) for x in box.matrix.ravel().tolist()) + '"')
            if box.origin.any():
                words.append('Origin="' + " ".join(repr(x) for x in box.origin.tolist()) + '"')
        words += [f"Properties={properties}", f"Step={frame.step}", f"Time={frame.time_ps!r}"]
        words += [f"energy={frame.energy!r}", 'pbc="' + " ".join("T" if p else "F" for p in box.periodic) + '"']
        words += [f"{name}={value!r}" for name, value in frame.info.items()]
        self._write(f"{frame.n_atoms}\n{' '.join(words)}\n")

    def add(self, first: int, part: Part) -> None:
        """Write the lines of atoms."""
        columns = [("%-2s", self.species[part["types"]]), ("%16.8f", part["positions"])]
        if "velocities" in part:
            mass = self.masses[part["types"]][:, None]
            columns.append(("%16.8e", part["velocities"] * mass / (1000.0 * ASE_FS)))
        if "forces" in part:
            columns.append(("%16.8f", part["forces"]))
        columns.append(("%d", part["ids"]))
        if "fixed" in part:
            held = held_in(part["fixed"])
            columns.append(("%s", np.where(held if self._partly else held[:, 0], "F", "T")))
        self._write_table(columns)


class LammpsWriter(TextWriter):
    """LAMMPS' `dump custom`, units metal; https://docs.lammps.org/dump.html."""

    def number(self, names: list[str]) -> None:
        """Number the types by `names`, from 1; species that are not among them get 0."""
        self.numbers = np.array([names.index(name) + 1 if name in names else 0 for name in self.species])

    def begin(self, frame: Frame) -> None:
        """Write the ITEM lines."""
        s = self.settings
        columns = "id type element " + ("xu yu zu" if s.unwrap else "x y z ix iy iz")
        columns += " vx vy vz" * s.velocities + " fx fy fz" * s.forces
        self._write(
            f"ITEM: TIMESTEP\n{frame.step}\nITEM: NUMBER OF ATOMS\n{frame.n_atoms}\n"
            f"{_lammps_box(frame.box)}ITEM: ATOMS {columns}\n"
        )

    def add(self, first: int, part: Part) -> None:
        """Write the lines of atoms."""
        types = part["types"]
        columns = [
            ("%d", part["ids"]),
            ("%d", self.numbers[types]),
            ("%s", self.species[types]),
            ("%.8f", part["positions"]),
        ]
        columns += [] if self.settings.unwrap else [("%d", part["images"])]
        columns += [("%.8f", part[name]) for name in ("velocities", "forces") if name in part]
        self._write_table(columns)


def _lammps_box(box: Box) -> str:
    flags = " ".join("pp" if p else "ff" for p in box.periodic)
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = h = box.matrix.tolist()
    if ay or az or bz or min(ax, by, cz) < 0:  # not LAMMPS' own orientation: "general triclinic"
        lines = [" ".join(repr(x) for x in (*row, o)) for row, o in zip(h, box.origin.tolist(), strict=True)]
        return "\n".join([f"ITEM: BOX BOUNDS abc origin {flags}", *lines, ""])
    (ox, oy, oz) = box.origin.tolist()
    if not (bx or cx or cy):
        rows = [(ox, ox + ax), (oy, oy + by), (oz, oz + cz)]
        return f"ITEM: BOX BOUNDS {flags}\n" + "".join(f"{low!r} {high!r}\n" for low, high in rows)
    corners = (0.0, bx, cx, bx + cx)
    bounds = [
        (ox + min(corners), ox + ax + max(corners), bx),
        (oy + min(0.0, cy), oy + by + max(0.0, cy), cx),
        (oz, oz + cz, cy),
    ]
    return f"ITEM: BOX BOUNDS xy xz yz {flags}\n" + "".join(f"{a!r} {b!r} {t!r}\n" for a, b, t in bounds)
