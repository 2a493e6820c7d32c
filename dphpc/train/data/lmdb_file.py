"""Reading the file format of LMDB (data version 1): a B+ tree of pages, mapped into memory.

The LMDB library does not check page numbers and offsets, so that a truncated or damaged file crashes the process, and
with it a whole job.  Here each is checked before it is followed.  Numbers are little-endian:

    page      16 bytes: its number u64, unused u16, flags u16, end of the list of nodes u16, begin of the nodes u16 (an
              overflow page: the number of its pages u32 in place of the last two); then the list: offsets u16
    node      data size or child's low bits u16 u16, flags u16, key size u16; key; data (flag 1: the number u64 of the
              overflow page where they are)
    meta      pages 0 and 1, of which the one with the larger transaction number holds: magic u32, version u32, address,
              map size, two trees of 48 bytes (page size u32 in the first, flags u16, depth u16, numbers of branch, leaf
              and overflow pages, entries, root), last page, transaction number
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from dphpc.core.errors import DataError

FILE = "data.mdb"
"""Name of the database in its folder."""

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG_DATA, _OTHER_NODES = 1, 6
_HEAD, _NODE = 16, 8
_NONE = 2**64 - 1
_MAX_DEPTH = 32
_PAGE_SIZES = tuple(2**k for k in range(9, 17))

_Root = tuple[int, int]


class LmdbFile:
    """A database: finds the place of each key's value in the file.

    Attributes
    ----------
    path
        The file itself.

    Raises
    ------
    DataError
        The file cannot be opened, or is no LMDB of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / FILE if path.is_dir() else path
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise DataError(f"cannot be opened as LMDB: {error}", where=str(self.path)) from None
        self._page_size, self._root = self._newest()

    def value(self, offset: int, size: int) -> bytes:
        """The bytes of a value that `entries` found."""
        return self._map[offset : offset + size]

    def entries(self) -> Iterator[tuple[bytes, int, int]]:
        """(key, offset, size) of all values, by key.

        Raises
        ------
        DataError
            A page is not what it should be, or lies beyond the file's end.
        """
        seen: set[int] = set()
        yield from self._below(self._root, 0, seen) if self._root != _NONE else ()

    def _newest(self) -> _Root:
        """Page size, and root page of the last transaction's tree."""
        first = self._meta(0)
        if first is None:
            raise DataError(
                "is no LMDB database, or one of another version or machine", where=str(self.path),
                expected=f"LMDB's data version {_VERSION}, little-endian",
            )  # fmt: skip
        page_size, root, transaction = first
        second = self._meta(page_size)
        if second is not None and second[2] > transaction:
            page_size, root, _ = second
        return page_size, root

    def _meta(self, begin: int) -> tuple[int, int, int] | None:
        """Page size, root and transaction number of the meta page at this offset; None if there is none."""
        if begin + _HEAD + 136 > len(self._map):
            return None
        (flags,) = struct.unpack_from("<H", self._map, begin + 10)
        magic, version = struct.unpack_from("<II", self._map, begin + _HEAD)
        (page_size,) = struct.unpack_from("<I", self._map, begin + _HEAD + 24)
        root, _, transaction = struct.unpack_from("<QQQ", self._map, begin + _HEAD + 24 + 88)
        if not flags & _META or magic != _MAGIC or version != _VERSION or page_size not in _PAGE_SIZES:
            return None
        return page_size, root, transaction

    def _below(self, number: int, depth: int, seen: set[int]) -> Iterator[tuple[bytes, int, int]]:
        begin = self._begin(number)
        stored, flags, lower, upper = struct.unpack_from("<Q2xHHH", self._map, begin)
        kind = flags & (_BRANCH | _LEAF)
        if stored != number or kind not in (_BRANCH, _LEAF) or number in seen or depth > _MAX_DEPTH:
            raise self._damaged(number)
        if not _HEAD <= lower <= upper <= self._page_size or lower % 2:
            raise self._damaged(number)
        seen.add(number)
        for offset in struct.unpack_from(f"<{(lower - _HEAD) // 2}H", self._map, begin + _HEAD):
            if not upper <= offset <= self._page_size - _NODE:
                raise self._damaged(number)
            low, high, node_flags, key_size = struct.unpack_from("<HHHH", self._map, begin + offset)
            data = offset + _NODE + key_size
            if data > self._page_size:
                raise self._damaged(number)
            if kind == _BRANCH:
                yield from self._below(low | high << 16 | node_flags << 32, depth + 1, seen)
                continue
            key, size = self._map[begin + offset + _NODE : begin + data], low | high << 16
            if node_flags & _OTHER_NODES or data + (8 if node_flags & _BIG_DATA else size) > self._page_size:
                raise self._damaged(number)
            yield key, self._overflow(begin + data, size) if node_flags & _BIG_DATA else begin + data, size

    def _overflow(self, pointer: int, size: int) -> int:
        """Offset of a value that has overflow pages of its own."""
        (number,) = struct.unpack_from("<Q", self._map, pointer)
        begin = self._begin(number)
        stored, flags, pages = struct.unpack_from("<Q2xHI", self._map, begin)
        if stored != number or not flags & _OVERFLOW or _HEAD + size > pages * self._page_size:
            raise self._damaged(number)
        if begin + _HEAD + size > len(self._map):
            raise self._ends_early()
        return begin + _HEAD

    def _begin(self, number: int) -> int:
        if (number + 1) * self._page_size > len(self._map):
            raise self._ends_early()
        return number * self._page_size

    def _ends_early(self) -> DataError:
        return DataError(
            f"ends early, after {len(self._map)} bytes, or is damaged", where=str(self.path),
            remedy="copy it again, or write it anew",
        )  # fmt: skip

    def _damaged(self, page: int) -> DataError:
        return DataError(
            f"page {page} is damaged", where=str(self.path), remedy="copy the file again, or write it anew"
        )
