"""How far the outputs of a run are written, and whether a file is still the one that a restart goes on with.

A name alone does not tell: another run may have written a file of that name since, or in another folder.
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
"""Bytes at the end that a file is known by."""

ATOMS = 4096
"""Of its last frame that an H5MD file is known by."""


@dataclass(frozen=True)
class Extent:
    """How far an output is written, and what it ends with.

    Attributes
    ----------
    at
        Bytes; of H5MD frames.
    format
        A trajectory's, or `table`; empty where an older restart file does not tell.
    digest
        Of the end, or empty likewise.
    """

    at: int
    format: str = ""
    digest: str = ""


def extent_of_bytes(handle: int, at: int, kind: str) -> Extent:
    """That of an open file of any format but H5MD, once it is on disk."""
    os.fsync(handle)
    return Extent(at, kind, _digest(os.pread(handle, min(at, TAIL), max(at - TAIL, 0))))


def extent_of_frames(path: Path, frames: int) -> Extent:
    """That of a closed H5MD file, once it is on disk.

    Raises
    ------
    DataError
        It has fewer frames.
    """
    with open(path, "rb") as plain:
        os.fsync(plain.fileno())
    return Extent(frames, "h5md", _digest_of_frame(path, frames))


def resume_points(formats: Mapping[str, str], old: Mapping[str, Extent], own: bool) -> tuple[dict[str, int], list[str]]:
    """How far outputs are kept, those that go on, and lines that tell of others that are begun anew.

    Parameters
    ----------
    formats
        Of this run's outputs, by their names.
    old
        Outputs as the restart file left them.
    own
        The restart file is the run's own, and so are its outputs; else another run's, of which there may be none here.

    Raises
    ------
    DataError
        One of its own has become another, or one that goes on has another format.
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
    """What is wrong with a file that should go on, or None."""
    try:
        if (extent.format or kind) == "h5md":
            digest = _digest_of_frame(path, extent.at)
        else:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < extent.at:
                    return f"it has {size:,} bytes, not {extent.at:,}"
                digest = _digest(os.pread(file.fileno(), min(extent.at, TAIL), max(extent.at - TAIL, 0)))
    except DataError as error:
        return error.what
    except (OSError, RuntimeError, LookupError, ValueError) as error:  # h5py raises whatever the file makes it
        return f"it cannot be read: {error}"
    return None if extent.digest in ("", digest) else "another run wrote it, or it was changed"


def _digest_of_frame(path: Path, frames: int) -> str:
    """Of step, time and some atoms of the last of so many frames."""
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
