"""Stores of a data system: a folder of `.npy` files, a group of an HDF5 file, or frames in LMDB.

All have the same methods; no pickled object is ever read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DataError
from dphpc.train.data.lmdb_frames import Database, is_lmdb
from dphpc.train.data.lmdb_store import LmdbStore, lmdb_stores

HDF5_MARK = "#"
MAX_TEXT_BYTES = 256 * 2**20


class FolderStore:
    """A DeePMD-kit system as a folder: `type.raw`, `set.*/coord.npy`, …"""

    def __init__(self, path: Path) -> None:
        self._path = path

    def where(self, name: str = "") -> str:
        """How messages name an entry."""
        return str(self._path / name)

    def frame_name(self, index: int) -> str:
        """How messages name a frame of a set."""
        return f"frame {index}"

    def has(self, name: str) -> bool:
        """Whether the entry is there."""
        return (self._path / name).is_file()

    def sets(self) -> list[str]:
        """Names of the sets, sorted."""
        return sorted(p.name for p in self._path.glob("set.*") if p.is_dir())

    def words(self, name: str) -> list[str]:
        """Words of a text entry."""
        path = self._path / name
        try:
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise DataError("the file is too large", where=str(path), expected=f"at most {MAX_TEXT_BYTES} bytes")
            return path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read as text: {error}", where=str(path)) from None

    def array(self, name: str) -> NDArray[Any]:
        """The array of an entry, mapped into memory rather than read."""
        path = self._path / name
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy raises anything for a damaged header
            raise DataError(
                f"is damaged, or not a plain NumPy array: {error}", where=str(path), remedy="write it with numpy.save"
            ) from None


class GroupStore:
    """A DeePMD-kit system as a group of an HDF5 file (`file.hdf5#/group`)."""

    def __init__(self, path: Path, group: str) -> None:
        self._path, self._group = path, group.strip("/")

    def where(self, name: str = "") -> str:
        """How messages name an entry."""
        return f"{self._path}{HDF5_MARK}/" + "/".join(part for part in (self._group, name) if part)

    def frame_name(self, index: int) -> str:
        """How messages name a frame of a set."""
        return f"frame {index}"

    def has(self, name: str) -> bool:
        """Whether the entry is there."""
        with _open(self._path) as file:
            return self._key(name) in file

    def sets(self) -> list[str]:
        """Names of the sets, sorted."""
        with _open(self._path) as file:
            group = file[self._key("")]
            names = list(group)
            if not all(isinstance(name, str) for name in names):  # h5py gives bytes for a name that is not UTF-8
                raise DataError("the name of a set or entry is no text: the file is damaged", where=self.where())
            return sorted(name for name in names if name.startswith("set.") and isinstance(group[name], h5py.Group))

    def words(self, name: str) -> list[str]:
        """Entries of a list of text or numbers."""
        values = np.atleast_1d(self.array(name)).ravel()
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]

    def array(self, name: str) -> NDArray[Any]:
        """The array of an entry, read as a whole."""
        with _open(self._path, self.where(name)) as file:
            entry = file.get(self._key(name))
            if not isinstance(entry, h5py.Dataset):
                raise DataError("is missing or no array", where=self.where(name))
            if entry.nbytes > _memory_limit():
                raise DataError(f"holds {entry.nbytes / 2**30:.1f} GiB, more than fits", where=self.where(name))
            return np.asarray(entry[()])

    def _key(self, name: str) -> str:
        return "/" + "/".join(part for part in (self._group, name) if part)


Store = FolderStore | GroupStore | LmdbStore


@contextmanager
def _open(path: Path, entry: str = "") -> Iterator[h5py.File]:
    """Open the file for reading; `entry` is what is read, for messages."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except Exception as error:  # h5py raises anything for a damaged file
        raise DataError(f"is damaged or not HDF5: {error}", where=entry or str(path)) from None


def _memory_limit() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def find_stores(systems: Iterable[str], patterns: Iterable[str] | None = None) -> list[tuple[str, Store]]:
    """(name, store) of every system that an input's `systems` names.

    An entry is a system, a folder that is searched for systems (folders with `type.raw`; with `patterns`, those
    whose path matches one), an HDF5 file, an LMDB database, or `file#/group`.  The order of the entries is
    kept; systems found in one entry are sorted, and one that is named twice is listed twice.

    Raises
    ------
    DataError
        An entry does not exist or holds no system.
    """
    found: list[tuple[str, Store]] = []
    databases: dict[Path, Database] = {}
    for entry in systems:
        found += _expand(entry, list(patterns) if patterns else None, databases)
    if not found:
        raise DataError("no data systems were found", where=", ".join(systems), expected="folders with type.raw")
    return found


def _expand(entry: str, patterns: list[str] | None, databases: dict[Path, Database]) -> list[tuple[str, Store]]:
    """The systems of one entry; `databases` holds the open LMDB databases."""
    file, mark, group = entry.partition(HDF5_MARK)
    path = Path(file)
    if not path.exists():
        raise DataError(
            "the data system does not exist",
            where=str(path),
            remedy=f"relative paths count from {Path.cwd()}"
            + ("; wildcards are not expanded: name the folder above, it is searched" if "*" in file else ""),
        )
    result: list[tuple[str, Store]]
    if is_lmdb(path):
        if path not in databases:
            databases[path] = Database(path)
        stores = lmdb_stores(databases[path], group, entry)
        return [(file if len(stores) == 1 and not mark else f"{file}{HDF5_MARK}{s.name}", s) for s in stores]
    if path.is_dir():
        folders = _folders(path, patterns)
        names = [str(Path(file) / folder.relative_to(path)) for folder in folders]
        result = [(n, FolderStore(f)) for n, f in zip(names, folders, strict=True)]
    elif path.suffix in (".npy", ".raw"):
        raise DataError("a file of a data system, not the system", where=entry, remedy="name the folder of type.raw")
    else:
        groups = _groups(path, group if mark else "")
        result = [(f"{file}{HDF5_MARK}/{g}", GroupStore(path, g)) for g in groups]
    if not result:
        above = path.parent if (path.parent / "type.raw").is_file() else None
        matching = f", in a folder that rglob_patterns match ({', '.join(patterns)})" if patterns else ""
        raise DataError(
            "holds no data system", where=entry, expected=f"type.raw and set.*/coord.npy in it or below it{matching}",
            remedy=f"name the folder above: {above}" if above else None,
        )  # fmt: skip
    return result


def _folders(path: Path, patterns: list[str] | None) -> list[Path]:
    if patterns is None:
        found = {p.parent for p in path.rglob("type.raw") if p.is_file()}
    else:
        found = {p for pattern in patterns for p in path.rglob(pattern) if (p / "type.raw").is_file()}
    return sorted(found)


def _groups(path: Path, inside: str) -> list[str]:
    found: list[str] = []
    with _open(path) as file:
        top = file.get("/" + inside.strip("/"))
        if not isinstance(top, h5py.Group):
            expected = f"one of its groups: {', '.join(file)}" if len(file) < 20 else None
            raise DataError("the HDF5 file has no such group", where=f"{path}{HDF5_MARK}{inside}", expected=expected)
        if "type.raw" in top:
            found.append(top.name)
        top.visititems(
            lambda name, item: (
                found.append(f"{top.name}/{name}") if isinstance(item, h5py.Group) and "type.raw" in item else None
            )
        )
        return sorted(name.strip("/") for name in found)
