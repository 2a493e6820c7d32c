"""HDF5 files that survive crashes: complete under their own name, checked to the last byte, the one before kept.

A file is written under a temporary name, sealed, forced to disk and renamed.  The seal stands in HDF5's user block,
the first bytes of the file that HDF5 leaves to others: a digest of all bytes behind it.  It is compared before HDF5
sees the file, for damaged metadata can crash the library.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from io import BufferedRandom, BufferedReader
from pathlib import Path

import h5py

from dphpc.core.errors import DataError

BLOCK = 512
"""Bytes of the user block, the least that HDF5 allows."""

MAGIC = b"dphpc restart\n"


class Draft:
    """A file in the making; `file` is open for writing until `commit` or `discard`.

    HDF5 writes through a file of Python's: where the disk is full, its own way of writing crashes the process when
    the file is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._raw = open(self._partial, "w+b")  # noqa: SIM115 (closed by commit or discard)
        try:
            self.file = h5py.File(self._raw, "w", userblock_size=BLOCK)
        except BaseException:
            self._raw.close()
            self._partial.unlink()
            raise

    def commit(self, keep: bool) -> None:
        """Seal the file, force it to disk and give it its name.

        Parameters
        ----------
        keep
            What has the name now becomes the previous file.

        Raises
        ------
        OSError
            The file cannot be written; what had the name has it still.
        """
        self.file.close()
        seal = _seal(self._raw)
        self._raw.seek(0)
        self._raw.write(seal)
        self._raw.flush()
        os.fsync(self._raw.fileno())
        if keep and self.path.is_file():
            _keep(self.path, previous_of(self.path))
        os.replace(self._partial, self.path)
        _sync(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind but what `commit` has named."""
        with contextlib.suppress(OSError, RuntimeError):
            self.file.close()
        with contextlib.suppress(OSError):
            self._raw.close()
        self._partial.unlink(missing_ok=True)


def previous_of(path: Path) -> Path:
    """The name under which the file before `path` is kept: `restart.previous.h5` for `restart.h5`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def damage_of(path: Path) -> str | None:
    """What is wrong with a file, or None if every byte of it is as it was written."""
    try:
        with open(path, "rb") as file:
            block = file.read(BLOCK)
            if block == _seal(file):
                return None
    except OSError as error:
        return error.strerror or str(error)
    if block.startswith(MAGIC):
        return "it is damaged: its checksum does not fit"
    return "it is no restart file of dphpc, or damaged at its beginning"


def last_good(path: str) -> tuple[str, str | None]:
    """The file to go on from, and a warning where that is the previous one because `path` is damaged or missing.

    Raises
    ------
    DataError
        Neither is good.
    """
    newest, previous = Path(path), previous_of(Path(path))
    wrong = damage_of(newest)
    if wrong is None:
        return path, None
    if not previous.exists():
        raise DataError(f"the restart file cannot be used: {wrong}", where=path, remedy="take an older one")
    also_wrong = damage_of(previous)
    if also_wrong is not None:
        raise DataError(
            f"neither the restart file can be used ({wrong}) nor the one before it ({also_wrong})",
            where=f"{newest}, {previous}", remedy="take an older one",
        )  # fmt: skip
    return str(previous), f"{newest} cannot be used ({wrong}); going on from the one before it, {previous}"


def _seal(file: BufferedReader | BufferedRandom) -> bytes:
    """The user block of an open file."""
    file.seek(BLOCK)
    digest = hashlib.file_digest(file, "blake2b").hexdigest()
    return (MAGIC + f"blake2b {digest}\n".encode()).ljust(BLOCK, b"\0")


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name in the place of an older file; a copy where the file system knows no links."""
    spare = previous.with_name(f".{previous.name}.part")
    spare.unlink(missing_ok=True)
    try:
        try:
            os.link(path, spare)
        except OSError:
            shutil.copyfile(path, spare)
            _sync(spare)
        os.replace(spare, previous)
    finally:
        # Still there where copying failed, and where both were names of one file: then replacing does nothing.
        spare.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
