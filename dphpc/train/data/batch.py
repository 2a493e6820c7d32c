"""Batches: frames of any sizes in flat arrays, local atoms of all frames first, then ghosts of all frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.potential.surroundings import Surroundings
from dphpc.train.data.system import Frame

FRAME_LABELS = ("energy", "virial", "fparam")
ATOM_LABELS = ("forces", "atom_ener", "atom_pref", "aparam")


@dataclass(frozen=True)
class Geometry:
    """A frame's atoms, ghosts and neighbors, which are the same in every step.

    Attributes
    ----------
    positions, types
        (n_all, 3) Å and (n_all,), local atoms first.
    owners
        (n_ghost,) the local atom whose image a ghost is.
    """

    n_local: int
    positions: Doubles
    types: NDArray[np.int32]
    owners: NDArray[np.int32]
    neighbors: Neighbors

    @classmethod
    def of(cls, frame: Frame, cutoff: float) -> Geometry:
        """Ghosts and neighbors within `cutoff` (Å) of a frame."""
        around = Surroundings.of(frame.positions, frame.box, frame.types, cutoff)
        state = around.state
        return cls(state.n_local, state.positions, state.types, around.owners, around.neighbors)

    @classmethod
    def hollow(cls, frame: Frame, cutoff: float) -> Geometry:
        """A frame of which this rank evaluates no atom, without ghosts and neighbors."""
        none = Neighbors(np.zeros(len(frame.types) + 1, np.int64), np.zeros(0, np.int32), cutoff)
        return cls(len(frame.types), frame.positions, frame.types, np.zeros(0, np.int32), none)

    @property
    def n_ghost(self) -> int:
        """Number of ghosts."""
        return len(self.owners)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.positions, self.types, self.owners, self.neighbors.offsets, self.neighbors.indices)
        return sum(a.nbytes for a in arrays)


@dataclass(frozen=True)
class Centers:
    """The atoms to be evaluated (n,), ordered by type, and the rows of each type as (type, slice)."""

    atoms: NDArray[np.int32]
    blocks: list[tuple[int, slice]]

    @property
    def types(self) -> tuple[int, ...]:
        """The types that occur, in order."""
        return tuple(t for t, _ in self.blocks)

    @classmethod
    def of(cls, groups: Mapping[int, NDArray[np.integer]]) -> Centers:
        """Centers from the atoms of each type."""
        ends = np.cumsum([0, *(len(atoms) for atoms in groups.values())]).tolist()
        blocks = [(t, slice(a, b)) for t, a, b in zip(groups, ends, ends[1:], strict=False)]
        return cls(np.concatenate([np.zeros(0, np.int32), *groups.values()]).astype(np.int32), blocks)

    def without(self, types: Container[int]) -> Centers:
        """The centers whose type is none of these."""
        kept = {t: self.atoms[rows] for t, rows in self.blocks if t not in types}
        return self if len(kept) == len(self.blocks) else Centers.of(kept)


class FrameCache:
    """Batches of one frame, by key; the least recently used are dropped when `max_bytes` is exceeded."""

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[Hashable, Batch] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Batch]) -> Batch:
        """The batch of `key`, built if it is not in the cache."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            return entry
        entry = build()
        self._entries[key] = entry
        self.nbytes += entry.nbytes
        while self.nbytes > self.max_bytes and self._entries:
            self.nbytes -= self._entries.popitem(last=False)[1].nbytes
        return entry


