"""The atoms of a rank as a structure of arrays, each field declared once.

Migration, halo, restart and output iterate over `FIELDS`: a new per-atom field is one line there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box

VIRTUAL = -1
"""Type of a slot without an atom: data with frames of different sizes pad them to one length."""


@dataclass(frozen=True)
class Field:
    """What one per-atom array is and where it travels.

    `migrates`: moves with the atom to another rank.  `ghosts`: copied to ghost atoms when they are
    built.  `restart`: written to restart files.
    """

    name: str
    shape: tuple[int, ...]
    dtype: type
    unit: str
    migrates: bool = True
    ghosts: bool = False
    restart: bool = True


FIELDS: tuple[Field, ...] = (
    Field("ids", (), np.int64, "", ghosts=True),
    Field("types", (), np.int32, "", ghosts=True),
    Field("positions", (3,), np.float64, "Å", ghosts=True),
    Field("velocities", (3,), np.float64, "Å/ps"),
    Field("images", (3,), np.int32, "box vectors"),
    Field("fixed", (), np.int32, ""),
    Field("group", (), np.int32, ""),
    Field("forces", (3,), np.float64, "eV/Å", migrates=False, restart=False),
)

MIGRATING = tuple(f for f in FIELDS if f.migrates)
GHOSTED = tuple(f for f in FIELDS if f.ghosts)
RESTARTED = tuple(f for f in FIELDS if f.restart)

PIECE = 1 << 14
"""Atoms that are worked on at a time, so that temporary arrays fit into the cache and are reused by the allocator."""


def pieces(n: int) -> list[slice]:
    """Slices of at most `PIECE` atoms that cover n atoms."""
    return [slice(first, min(first + PIECE, n)) for first in range(0, n, PIECE)]


def row_dtype(fields: Sequence[Field]) -> np.dtype:
    """The structured type with one atom's fields, as messages carry them."""
    return np.dtype([(f.name, f.dtype, f.shape) for f in fields])


class State:
    """Local atoms first, ghosts behind them: arrays of length `n_all = n_local + n_ghost`.

    A position is always inside or near the rank's part of the box; `images` counts the box vectors
    by which the true (unwrapped) position lies further.  `fixed` tells the directions in which an
    atom does not move (`core.fixing`), where its velocity is 0.  `group` is the number, from 1, of its group in the run
    file, 0 if it is in none.  Ghost entries of fields that ghosts do not carry are undefined, except that `forces` of
    ghosts take what the rank's centers exert on them.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int32]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    images: NDArray[np.int32]
    fixed: NDArray[np.int32]
    group: NDArray[np.int32]
    forces: NDArray[np.float64]

    def __init__(self, box: Box, n_local: int = 0) -> None:
        self.box = box
        self.n_local = n_local
        self.n_ghost = 0
        self._store: dict[str, NDArray] = {}
        self._reserve(n_local)
        self._bind()

    @property
    def n_all(self) -> int:
        """Local atoms and ghosts."""
        return self.n_local + self.n_ghost

    def resize(self, n_local: int, n_ghost: int) -> None:
        """Set the numbers of atoms; values of the first min(old, new) entries stay."""
        self._reserve(n_local + n_ghost)
        self.n_local, self.n_ghost = n_local, n_ghost
        self._bind()

    def rows(self, fields: tuple[Field, ...], index: NDArray[np.integer]) -> NDArray:
        """The atoms at `index` as a structured array of `fields`."""
        rows = np.empty(len(index), row_dtype(fields))
        for f in fields:
            rows[f.name] = getattr(self, f.name).take(index, axis=0)  # several times as fast as array[index]
        return rows

    def keep_local(self, index: NDArray[np.integer]) -> None:
        """Keep only the local atoms at `index`, in that order; drops the ghosts."""
        for f in MIGRATING:
            array = getattr(self, f.name)
            array[: len(index)] = array.take(index, axis=0)
        self.resize(len(index), 0)

    def append_local(self, rows: NDArray) -> None:
        """Append local atoms, a structured array of fields; there must be no ghosts."""
        assert self.n_ghost == 0
        assert rows.dtype.names is not None
        old = self.n_local
        self.resize(old + len(rows), 0)
        for name in rows.dtype.names:
            getattr(self, name)[old:] = rows[name]

    def set_ghosts(self, rows: NDArray) -> None:
        """Replace the ghosts by these, a structured array of the fields in `GHOSTED`."""
        self.resize(self.n_local, len(rows))
        for f in GHOSTED:
            getattr(self, f.name)[self.n_local :] = rows[f.name]

    def flip_box(self, ways: NDArray[np.int32]) -> None:
        """Replace the box by `Box.combined`; the local atoms stay where they are, and need not be inside it then."""
        n, back = self.n_local, np.rint(np.linalg.inv(ways)).astype(np.int32)
        self.box, self.images[:n] = self.box.combined(ways), self.images[:n] @ back

    def wrapped(self) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Positions (n_local, 3) inside the box along its periodic directions, and the images that belong to them."""
        return self.box.wrapped(self.positions[: self.n_local], self.images[: self.n_local])

    def _reserve(self, n: int) -> None:
        # An eighth of head-room keeps buffers in place from one rebuild to the next.
        for f in FIELDS:
            old = self._store.get(f.name)
            if old is None or len(old) < n:
                new: NDArray = np.zeros((n + n // 8 if old is not None else n, *f.shape), f.dtype)
                if old is not None:
                    new[: len(old)] = old
                self._store[f.name] = new

    def _bind(self) -> None:
        for f in FIELDS:
            setattr(self, f.name, self._store[f.name][: self.n_all])
