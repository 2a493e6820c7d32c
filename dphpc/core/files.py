"""Writing a file or folder so that it is complete or not there at all; files that one run at a time writes."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dphpc.core.errors import InputError, writing

if TYPE_CHECKING:
    import h5py


@contextmanager
def whole(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it if the block succeeds and deleted otherwise.

    The block may make a file or a folder.  If `path` is a symbolic link, the link is replaced, not its target.

    Parameters
    ----------
    sync
        Write the bytes to the disk before the file is renamed: else, after a power failure, the name may be there
        without the bytes.

    Raises
    ------
    OSError
        It cannot be written; what had the name before stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(partial)  # left by a killed process with this process id
    try:
        yield partial
        if sync:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text through `whole`, and make its folder if there is none.

    Raises
    ------
    OSError
        It cannot be written; what had the name before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, made in memory and written when the block succeeds: HDF5 may crash where the disk is full.

    Raises
    ------
    OSError
        It cannot be written.
    """
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        yield file
    path.write_bytes(image.getbuffer())


@contextmanager
def claimed(paths: Iterable[str | Path]) -> Iterator[None]:
    """Keep other runs off these files while the block runs; those that are not there are made, empty.

    The system frees them if the process is killed.  Devices and pipes stay open to all, and so do files of file systems
    that do not lock.  HDF5 files are none of these: HDF5 locks them itself.

    Raises
    ------
    InputError
        Another run, of this machine or another, has claimed one of them.
    RunError
        One of them cannot be written.
    """
    with ExitStack() as held:
        for path in map(Path, paths):
            if path.exists() and not path.is_file():
                continue
            with writing(path, "the output"):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    "another run that has not ended writes this file", where=str(path),
                    remedy="wait for it or stop it; or let this run write elsewhere, e.g. in a folder of its own",
                ) from None  # fmt: skip
            except OSError:  # a file system that does not lock
                continue
        yield
