"""Neighbor statistics of data, the shortest distance and the largest numbers of neighbors, e.g. for `sel: auto`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DataError, InputError
from dphpc.train.data.batch import Geometry
from dphpc.train.data.dataset import Dataset, open_systems
from dphpc.train.data.storage import find_stores
from dphpc.train.schema.model import MAX_RCUT, ModelConfig, auto_sel_factor

TOO_NEAR = 0.5
"""Å: nearer atoms are told of; the bond of H2 is 0.74 Å long."""


@dataclass(frozen=True)
class NeighborStat:
    """Neighbor statistics of a data set.

    Attributes
    ----------
    min_distance
        Å, shortest distance between two atoms; inf if no atom has a neighbor within rcut.
    max_neighbors
        (ntypes,) the largest number of neighbors of each type within rcut of an atom; (1,) of all types together.
    lonely
        Systems in which some frame has no neighbors at all.
    nearest
        Where the two nearest atoms are: system and frame.
    """

    min_distance: float
    max_neighbors: NDArray[np.int64]
    rcut: float
    lonely: tuple[str, ...] = ()
    nearest: str = ""

    def lines(self) -> list[str]:
        """What `dp neighbor-stat` prints."""
        counts = "[" + " ".join(str(n) for n in self.max_neighbors) + "]"
        warnings = [
            f"Atoms with no neighbors found in {name}. Please make sure it's what you expected." for name in self.lonely
        ]
        if self.min_distance < TOO_NEAR:
            warnings.append(
                f"Atoms are only {self.min_distance:.3g} Å apart in {self.nearest}. Are its positions in Å?"
            )
        return [
            *warnings,
            f"Neighbor statistics: training data with minimal neighbor distance: {self.min_distance:f}",
            f"Neighbor statistics: training data with maximum neighbor size: {counts} (cutoff radius: {self.rcut:f})",
            f"min_nbor_dist: {self.min_distance:f}",
            f"max_nbor_size: {counts}",
        ]


def neighbor_stat(dataset: Dataset, rcut: float | None = None, mixed_type: bool = False) -> NeighborStat:
    """Statistics of all frames within `rcut` (Å; the data set's own cutoff if None).

    With `mixed_type` neighbors of all types are counted together.

    Raises
    ------
    DataError
        Two atoms are at the same place.
    """
    rcut = dataset.rcut if rcut is None else rcut
    other = dataset if rcut == dataset.rcut else Dataset(dataset.systems, dataset.type_map, rcut, cache_bytes=0)
    shortest, nearest, most = math.inf, "", np.zeros(1 if mixed_type else dataset.n_types, np.int64)
    lonely: list[str] = []
    for s, system in enumerate(other.systems):
        for i in range(system.n_frames):
            distance, counts = _of_frame(other.geometry(s, i), other.n_types)
            counts = counts.sum(axis=1, keepdims=True) if mixed_type else counts
            most = np.maximum(most, counts.max(axis=0))
            if distance < shortest:
                shortest, nearest = distance, f"{system.name}, frame {i}"
            if math.isinf(distance) and system.name not in lonely:
                lonely.append(system.name)
    return NeighborStat(shortest, most, rcut, tuple(lonely), nearest)


def neighbor_stat_of(
    paths: Sequence[str], rcut: float, type_map: Sequence[str] | None = None, mixed_type: bool = False
) -> tuple[NeighborStat, list[str]]:
    """Statistics of the systems that `paths` name, and the type map used, by default the systems' own.

    Raises
    ------
    InputError
        `rcut` is not between 0 and `MAX_RCUT`.
    DataError
        A system is missing, damaged or inconsistent, or the systems name no types.
    """
    if not 0.0 < rcut <= MAX_RCUT:
        raise InputError(f"rcut is {rcut:g}", where="--rcut", expected=f"a positive length in Å, at most {MAX_RCUT:g}")
    names = list(type_map) if type_map else common_type_map(paths)
    dataset = Dataset(open_systems(paths, names), names, rcut, cache_bytes=0)
    return neighbor_stat(dataset, mixed_type=mixed_type), names


def common_type_map(paths: Sequence[str]) -> list[str]:
    """The element names of all systems, in the order in which they are met.

    Raises
    ------
    DataError
        A system has no `type_map.raw`.
    """
    names: dict[str, None] = {}
    for name, store in find_stores(paths):
        if not store.has("type_map.raw"):
            raise DataError("the system does not name its types", where=name, remedy="give the type map (-t O H …)")
        names.update(dict.fromkeys(store.words("type_map.raw")))
    return list(names)


def resolve_sel(model: ModelConfig, stat: NeighborStat) -> ModelConfig:
    """The model with `sel` as numbers; for `auto` the largest counts times its factor, rounded up to a multiple of 4.

    Raises
    ------
    InputError
        `sel` is `auto`, and no atom has a neighbor.
    """
    sel = model.descriptor.sel
    if not isinstance(sel, str):
        return model
    if not stat.max_neighbors.any():
        raise InputError(
            f"no atom of the data has a neighbor within rcut, {stat.rcut:g} Å", where="model/descriptor/rcut",
            expected="a length in Å", remedy="make it larger; with 'sel' as numbers the data are taken as they are",
        )  # fmt: skip
    factor = auto_sel_factor(sel)
    numbers = [4 * ((int(n * factor) + 3) // 4) for n in stat.max_neighbors.tolist()]
    return model.updated(descriptor=model.descriptor.updated(sel=numbers))


def sel_warnings(model: ModelConfig, stat: NeighborStat) -> list[str]:
    """One sentence for each type whose `sel` some atom exceeds; sel 0 hides a type on purpose."""
    sel = model.descriptor.sel
    assert isinstance(sel, list)
    names = [""] if model.descriptor.mixed else [f" of type {name}" for name in model.type_map]
    return [
        f"sel{of} is {slots}, but an atom has {found} such neighbors within {stat.rcut:g} Å: DeePMD-kit "
        f"would drop the farthest, dphpc keeps all; set sel to at least {found}"
        for of, slots, found in zip(names, sel, stat.max_neighbors.tolist(), strict=True)
        if 0 < slots < found
    ]


def _of_frame(g: Geometry, n_types: int) -> tuple[float, NDArray[np.int64]]:
    """Shortest distance (inf without pairs) and each atom's number of neighbors of each type, (natoms, ntypes)."""
    n = g.neighbors
    if n.n_pairs == 0:
        return math.inf, np.zeros((g.n_local, n_types), np.int64)
    centers = np.repeat(np.arange(g.n_local), np.diff(n.offsets))
    displacements = g.positions[n.indices] - g.positions[centers]
    shortest = float(np.sqrt(np.einsum("ij,ij->i", displacements, displacements).min()))
    counts = np.bincount(centers * n_types + g.types[n.indices], minlength=g.n_local * n_types)
    return shortest, counts.reshape(g.n_local, n_types)
