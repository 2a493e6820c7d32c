"""How far the outputs of a run are written, and whether a file is still the one that a restart continues.

The name alone does not tell that: another run may have written a file of that name since, or in another folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py

from dphpc.core.errors import DataError

TAIL = 1 << 16
"""Bytes at the end of a file by whose digest it is recognized."""

ATOMS = 4096
"""Atoms of the last frame by whose digest an H5MD file is recognized."""


@dataclass(frozen=True)
class Extent:
    """How far an output is written, and a digest of its end.

    Attributes
    ----------
    at
        Bytes written; frames for H5MD.
    format
        The trajectory's format, or `table`; empty if an older restart file does not tell it.
    digest
        Digest of the end; empty if an older restart file does not tell it.
    """

    at: int
    format: str = ""
    digest: str = ""


def extent_of_bytes(handle: int, at: int, kind: str) -> Extent:
    """The extent of an open file, of any format but H5MD, of which `at` bytes are written; forces it to disk."""
    os.fsync(handle)
    return Extent(at, kind, _digest_of_bytes(handle, at))


def extent_of_frames(path: Path, frames: int) -> Extent:
    """The extent of a closed H5MD file with so many frames; forces it to disk.

    Raises
    ------
    DataError
        The file has fewer frames.
    """
    with open(path, "rb") as plain:
        os.fsync(plain.fileno())
    return Extent(frames, "h5md", _digest_of_frame(path, frames))


def resume_points(formats: Mapping[str, str], old: Mapping[str, Extent], own: bool) -> tuple[dict[str, int], list[str]]:
    """How much of each continued output is kept, and messages about old files that are overwritten.

    Parameters
    ----------
    formats
        Formats of this run's outputs by name.
    old
        Extents of outputs by name, from the restart file.
    own
        Whether the restart file, and so its outputs, are this run's own; another run's outputs need not exist here.

    Returns
    -------
    Bytes, or frames for H5MD, that are kept of each output that is continued, by name; and the messages.

    Raises
    ------
    DataError
        An output of the run's own is not as the restart file left it, or a continued one has another format.
    """
    left = {Path(path).resolve(): extent for path, extent in old.items()}
    kept, lines = dict[str, int](), list[str]()
    for path, kind in formats.items():
        extent = left.get(Path(path).resolve())
        if extent is None or not extent.at or not Path(path).is_file():
            continue
        wrong = _difference(Path(path), extent, kind)
        if wrong is None:
            _require_format(path, extent, kind)
            kept[path] = extent.at
        elif own:
            raise DataError(
                f"the output is not as the restart file left it: {wrong}", where=path,
                expected="what it was, or more of it", remedy="put it back, or move it away to begin a new one",
            )  # fmt: skip
        else:
            lines.append(f"restart:   {path} is not the file that it left ({wrong}), and is begun anew")
    return kept, lines


def _require_format(path: str, extent: Extent, kind: str) -> None:
    if extent.format not in ("", kind):
        raise DataError(
            f"the file to go on with has another format than {kind}", where=path,
            expected=extent.format, remedy="keep the format, or name another file",
        )  # fmt: skip


def _difference(path: Path, extent: Extent, kind: str) -> str | None:
    """How a file differs from what the restart file left, or None if it does not."""
    try:
        if (extent.format or kind) == "h5md":
            digest = _digest_of_frame(path, extent.at)
        else:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < extent.at:
                    return f"it has {size:,} bytes, not {extent.at:,}"
                digest = _digest_of_bytes(file.fileno(), extent.at)
    except DataError as error:
        return error.what
    except (OSError, RuntimeError, LookupError, ValueError) as error:  # h5py raises all of these for a damaged file
        return f"it cannot be read: {error}"
    return None if extent.digest in ("", digest) else "another run wrote it, or it was changed"


def _digest_of_bytes(handle: int, at: int) -> str:
    """Digest of the last of so many bytes of an open file."""
    return _digest(os.pread(handle, min(at, TAIL), max(at - TAIL, 0)))


def _digest_of_frame(path: Path, frames: int) -> str:
    """Digest of step, time and some atoms of the last of so many frames."""
    if not frames:
        return ""
    with h5py.File(path, "r") as file:
        place = file["particles/all/position"]
        if len(place["step"]) < frames or len(place["value"]) < frames:
            raise DataError(f"it has {min(len(place['step']), len(place['value']))} frames, not {frames}")
        last = frames - 1
        parts = place["step"][last], place["time"][last], place["value"][last, :ATOMS]
        return _digest(b"".join(part.tobytes() for part in parts))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
