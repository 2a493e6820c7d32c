"""DeePMD-kit's data in LMDB: frames of any sizes in one database, each a msgpack map under its number.

    __metadata__      {nframes, frame_idx_fmt "012d", type_map, frame_nlocs, frame_system_ids}
    000000000000      {coords, cells, energies, forces, virials, atom_types, atom_ener, fparam, …}

An array is {type: "float64", shape: [n, 3], data: bytes}; a number may be stored as such.  As in DeePMD-kit, frames
with the same number of atoms and the same labels form a system; a frame without `cells`, or with zeros, has no periodic
boundaries.  Every frame is read once when the database is opened, and again when it is drawn; no pickled object is ever
read.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DataError
from dphpc.train.data.lmdb_file import FILE, LmdbFile

SUFFIX = ".lmdb"
METADATA = b"__metadata__"
NUMBER_FORMAT = "012d"

FIELDS = {
    "coord": "coords", "box": "cells", "energy": "energies", "force": "forces", "virial": "virials",
    "real_atom_types": "atom_types",
}  # fmt: skip
"""Name of a `.npy` file, and of the field in the database; other fields have the same name in both."""

_NAMES = {theirs: ours for ours, theirs in FIELDS.items()} | {"atype": "real_atom_types"}
_LABELS = ("energy", "force", "virial", "atom_ener", "atom_pref", "fparam", "aparam")
_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248])|float(16|32|64)|u?int(8|16|32|64)")
_MAX_DIMENSIONS = 4
_NEEDED = ("real_atom_types", "coord")
_KNOWN = frozenset((*_NEEDED, "box", *_LABELS))
_PER_ATOM = {"coord": 3, "force": 3, "atom_ener": 1, "atom_pref": 1}
_PER_FRAME = {"box": 9, "energy": 1, "virial": 9}


def is_lmdb(path: Path) -> bool:
    """Whether a path is a DeePMD-kit data set in LMDB, by its name or content."""
    return path.suffix == SUFFIX or (path / FILE).is_file()


@lru_cache(64)
def _dtype(name: str | bytes) -> np.dtype[Any] | None:
    """The NumPy type of this name; None if it is no type of numbers."""
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    return np.dtype(text) if _DTYPE.fullmatch(text) else None


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in value)


class Database:
    """A database and its frames.

    Attributes
    ----------
    type_map
        Names of the types, None if the database has none.
    sources
        (n_frames,) numbers of the systems that frames came from, 0 if the database does not say.
    groups
        Frames that one system can hold, by name: the number of atoms, `_nopbc`, and a number where labels differ.

    Raises
    ------
    DataError
        Not LMDB, damaged, or a frame is missing or not as it should be; names the key.
    """

    def __init__(self, path: Path) -> None:
        self._file = LmdbFile(path)
        self.path = path
        self._last: tuple[int, dict[str, Any]] = (-1, {})
        entries = list(self._file.entries())
        meta = next((entry for entry in entries if entry[0] == METADATA), None)
        if meta is None:
            raise DataError(
                "the database has no metadata", where=str(path), expected="the key __metadata__, as dpdata writes it"
            )
        metadata = self._unpack(METADATA.decode(), *meta[1:])
        self._format = self._read_format(metadata)
        self._places = self._frame_places(entries, self._read_count(metadata, len(entries) - 1))
        self.type_map = self._read_type_map(metadata)
        self.sources = self._read_sources(metadata)
        self.groups = self._group(self._read_sizes(metadata))

    def key(self, index: int) -> str:
        """The key of a frame, by its number in the database."""
        return format(index, self._format)

    def where(self, index: int, name: str = "") -> str:
        """How messages name a frame, and a value in it."""
        return f"{self.path}, key {self.key(index)}" + (f", {FIELDS.get(name, name)}" if name else "")

    def value(self, index: int, name: str) -> NDArray[Any]:
        """(n,) a field of a frame, by the name of its `.npy` file."""
        return self._array(self._fields(index)[name], index, name)

    def _fields(self, index: int) -> dict[str, Any]:
        """What a frame holds of what we know, by the names of `.npy` files, as it is stored."""
        if index != self._last[0]:
            stored = self._unpack(self.key(index), *self._places[index].tolist())
            known = {_NAMES.get(key, key): value for key, value in stored.items()}
            for name in set(known).difference(_KNOWN):
                if name.startswith("find_") and known[name] == 0:
                    known.pop(name.removeprefix("find_"), None)
                del known[name]
            self._last = index, known  # a frame's fields are asked for one after the other
        return self._last[1]

    def _unpack(self, key: str, offset: int, size: int) -> dict[str, Any]:
        where = f"{self.path}, key {key}"
        try:
            value = msgpack.unpackb(self._file.value(offset, size), raw=False, strict_map_key=False)
        except Exception as error:  # msgpack raises whatever a damaged text leads to
            raise DataError(
                f"is not a msgpack map: {type(error).__name__}: {error}", where=where, remedy="write it anew"
            ) from None
        if not isinstance(value, dict):
            raise DataError("is not a msgpack map", where=where, remedy="write it anew")
        return {k if isinstance(k, str) else str(k): v for k, v in value.items()}

    def _array(self, value: Any, index: int, name: str) -> NDArray[Any]:
        """(n,) the values of a field, whose size is known to be that of its bytes."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return np.array([value], np.float64)
        parts = value if isinstance(value, dict) else {}
        dtype, shape, data = ((parts.get(part) or parts.get(part.encode())) for part in ("type", "shape", "data"))
        kind = _dtype(dtype if isinstance(dtype, str | bytes) else "")
        shape, data = shape if shape is not None else [], data if data is not None else b""
        if kind is None or not _is_shape(shape) or not isinstance(data, bytes):
            raise DataError(
                "is no array of numbers", where=self.where(index, name),
                expected="{type: float64, …, shape: [n, …], data: bytes}",
            )  # fmt: skip
        if math.prod(shape) * kind.itemsize != len(data):
            raise DataError(
                f"has {len(data)} bytes for {kind} of shape {shape}", where=self.where(index, name),
                expected=f"{math.prod(shape) * kind.itemsize} bytes",
            )  # fmt: skip
        return np.frombuffer(data, kind)

    # -- metadata ------------------------------------------------------------------------------------------------

    def _read_format(self, metadata: Mapping[str, Any]) -> str:
        text = metadata.get("frame_idx_fmt", NUMBER_FORMAT)
        if not isinstance(text, str) or not re.fullmatch(r"(0?[1-9]\d?)?d", text):
            raise self._wrong("frame_idx_fmt", text, f"a format of whole numbers such as {NUMBER_FORMAT}")
        return text

    def _read_count(self, metadata: Mapping[str, Any], stored: int) -> int:
        n = metadata.get("nframes")
        if type(n) is not int or n < 1:
            raise self._wrong("nframes", n, "a number of frames")
        if n > stored:
            raise self._wrong("nframes", n, f"at most {stored}, the number of keys beside it")
        return n

    def _read_type_map(self, metadata: Mapping[str, Any]) -> list[str] | None:
        names = metadata.get("type_map")
        if names is None:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._wrong("type_map", names, "a list of names")
        return names

    def _read_sizes(self, metadata: Mapping[str, Any]) -> list[int] | None:
        sizes = metadata.get("frame_nlocs")
        if sizes is None:
            return None
        if not isinstance(sizes, list) or len(sizes) != len(self._places):
            n = len(sizes) if isinstance(sizes, list) else sizes
            raise self._wrong("frame_nlocs", n, f"a list of {len(self._places)} numbers")
        return sizes

    def _read_sources(self, metadata: Mapping[str, Any]) -> NDArray[np.int64]:
        n = len(self._places)
        sources = metadata.get("frame_system_ids")
        if sources is None:
            return np.zeros(n, np.int64)
        if (
            not isinstance(sources, list)
            or len(sources) != n
            or not all(type(k) is int and 0 <= k < n for k in sources)
        ):
            raise self._wrong("frame_system_ids", sources, f"a list of {n} numbers of systems, counted from 0")
        return np.array(sources, np.int64)

    def _wrong(self, name: str, value: Any, expected: str) -> DataError:
        return DataError(
            f"'{name}' is {str(value)[:80]}", where=f"{self.path}, key {METADATA.decode()}", expected=expected
        )

    def _frame_places(self, entries: Sequence[tuple[bytes, int, int]], n_frames: int) -> NDArray[np.int64]:
        """(n_frames, 2) where the frames lie in the file, and their numbers of bytes."""
        places = np.full((n_frames, 2), -1, np.int64)
        for key, offset, size in entries:
            index = int(key) if key.isdigit() and len(key) < 100 else n_frames
            if index < n_frames and self.key(index).encode() == key:
                places[index] = offset, size
        missing = places[:, 0] < 0
        if missing.any():
            first = int(missing.argmax())
            raise DataError(
                f"frame {first} of {n_frames} is missing", where=self.where(first),
                remedy="write the database anew: it is not complete",
            )  # fmt: skip
        return places

    # -- groups --------------------------------------------------------------------------------------------------

    def _group(self, sizes: Sequence[int] | None) -> dict[str, Group]:
        found: dict[tuple[Any, ...], Group] = {}
        for index in range(len(self._places)):
            values = {name: self.value(index, name) for name in self._fields(index)}
            n = self._check(index, values)
            if sizes is not None and sizes[index] != n:
                raise DataError(
                    f"the frame has {n} atoms", where=self.where(index), expected=f"{sizes[index]}, as the metadata say"
                )
            if not np.any(values.get("box", 0)):
                values.pop("box", None)
            widths = {name: len(value) for name, value in values.items()}
            key = (n, "box" in values, *sorted(widths.items()))
            if key not in found:
                found[key] = Group(n, widths)
            found[key].add(index, values)
        return _named(found.values())

    def _check(self, index: int, values: Mapping[str, NDArray[Any]]) -> int:
        """The number of atoms of a frame whose fields have the sizes that follow from it."""
        for name in _NEEDED:
            if name not in values:
                raise DataError("the frame lacks this", where=self.where(index, name))
        types = values["real_atom_types"]
        if types.dtype.kind not in "iu" or not -(2**31) <= types.min(initial=0) <= types.max(initial=0) < 2**31:
            raise DataError("types are not integers", where=self.where(index, "real_atom_types"))
        n = len(types)
        expected = {name: n * width for name, width in _PER_ATOM.items()} | _PER_FRAME
        for name, value in values.items():
            if len(value) != expected.get(name, len(value)):
                raise DataError(
                    f"has {len(value)} values", where=self.where(index, name),
                    expected=f"{expected[name]} ({n} atoms)",
                )  # fmt: skip
        return n


