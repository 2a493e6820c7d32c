"""HDF5 files that survive crashes: complete under their own name, checked to the last byte, the one before kept.

A file is written under a temporary name, sealed, forced to disk and renamed.  The seal stands in HDF5's user block,
the first bytes of the file that HDF5 leaves to others: a digest of the digests of the pieces of all that is behind it,
which the ranks that wrote it share out.  It is compared before HDF5 sees the file, for damaged metadata can crash the
library.
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

from dphpc.core.errors import DataError, DphpcError, RunError
from dphpc.md.hdf5 import n_writers, open_to_fill
from dphpc.parallel.comm import Communicator, together

BLOCK = 512
"""Bytes of the user block, the least that HDF5 allows."""

SPARE = 1 << 20
"""Bytes that a file has beside its data, at most: HDF5's tables."""

PIECE = 1 << 24
"""Bytes that have a digest of their own."""

MAGIC = b"dphpc restart\n"
WHOLE = MAGIC + b"blake2b "
"""How the seal of older files begins, which is one digest of all bytes."""


class Draft:
    """A file in the making, until `commit`; whatever fails on the way fails on all ranks, and leaves nothing behind.

    Rank 0 begins it and gives it its name; between, `file` is open on the first `n_writers` ranks.  Where the disk is
    full, HDF5 crashes the process when it closes the file: its room is taken before.  Rank 0 writes through a file of
    Python's, too, with which HDF5 2 survives a full disk.

    Parameters
    ----------
    n_bytes
        Of all data in the file; on rank 0.
    fill
        Makes all that is in the file, or room for it; called on rank 0.

    Raises
    ------
    RunError
        The file cannot be written, here as in all methods; what had the name has it still.
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
        """Something that each rank does by itself; what one is refused, all raise."""
        try:
            with together(self.comm):
                try:
                    yield
                except (OSError, RuntimeError) as error:
                    raise RunError(
                        f"the restart file cannot be written: {error}",
                        where=str(self.path), remedy="check space and permissions",
                    ) from None  # fmt: skip
        except DphpcError:
            self.discard()
            raise

    def close(self) -> None:
        """No more is written; called by all ranks that write, together."""
        file, self.file = self.file, None
        if file is not None:
            file.close()
        if self._raw is not None:
            self._raw.flush()

    def commit(self, keep: bool) -> None:
        """Seal the closed file, force it to disk and give it its name; collective.

        Parameters
        ----------
        keep
            On rank 0: what has the name now becomes the previous file.
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
        """Leave nothing behind but what `commit` has named; called by all ranks together."""
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
        os.posix_fallocate(self._raw.fileno(), 0, SPARE)  # where not even that is there, HDF5 had better not begin
        self._raw.truncate(0)
        self.file = h5py.File(self._raw, "w", userblock_size=BLOCK)
        os.posix_fallocate(self._raw.fileno(), 0, n_bytes + SPARE)
        fill(self.file)
        if self.n_writers > 1:
            self.close()  # which gives back what is left over
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
    """The name under which the file before `path` is kept: `restart.previous.h5` for `restart.h5`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def damage_of(path: Path) -> str | None:
    """What is wrong with a file, or None if every byte of it is as it was written."""
    try:
        with open(path, "rb") as file:
            block = file.read(BLOCK)
            if block == (_seal_of_whole(file) if block.startswith(WHOLE) else _seal(_digests(path))):
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


def _seal(digests: bytes) -> bytes:
    """The user block of a file, from the digests of its pieces."""
    return _line(f"blake2b/{PIECE}", hashlib.blake2b(digests).hexdigest())


def _seal_of_whole(file: BufferedReader) -> bytes:
    """That of an older file."""
    file.seek(BLOCK)
    return _line("blake2b", hashlib.file_digest(file, "blake2b").hexdigest())


def _line(how: str, digest: str) -> bytes:
    return (MAGIC + f"{how} {digest}\n".encode()).ljust(BLOCK, b"\0")


def _digests(path: Path, share: int = 0, n_shares: int = 1) -> bytes:
    """Digests of the pieces of a file behind its user block, one after another, of one share in `n_shares` of them."""
    n_pieces = -(-max(path.stat().st_size - BLOCK, 0) // PIECE)
    first, last = (n_pieces * k // n_shares for k in (share, share + 1))
    with open(path, "rb") as file:
        file.seek(BLOCK + first * PIECE)
        return b"".join(hashlib.blake2b(file.read(PIECE)).digest() for _ in range(first, last))


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
