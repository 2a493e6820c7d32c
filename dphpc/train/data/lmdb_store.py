"""Groups of frames of an LMDB database as systems (see `lmdb_frames`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DataError, did_you_mean
from dphpc.train.data.lmdb_frames import FIELDS, METADATA, Database, Group

_SET = "set.000"


class Rows:
    """(n_frames, width) values of a field, read from the database when asked for if they are many."""

    ndim = 2

    def __init__(self, database: Database, group: Group, name: str) -> None:
        self._database, self._group, self._name = database, group, name
        self.dtype = np.dtype(np.int32 if name == "real_atom_types" else np.float64)
        self.shape = (len(group.frames), group.widths[name])
        self.size = math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> NDArray[Any]:
        if not isinstance(index, slice):
            return self._row(index)
        chosen = range(len(self))[index]
        rows = np.empty((len(chosen), self.shape[1]), self.dtype)
        for row, place in zip(rows, chosen, strict=True):
            row[:] = self._row(place)
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def reshape(self, *shape: int) -> Rows:
        """Itself: a system asks for the shape that it has found already."""
        assert shape == self.shape
        return self

    def not_finite(self) -> NDArray[np.bool_]:
        """(n_frames,) whether a frame has a value that is no number."""
        return np.frombuffer(self._group.finite[self._name], np.uint8) == 0

    def farthest(self) -> NDArray[np.float64]:
        """(n_frames,) Å, the largest coordinate's magnitude."""
        return np.frombuffer(self._group.farthest, np.float64)

    def _row(self, place: int) -> NDArray[Any]:
        if self._name == "box":
            row: NDArray[Any] = np.frombuffer(self._group.boxes, np.float64).reshape(-1, 9)[place]
        elif self._name == "real_atom_types":
            row = self._group.types[place]
        else:
            row = self._database.value(self._group.frames[place], self._name)
        return row.astype(self.dtype, copy=False)


class LmdbStore:
    """Frames of one number of atoms of a database, as a DeePMD-kit system of one set."""

    def __init__(self, database: Database, name: str) -> None:
        self._database, self.name, self._group = database, name, database.groups[name]

    def where(self, name: str = "") -> str:
        """How messages name an entry."""
        field_name = self._field(name)
        named = {"type.raw": "atom_types", "type_map.raw": f"{METADATA.decode()}, type_map"}.get(
            field_name, FIELDS.get(field_name, field_name)
        )
        return str(self._database.path) + (f", {named}" if named else "")

    def frame_name(self, index: int) -> str:
        """How messages name a frame."""
        return f"frame {self._database.key(self._group.frames[index])}"

    def has(self, name: str) -> bool:
        """Whether the entry is there."""
        if name == "nopbc":
            return "box" not in self._group.widths
        if name in ("type.raw", "type_map.raw"):
            return name == "type.raw" or self._database.type_map is not None
        field_name = self._field(name)
        return field_name in self._group.widths and (field_name != "real_atom_types" or self._is_mixed)

    def sets(self) -> list[str]:
        """Its one set."""
        return [_SET]

    def sources(self) -> NDArray[np.int64]:
        """(n_frames,) numbers of the systems that the frames came from."""
        return self._database.sources[self._group.frames]

    @property
    def n_sources(self) -> int:
        """Number of systems that the whole database came from."""
        return 1 + int(self._database.sources.max())

    def words(self, name: str) -> list[str]:
        """Types of the slots, or names of the types."""
        if name == "type_map.raw":
            return list(self._database.type_map or ())
        return ["0"] * self._group.n_atoms if self._is_mixed else [str(t) for t in self._group.types[0].tolist()]

    def array(self, name: str) -> Any:
        """The values of a field."""
        return Rows(self._database, self._group, self._field(name))

    @property
    def _is_mixed(self) -> bool:
        """Whether each frame has types of its own, or slots without atoms."""
        return not self._group.same_types or bool((self._group.types[0] < 0).any())

    def _field(self, name: str) -> str:
        return name.removeprefix(f"{_SET}/").removesuffix(".npy")


def lmdb_stores(database: Database, group: str, where: str) -> list[LmdbStore]:
    """The systems of a database, or the one that is named; raises DataError where there is none of that name."""
    name = group.strip("/")
    if name and name not in database.groups:
        raise DataError(
            f"the LMDB database has no group '{name}'", where=where, remedy=did_you_mean(name, list(database.groups)),
        )  # fmt: skip
    return [LmdbStore(database, g) for g in ([name] if name else database.groups)]
