"""Writing frames as one LMDB database, as dpdata writes it (see `lmdb_frames`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
from numpy.typing import NDArray

from dphpc.train.data.lmdb_frames import FIELDS, METADATA, NUMBER_FORMAT

Frame = Mapping[str, NDArray[Any]]

_FIRST_MAP = 2**24
"""Initial limit on the size of a database, in bytes; doubled whenever it is reached."""

_COMMIT = 1000
"""Number of frames written in one transaction."""

_SHAPES = {
    "coord": (-1, 3), "force": (-1, 3), "box": (3, 3), "virial": (3, 3), "energy": (),
}  # fmt: skip
"""Shapes of the fields that are not flat."""


def write_lmdb(
    folder: Path, systems: Sequence[tuple[NDArray[np.int32], Iterable[Frame]]], names: Sequence[str]
) -> None:
    """Write systems, (types, frames) each, one after the other; `frame_system_ids` keeps them apart.

    Raises
    ------
    OSError
        The disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True)
    sizes: list[int] = []
    sources: list[int] = []
    try:
        # Without a lock file: no other process knows this folder yet.
        with lmdb.open(str(folder), map_size=_FIRST_MAP, lock=False) as database:
            pending: list[tuple[bytes, bytes]] = []
            for source, types, frame in _frames(systems):
                pending.append((format(len(sizes), NUMBER_FORMAT).encode(), _packed(types, frame, len(names))))
                sizes.append(len(types))
                sources.append(source)
                if len(pending) == _COMMIT:
                    _put(database, pending)
                    pending = []
            metadata = {
                "nframes": len(sizes),
                "frame_idx_fmt": NUMBER_FORMAT,
                "type_map": list(names),
                "frame_nlocs": sizes,
                "frame_system_ids": sources,
            }
            _put(database, [*pending, (METADATA, msgpack.packb(metadata))])
    except lmdb.Error as error:
        raise OSError(str(error).rpartition(": ")[2]) from None


def _frames(systems: Sequence[tuple[NDArray[np.int32], Iterable[Frame]]]) -> Iterator[tuple[int, Any, Frame]]:
    for source, (types, frames) in enumerate(systems):
        for frame in frames:
            yield source, types, frame


def _packed(types: NDArray[np.int32], frame: Frame, n_types: int) -> bytes:
    fields = {
        FIELDS.get(name, name): _encoded(value.reshape(_SHAPES.get(name, (-1,)))) for name, value in frame.items()
    }
    fields["atom_types"] = _encoded(types.astype(np.int32))
    return msgpack.packb({**fields, "atom_numbs": np.bincount(types, minlength=n_types).tolist()})


def _encoded(array: NDArray[Any]) -> dict[str, Any]:
    return {"type": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}


def _put(database: lmdb.Environment, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    while True:
        try:
            with database.begin(write=True) as transaction:
                for key, value in pairs:
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            database.set_mapsize(2 * database.info()["map_size"])
