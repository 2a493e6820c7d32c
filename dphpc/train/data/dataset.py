"""The systems of a training or validation set, and batches of their frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dphpc.core.errors import DataError, counted
from dphpc.train.data.batch import Batch, FrameCache, Geometry, join
from dphpc.train.data.storage import find_stores
from dphpc.train.data.system import Frame, FrameInputs, System
from dphpc.train.schema.model import ModelConfig
from dphpc.train.schema.training import DataConfig, batch_rule

log = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES = 2 * 2**30

MAX_TYPES = 10
"""Most types whose numbers the log tells."""

SAME_PLACE = 1e-3
"""Å; atoms that differ by less in each coordinate are taken for one atom that is in the file twice."""


class Dataset:
    """Systems with one type map and one cutoff.

    Attributes
    ----------
    type_map
        Names of the types.
    rcut
        Å, reach of the batches' neighbor lists.
    """

    def __init__(
        self,
        systems: Sequence[System],
        type_map: Sequence[str],
        rcut: float,
        cache_bytes: float = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.systems = list(systems)
        self.type_map = list(type_map)
        self.rcut = rcut
        self._cache = FrameCache(cache_bytes)
        same = {id(system): k for k, system in enumerate(self.systems)}
        self._kept_as = [same[id(system)] for system in self.systems]  # a system that is named twice is cached once

    @classmethod
    def load(cls, data: DataConfig, model: ModelConfig, *, cache_bytes: float = DEFAULT_CACHE_BYTES) -> Dataset:
        """Open and check all systems of an input's data section.

        `batch_size: "filter:N"` leaves out systems with more than N atoms.

        Raises
        ------
        DataError
            A system is missing, damaged or inconsistent, or none is left.
        """
        inputs = FrameInputs.of(model.fitting_net)
        systems = open_systems(data.systems, model.type_map, inputs, patterns=data.rglob_patterns)
        if isinstance(data.batch_size, str) and batch_rule(data.batch_size)[0] == "filter":
            largest = batch_rule(data.batch_size)[1]
            systems = [s for s in systems if s.n_atoms <= largest]
            if not systems:
                raise DataError(
                    f"batch_size '{data.batch_size}' leaves no system", where=f"{data.section}/batch_size",
                    remedy="use a larger number",
                )  # fmt: skip
        return cls(systems, model.type_map, model.descriptor.rcut, cache_bytes)

    def __repr__(self) -> str:
        return f"Dataset({len(self.systems)} systems, {self.n_frames} frames, types {' '.join(self.type_map)})"

    @property
    def n_types(self) -> int:
        """Number of atom types of the type map."""
        return len(self.type_map)

    @property
    def n_frames(self) -> int:
        """Frames of all systems."""
        return sum(s.n_frames for s in self.systems)

    @property
    def absent(self) -> list[str]:
        """Names of the types of which no system has atoms."""
        present = set().union(*(s.present for s in self.systems))
        return [name for t, name in enumerate(self.type_map) if t not in present]

    @property
    def labels(self) -> frozenset[str]:
        """The labels that at least one system has."""
        return frozenset().union(*(s.labels for s in self.systems))

    def frame(self, system: int, index: int) -> Frame:
        """A frame of a system."""
        return self.systems[system].frame(index)

    def geometry(self, system: int, index: int) -> Geometry:
        """Ghosts and neighbors of a frame, cached.

        Raises
        ------
        DataError
            Two atoms are at the same place.
        """
        return self._one(system, index).geometries[0]

    def batch(self, system: int, frames: Sequence[int] | np.ndarray, part: tuple[int, int] = (0, 1)) -> Batch:
        """Frames of a system as one batch.

        `part` is (k, n): this rank evaluates the k-th (from 0) of n equal parts of the batch's atoms.
        """
        source = self.systems[system]
        indices = [int(i) for i in frames]
        k, n = part
        if n == 1:
            return join([self._one(system, i) for i in indices])
        ends = np.cumsum([0, *(len(source.types(i)) for i in indices)]).tolist()  # npy/mixed: frames of any size
        first, last = ends[-1] * k // n, ends[-1] * (k + 1) // n
        batches = [
            self._one(system, i) if first < ends[m + 1] and ends[m] < last
            else Batch.of(Geometry.hollow(self.frame(system, i), self.rcut), source.values(i))
            for m, i in enumerate(indices)
        ]  # fmt: skip
        return replace(join(batches), part=(first, last))

    def _one(self, system: int, index: int) -> Batch:
        """The batch of one frame, cached."""
        values = self.systems[system].values
        key = self._kept_as[system], index
        return self._cache.get(key, lambda: Batch.of(self._build(system, index), values(index)))

    def _build(self, system: int, index: int) -> Geometry:
        source = self.systems[system]
        geometry = Geometry.of(source.frame(index), self.rcut)
        n = geometry.neighbors
        centers = np.repeat(np.arange(geometry.n_local), np.diff(n.offsets))
        same = (np.abs(geometry.positions[centers] - geometry.positions[n.indices]) < SAME_PLACE).all(axis=1)
        if same.any():
            k = int(same.argmax())
            j = int(n.indices[k])
            j = j if j < geometry.n_local else int(geometry.owners[j - geometry.n_local])
            raise DataError(
                f"frame {index} has atoms {int(centers[k])} and {j} at one place",
                where=source.name,
                remedy="remove the frame or the duplicated atom",
            )
        return geometry


def open_systems(
    paths: Sequence[str],
    type_map: list[str],
    inputs: FrameInputs | None = None,
    *,
    patterns: Sequence[str] | None = None,
) -> list[System]:
    """Open the systems that `paths` name: systems, folders to be searched, `file.hdf5#/group`.

    A system that is named twice is in the list twice, as the same object.

    Raises
    ------
    DataError
        A system is missing, damaged or inconsistent.
    """
    opened: dict[str, System] = {}
    found = find_stores(paths, patterns)
    for name, store in found:
        if name not in opened:
            opened[name] = System(name, store, list(type_map), inputs)
    if nameless := sum(not system.has_names for system in opened.values()):
        order = ", ".join(f"{t} {name}" for t, name in enumerate(type_map[:MAX_TYPES]))
        more = ", …" if type_map[MAX_TYPES:] else ""
        log.info("%s without type_map.raw: types are taken as %s%s", counted(nameless, "system"), order, more)
    return [opened[name] for name, _ in found]
