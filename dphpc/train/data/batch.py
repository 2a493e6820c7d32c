"""Frames of any sizes as one flat batch: local atoms of all frames, then the ghosts of all frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.images import fold_ghosts
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.potential.surroundings import Surroundings
from dphpc.train.data.system import Frame

Floats = NDArray[np.float64]

LABEL_NAMES = ("energy", "forces", "virial", "atom_ener", "atom_pref", "fparam", "aparam")


@dataclass(frozen=True)
class Geometry:
    """A frame's atoms, ghosts and neighbors, which training never changes.

    Attributes
    ----------
    positions, types
        (n_all, 3) Å and (n_all,), local atoms first.
    owner
        (n_ghost,) the local atom whose image a ghost is.
    volume
        Å³, 0 for an open system.
    """

    n_local: int
    positions: Floats
    types: NDArray[np.int32]
    owner: NDArray[np.int32]
    neighbors: Neighbors
    volume: float

    @classmethod
    def of(cls, frame: Frame, cutoff: float) -> Geometry:
        """Ghosts and neighbors within `cutoff` (Å) of a frame."""
        around = Surroundings.of(frame.positions, frame.box, frame.types, cutoff)
        state = around.state
        return cls(state.n_local, state.positions, state.types, around.owners, around.neighbors, _volume(frame))

    @classmethod
    def hollow(cls, frame: Frame, cutoff: float) -> Geometry:
        """A frame of which no atom is to be evaluated: no ghosts, no neighbors."""
        none = Neighbors(np.zeros(len(frame.types) + 1, np.int64), np.zeros(0, np.int32), cutoff)
        return cls(len(frame.types), frame.positions, frame.types, np.zeros(0, np.int32), none, _volume(frame))

    @property
    def n_ghost(self) -> int:
        """Number of images."""
        return len(self.owner)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self.positions, self.types, self.owner, self.neighbors.offsets, self.neighbors.indices)
        return sum(a.nbytes for a in arrays)


def _volume(frame: Frame) -> float:
    """Å³, 0 for an open system."""
    return frame.box.volume if any(frame.box.periodic) else 0.0


class GeometryCache:
    """Geometries by key, the least recently used dropped when `max_bytes` is exceeded."""

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[Hashable, Geometry] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Geometry]) -> Geometry:
        """The geometry of `key`, built if it is not at hand."""
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
    positions, types
        (n_all, 3) Å, (n_all,): local atoms of all frames, then ghosts of all frames.
    owner
        (n_ghost,) the local atom whose image a ghost is.
    neighbors
        Rows of all local atoms, reach = rcut.
    volume
        (n_frames,) Å³, 0 for open systems.
    energy, forces, virial, atom_ener, atom_pref
        (n_frames,) eV, (n_local, 3) eV/Å, (n_frames, 3, 3) eV, (n_local,) eV, (n_local,); None where missing.
    fparam, aparam
        (n_frames, numb_fparam), (n_local, numb_aparam); None if the model takes none.
    part
        (first, last) of the local atoms that this rank evaluates; None for all.  Frames without such atoms have
        neither ghosts nor neighbors.
    geometries
        The frames' own arrays, which come again with the frames.
    """

    natoms: NDArray[np.int64]
    frame: NDArray[np.int32]
    frame_offsets: NDArray[np.int64]
    positions: Floats
    types: NDArray[np.int32]
    owner: NDArray[np.int32]
    neighbors: Neighbors
    volume: Floats
    energy: Floats | None = None
    forces: Floats | None = None
    virial: Floats | None = None
    atom_ener: Floats | None = None
    atom_pref: Floats | None = None
    fparam: Floats | None = None
    aparam: Floats | None = None
    part: tuple[int, int] | None = None
    geometries: tuple[Geometry, ...] = ()

    @property
    def own(self) -> slice:
        """The local atoms that this rank evaluates."""
        return slice(0, self.n_local) if self.part is None else slice(*self.part)

    @property
    def n_own_pairs(self) -> int:
        """Neighbors of those atoms."""
        offsets = self.neighbors.offsets
        return int(offsets[self.own.stop] - offsets[self.own.start])

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.natoms)

    @property
    def n_local(self) -> int:
        """Atoms of all frames."""
        return len(self.frame)

    @property
    def n_ghost(self) -> int:
        """Images of all frames."""
        return len(self.owner)

    @property
    def n_all(self) -> int:
        """Atoms and images."""
        return len(self.types)

    @property
    def periodic(self) -> bool:
        """Whether the frames have boxes (all of a system's frames do, or none)."""
        return bool((self.volume > 0).all())

    def fold(self, forces: Floats) -> Floats:
        """(n_local, 3): forces (n_all, 3) with every ghost's share given to its owner."""
        return fold_ghosts(forces, self.owner, self.n_local)


def join(geometries: Sequence[Geometry], values: Sequence[dict[str, Any]]) -> Batch:
    """One batch of these frames; `values` are their labels as `System.values` gives them.

    A label that any frame lacks is None.
    """
    natoms = np.array([g.n_local for g in geometries], np.int64)
    offsets = np.zeros(len(geometries) + 1, np.int64)
    np.cumsum(natoms, out=offsets[1:])
    labels: dict[str, Any] = {name: _stack(name, values) for name in LABEL_NAMES if all(name in v for v in values)}
    return Batch(
        natoms=natoms,
        frame=np.repeat(np.arange(len(geometries), dtype=np.int32), natoms),
        frame_offsets=offsets,
        volume=np.array([g.volume for g in geometries]),
        geometries=tuple(geometries),
        **_join_arrays(geometries, offsets),
        **labels,
    )


def _stack(name: str, values: Sequence[dict[str, Any]]) -> Floats:
    if name in ("energy", "virial", "fparam"):
        return np.array([v[name] for v in values], np.float64)
    return np.concatenate([v[name] for v in values])


def _join_arrays(geometries: Sequence[Geometry], offsets: NDArray[np.int64]) -> dict[str, Any]:
    if len(geometries) == 1:
        g = geometries[0]
        return {"positions": g.positions, "types": g.types, "owner": g.owner, "neighbors": g.neighbors}
    ghost_offset = int(offsets[-1])
    row_offset = 0
    indices, rows = [], [np.zeros(1, np.int64)]
    for g, first in zip(geometries, offsets[:-1].tolist(), strict=True):
        # Index i of a frame becomes i + first for a local atom, and its place among all ghosts otherwise.
        shift = np.where(g.neighbors.indices < g.n_local, np.int32(first), np.int32(ghost_offset - g.n_local))
        indices.append(g.neighbors.indices + shift)
        rows.append(g.neighbors.offsets[1:] + row_offset)
        ghost_offset += g.n_ghost
        row_offset += g.neighbors.n_pairs
    local = [slice(None, g.n_local) for g in geometries]
    ghost = [slice(g.n_local, None) for g in geometries]
    order = [*zip(geometries, local, strict=True), *zip(geometries, ghost, strict=True)]
    return {
        "positions": np.concatenate([g.positions[part] for g, part in order]),
        "types": np.concatenate([g.types[part] for g, part in order]),
        "owner": np.concatenate([g.owner + np.int32(o) for g, o in zip(geometries, offsets[:-1], strict=True)]),
        "neighbors": Neighbors(np.concatenate(rows), np.concatenate(indices), geometries[0].neighbors.reach),
    }
