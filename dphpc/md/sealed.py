"""HDF5 files that survive crashes: never incomplete under their own name, verified by a checksum, the previous kept.

A file is written under a temporary name, sealed, forced to disk and renamed.  The seal is in HDF5's user block, the
first bytes of the file, which HDF5 ignores.  It is a digest of the digests of all pieces of the rest, which the writing
ranks compute in parallel.  It is checked before HDF5 opens the file, as damaged metadata can crash the library.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from io import BufferedRandom, BufferedReader
from pathlib import Path

import h5py

from dphpc.core.errors import DataError, DphpcError, RunError, reason_of
from dphpc.md.hdf5 import n_writers, open_to_fill
from dphpc.parallel.comm import Communicator, together

BLOCK = 512
"""Bytes of the user block, the least that HDF5 allows."""

SPARE = 1 << 20
"""Most bytes of HDF5's own metadata in a file, besides the data."""

PIECE = 1 << 24
"""Bytes of a piece, which has a digest of its own."""

LAMMPS_MAGIC = b"LammpS RestartT"
"""Beginning of LAMMPS' own restart files."""

MAGIC = b"dphpc restart\n"
WHOLE = MAGIC + b"blake2b "
"""Beginning of the seal of older files, which is a single digest of all bytes."""


class Draft:
    """A file being written, until `commit`; a failure on one rank is raised on all, and leaves nothing behind.

    Rank 0 creates the file and renames it at the end; in between `file` is open on the first `n_writers` ranks.  On a
    full disk HDF5 crashes the process when it closes the file, so the disk space is allocated first.  Rank 0 also
    writes through a Python file, with which HDF5 2 survives a full disk.

    Parameters
    ----------
    n_bytes
        Bytes of all data in the file; on rank 0.
    fill
        Writes the content of the file, or allocates space for it; called on rank 0.

    Raises
    ------
    RunError
        The file cannot be written; any method may raise it.  An older file of that name is left as it was.
    """

    def __init__(self, path: Path, comm: Communicator, n_bytes: int, fill: Callable[[h5py.File], None]) -> None:
        self.path, self.comm, self.n_writers = path, comm, n_writers(comm)
        self._partial = path.with_name(f".{path.name}.part")
        self._raw: BufferedRandom | None = None
        self.file: h5py.File | None = None
        with self.step():
            if comm.rank == 0:
                self._begin(n_bytes, fill)
        if self.n_writers > 1:
            with self.step():
                self.file = open_to_fill(self._partial, comm)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A block that each rank does by itself; if it fails on one rank, all raise."""
        try:
            with together(self.comm):
                try:
                    yield
                except (OSError, RuntimeError) as error:
                    raise RunError(
                        f"the restart file cannot be written: {reason_of(error)}",
                        where=str(self.path), remedy="check space and permissions",
                    ) from None  # fmt: skip
        except DphpcError:
            self.discard()
            raise

    def close(self) -> None:
        """Close the file; called by all writing ranks together."""
        file, self.file = self.file, None
        if file is not None:
            file.close()
        if self._raw is not None:
            self._raw.flush()

    def commit(self, keep: bool) -> None:
        """Seal the closed file, force it to disk and rename it; collective.

        Parameters
        ----------
        keep
            Keep the file that has the name now as the previous one; on rank 0.
        """
        own = b""
        with self.step():
            if self.comm.rank < self.n_writers:
                _sync(self._partial)
                own = _digests(self._partial, self.comm.rank, self.n_writers)
        seal = _seal(b"".join(self.comm.allgather(own)))
        with self.step():
            if self.comm.rank == 0:
                self._name(seal, keep)
        self.discard()

    def discard(self) -> None:
        """Remove the temporary file; called by all ranks together, also after `commit`."""
        with contextlib.suppress(OSError, RuntimeError):
            self.close()
        if self._raw is not None:
            with contextlib.suppress(OSError):
                self._raw.close()
            self._raw = None
        if self.comm.rank == 0:
            with contextlib.suppress(OSError):
                self._partial.unlink()
        self.comm.barrier()

    def _begin(self, n_bytes: int, fill: Callable[[h5py.File], None]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._raw = open(self._partial, "w+b")  # noqa: SIM115 (closed by discard)
        os.posix_fallocate(self._raw.fileno(), 0, SPARE)  # without even that, HDF5 had better not begin
        self._raw.truncate(0)
        self.file = h5py.File(self._raw, "w", userblock_size=BLOCK)
        os.posix_fallocate(self._raw.fileno(), 0, n_bytes + SPARE)
        fill(self.file)
        if self.n_writers > 1:
            self.close()  # which truncates the file to what is used
            os.fsync(self._raw.fileno())

    def _name(self, seal: bytes, keep: bool) -> None:
        assert self._raw is not None
        self._raw.seek(0)
        self._raw.write(seal)
        self._raw.flush()
        os.fsync(self._raw.fileno())
        if keep and self.path.is_file():
            _keep(self.path, previous_of(self.path))
        os.replace(self._partial, self.path)
        _sync(self.path.parent)


def previous_of(path: Path) -> Path:
    """The path under which the file previous to `path` is kept: `restart.previous.h5` for `restart.h5`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def damage_of(path: Path) -> str | None:
    """What is wrong with a file, or None if every byte is as it was written."""
    try:
        with open(path, "rb") as file:
            block = file.read(BLOCK)
            if block == (_seal_of_whole(file) if block.startswith(WHOLE) else _seal(_digests(path))):
                return None
    except OSError as error:
        return error.strerror or str(error)
    if block.startswith(MAGIC):
        return "it is damaged: its checksum does not fit"
    if block.startswith(LAMMPS_MAGIC):
        return "it is one of LAMMPS; write_data in LAMMPS writes a data file, which is read"
    return "it is no restart file of dphpc, or damaged at its beginning"


def last_good(path: str) -> tuple[str, str | None]:
    """The file to go on from, and a warning if that is the previous one because `path` is damaged or missing.

    Raises
    ------
    DataError
        Neither file is good.
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


def _seal(digests: bytes) -> bytes:
    """The user block of a file with these digests of its pieces."""
    return _line(f"blake2b/{PIECE}", hashlib.blake2b(digests).hexdigest())


def _seal_of_whole(file: BufferedReader) -> bytes:
    """The user block that an older file, open behind its own, must have."""
    file.seek(BLOCK)
    return _line("blake2b", hashlib.file_digest(file, "blake2b").hexdigest())


def _line(how: str, digest: str) -> bytes:
    return (MAGIC + f"{how} {digest}\n".encode()).ljust(BLOCK, b"\0")


def _digests(path: Path, share: int = 0, n_shares: int = 1) -> bytes:
    """The concatenated digests of a file's pieces behind the user block; only of the given share of the pieces."""
    n_pieces = -(-max(path.stat().st_size - BLOCK, 0) // PIECE)
    first, last = (n_pieces * k // n_shares for k in (share, share + 1))
    with open(path, "rb") as file:
        file.seek(BLOCK + first * PIECE)
        return b"".join(hashlib.blake2b(file.read(PIECE)).digest() for _ in range(first, last))


def _keep(path: Path, previous: Path) -> None:
    """Replace an older file by a hard link to `path`, or by a copy where the file system has no links."""
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
        # It is left if copying failed, or if `previous` already was a link to `path`: then `os.replace` does nothing.
        spare.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