@dataclass
class Group:
    """Frames of one number of atoms, with the same fields, and what is kept of each since it was first read.

    Attributes
    ----------
    widths
        Number of values of each field.
    frames
        Their numbers in the database.
    types
        (n_atoms,) of each frame.
    same_types
        Whether all frames have those of the first.
    boxes
        Nine numbers of each frame, Å; none for open ones.
    finite
        Of each field one byte a frame: whether all its values are finite.
    farthest
        Of each frame the largest coordinate's magnitude, Å.
    """

    n_atoms: int
    widths: dict[str, int]
    frames: list[int] = field(default_factory=list)
    types: list[NDArray[Any]] = field(default_factory=list)
    same_types: bool = True
    boxes: array[float] = field(default_factory=lambda: array("d"))
    finite: dict[str, bytearray] = field(default_factory=dict)
    farthest: array[float] = field(default_factory=lambda: array("d"))

    def add(self, index: int, values: Mapping[str, NDArray[Any]]) -> None:
        """Take in a frame."""
        self.frames.append(index)
        types, first = values["real_atom_types"], self.types[0] if self.types else None
        same = first is not None and np.array_equal(types, first)
        self.types.append(first if same and first is not None else types.copy())  # the same array, not one more
        self.same_types = self.same_types and (first is None or same)
        self.boxes.extend(values.get("box", ()))
        for name, value in values.items():
            self.finite.setdefault(name, bytearray()).append(bool(np.isfinite(value).all()))
        self.farthest.append(float(np.abs(values["coord"]).max(initial=0.0)))


def _named(groups: Any) -> dict[str, Group]:
    named: dict[str, Group] = {}
    for group in sorted(groups, key=lambda g: g.n_atoms):
        base = f"{group.n_atoms}" + ("" if "box" in group.widths else "_nopbc")
        same = sum(name == base or name.startswith(f"{base}_v") for name in named)
        named[f"{base}_v{same}" if same else base] = group
    return named