@dataclass(frozen=True)
class Batch:
    """Frames side by side, without padding.

    Attributes
    ----------
    natoms
        (n_frames,) local atoms of each frame.
    frame
        (n_local,) frame of each local atom.
    frame_offsets
        (n_frames + 1,) where each frame's local atoms begin.
    geometries
        The frames' own arrays; they are the same objects whenever a frame is drawn.
    energy, forces, virial, atom_ener, atom_pref
        (n_frames,) eV, (n_local, 3) eV/Å, (n_frames, 3, 3) eV, (n_local,) eV, (n_local,); None where missing.
    fparam, aparam
        (n_frames, numb_fparam), (n_local, numb_aparam); None if the model takes none.
    part
        (first, last) of the local atoms that this rank evaluates; None for all.  Frames without such atoms have neither
        ghosts nor neighbors.
    """

    natoms: NDArray[np.int64]
    frame: NDArray[np.int32]
    frame_offsets: NDArray[np.int64]
    geometries: tuple[Geometry, ...]
    energy: Doubles | None = None
    forces: Doubles | None = None
    virial: Doubles | None = None
    atom_ener: Doubles | None = None
    atom_pref: Doubles | None = None
    fparam: Doubles | None = None
    aparam: Doubles | None = None
    part: tuple[int, int] | None = None

    @classmethod
    def of(cls, geometry: Geometry, values: Mapping[str, Any]) -> Batch:
        """A batch of one frame; `values` are its labels from `System.values`."""
        n = geometry.n_local
        labels: dict[str, Any] = {name: np.array([values[name]], np.float64) for name in FRAME_LABELS if name in values}
        labels |= {name: values[name] for name in ATOM_LABELS if name in values}
        return cls(
            natoms=np.array([n]), frame=np.zeros(n, np.int32), frame_offsets=np.array([0, n]),
            geometries=(geometry,), **labels,
        )  # fmt: skip

    # Joined at first use only: a GPU joins the frames in its own memory.

    @cached_property
    def positions(self) -> Doubles:
        """(n_all, 3) Å: local atoms of all frames, then ghosts of all frames."""
        return self._local_then_ghosts([g.positions for g in self.geometries])

    @cached_property
    def types(self) -> NDArray[np.int32]:
        """(n_all,) types, in the order of `positions`."""
        return self._local_then_ghosts([g.types for g in self.geometries])

    @cached_property
    def owners(self) -> NDArray[np.int32]:
        """(n_ghost,) the local atom of which each ghost is an image."""
        if len(self.geometries) == 1:
            return self.geometries[0].owners
        first = self.frame_offsets[:-1].astype(np.int32)
        return np.concatenate([g.owners + o for g, o in zip(self.geometries, first, strict=True)])

    @cached_property
    def row_offsets(self) -> NDArray[np.int64]:
        """(n_local + 1,) where each local atom's neighbors begin."""
        first = np.cumsum([0, *(g.neighbors.n_pairs for g in self.geometries)])
        rows = [g.neighbors.offsets[:-1] + k for g, k in zip(self.geometries, first, strict=False)]
        return np.concatenate([*rows, first[-1:]])

    @cached_property
    def neighbors(self) -> Neighbors:
        """The neighbor list of all local atoms within rcut."""
        if len(self.geometries) == 1:
            return self.geometries[0].neighbors
        indices, ghost = [], self.n_local
        for g, first in zip(self.geometries, self.frame_offsets.tolist(), strict=False):
            # A frame's index i becomes i + first for a local atom, and moves behind all local atoms for a ghost.
            shift = np.where(g.neighbors.indices < g.n_local, np.int32(first), np.int32(ghost - g.n_local))
            indices.append(g.neighbors.indices + shift)
            ghost += g.n_ghost
        return Neighbors(self.row_offsets, np.concatenate(indices), self.geometries[0].neighbors.reach)

    def _local_then_ghosts(self, arrays: list[Any]) -> Any:
        if len(arrays) == 1:
            return arrays[0]
        parts = [*zip(arrays, self.geometries, strict=True)]
        return np.concatenate([*(a[: g.n_local] for a, g in parts), *(a[g.n_local :] for a, g in parts)])

    @cached_property
    def present(self) -> tuple[int, ...]:
        """The types that occur among the local atoms, in order."""
        return tuple(np.unique(self.types[: self.n_local]).tolist())

    @cached_property
    def centers(self) -> Centers:
        """The local atoms that this rank evaluates, ordered by type."""
        types = self.types[self.own]
        return Centers.of({t: self.own.start + np.flatnonzero(types == t) for t in np.unique(types).tolist()})

    @property
    def own(self) -> slice:
        """The local atoms that this rank evaluates, as a slice."""
        return slice(0, self.n_local) if self.part is None else slice(*self.part)

    @cached_property
    def n_own_pairs(self) -> int:
        """Number of pairs whose center this rank evaluates."""
        return int(self.row_offsets[self.own.stop] - self.row_offsets[self.own.start])

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.natoms)

    @property
    def n_local(self) -> int:
        """Number of atoms of all frames."""
        return len(self.frame)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames and their labels."""
        labels = (getattr(self, name) for name in (*FRAME_LABELS, *ATOM_LABELS))
        return sum(g.nbytes for g in self.geometries) + sum(a.nbytes for a in labels if a is not None)


def join(frames: Sequence[Batch]) -> Batch:
    """Join batches; a label that any of them lacks is None."""
    if len(frames) == 1:
        return frames[0]
    natoms = np.concatenate([f.natoms for f in frames])
    labels = {name: [getattr(f, name) for f in frames] for name in (*FRAME_LABELS, *ATOM_LABELS)}
    joined: dict[str, Any] = {n: np.concatenate(of) for n, of in labels.items() if all(a is not None for a in of)}
    return Batch(
        natoms=natoms,
        frame=np.repeat(np.arange(len(natoms), dtype=np.int32), natoms),
        frame_offsets=np.concatenate(([0], np.cumsum(natoms))),
        geometries=tuple(g for f in frames for g in f.geometries),
        **joined,
    )
