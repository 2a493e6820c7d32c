"""Statistics of the training data: normalization of the descriptor and of the parameters, energy bias.

As in DeePMD-kit, means and standard deviations of the environment rows are taken over all slots, empty ones included,
and over all neighbor types, with one deviation for x, y and z; the energy bias is the least-squares energy of a type.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import InputError
from dphpc.model.env_mat import switch
from dphpc.train.data.batch import Geometry
from dphpc.train.data.dataset import Dataset
from dphpc.train.schema.model import ModelConfig
from dphpc.train.stat_file import Moments, load_moments, save_moments

log = logging.getLogger(__name__)


STD_FLOOR = 1e-2
"""Least standard deviation of environment rows (DeePMD-kit's protection)."""

STD_WITHOUT_ATOMS = 1e-1
"""Standard deviation for a type without atoms in the data."""

NUMBER, SUM, SQUARES = 0, 1, 2
"""Columns of moments: number of values, their sum, the sum of their squares."""


@dataclass(frozen=True)
class Statistics:
    """The statistics of the data that are part of a model.

    Attributes
    ----------
    davg, dstd
        (ntypes,) mean of s and (ntypes, 2) standard deviations of s and of the direction terms, by center type.
    energy_bias
        (ntypes,) eV, for the model's `out_bias`.
    fparam_avg, fparam_inv_std, aparam_avg, aparam_inv_std
        Normalization of frame and atomic parameters, None if the model takes none.
    """

    davg: Doubles
    dstd: Doubles
    energy_bias: Doubles
    fparam_avg: Doubles | None = None
    fparam_inv_std: Doubles | None = None
    aparam_avg: Doubles | None = None
    aparam_inv_std: Doubles | None = None

    @classmethod
    def of(cls, moments: Moments, model: ModelConfig) -> Statistics:
        """The statistics that follow from the sums."""
        davg = np.zeros(model.n_types) if model.descriptor.set_davg_zero else _mean(moments.radial)
        dstd = np.stack(
            [_deviation(m, STD_FLOOR, STD_WITHOUT_ATOMS) for m in (moments.radial, moments.angular)], axis=1
        )
        parameters = {}
        for name, m in (("fparam", moments.fparam), ("aparam", moments.aparam)):
            if m is not None:
                parameters[f"{name}_avg"] = _mean(m)
                parameters[f"{name}_inv_std"] = 1.0 / _deviation(m, model.data_stat_protect, STD_WITHOUT_ATOMS)
        return cls(davg, dstd, moments.energy_bias, **parameters)

    @classmethod
    def neutral(cls, model: ModelConfig) -> Statistics:
        """Statistics that leave everything unchanged: means 0, deviations 1."""
        n, net = model.n_types, model.fitting_net
        parameters: dict[str, Doubles] = {}
        for name, width in (("fparam", net.numb_fparam), ("aparam", net.numb_aparam)):
            if width:
                parameters |= {f"{name}_avg": np.zeros(width), f"{name}_inv_std": np.ones(width)}
        return cls(np.zeros(n), np.ones((n, 2)), np.zeros(n), **parameters)


def compute_statistics(
    dataset: Dataset, model: ModelConfig, batch_sizes: Sequence[int] | NDArray[np.int64] | None = None
) -> Statistics:
    """Statistics of the frames that `sample_frames` takes; `sel` must be numbers."""
    return Statistics.of(compute_moments(dataset, model, sample_frames(dataset, model, batch_sizes)), model)


def load_or_compute(
    dataset: Dataset,
    model: ModelConfig,
    stat_file: str | Path | None = None,
    mode: str = "update",
    batch_sizes: Sequence[int] | NDArray[np.int64] | None = None,
) -> Statistics:
    """Statistics from `stat_file` if it has them, computed (and, in mode "update", stored) otherwise.

    Raises
    ------
    InputError
        The mode is "read", and the file has no statistics for this model.
    DataError
        The file is damaged.
    """
    if stat_file is None:
        return compute_statistics(dataset, model, batch_sizes)
    path = Path(stat_file)
    moments = load_moments(path, model)
    if moments is not None:
        log.info("statistics read from %s", path)
    elif mode == "read":
        raise InputError(
            "the stat_file lacks statistics for this model",
            where=str(path),
            remedy='let it be written with stat_file_mode "update", on one training run',
        )
    else:
        moments = compute_moments(dataset, model, sample_frames(dataset, model, batch_sizes))
        save_moments(path, moments, model)
        log.info("statistics written to %s", path)
    return Statistics.of(moments, model)


def sample_frames(
    dataset: Dataset, model: ModelConfig, batch_sizes: Sequence[int] | NDArray[np.int64] | None = None
) -> list[tuple[int, int]]:
    """(system, frame) of the frames for statistics: `data_stat_nbatch` batches of each system, evenly spaced.

    `batch_sizes` are the frames of a batch, per system (1 if None).  DeePMD-kit draws as many frames at random.
    """
    sizes = np.ones(len(dataset.systems), np.int64) if batch_sizes is None else np.asarray(batch_sizes)
    return [
        (s, int(i))
        for s, system in enumerate(dataset.systems)
        for i in spread(system.n_frames, int(sizes[s]) * model.data_stat_nbatch)
    ]


def compute_moments(dataset: Dataset, model: ModelConfig, frames: Sequence[tuple[int, int]]) -> Moments:
    """The sums over `frames`, each (system, frame)."""
    radial, angular = environment_moments((dataset.geometry(*f) for f in frames), model)
    energies, counts = [], []
    parameters: dict[str, list[Doubles]] = {"fparam": [], "aparam": []}
    for s, i in frames:
        values = dataset.systems[s].values(i)
        if "energy" in values:
            energies.append(values["energy"])
            counts.append(np.bincount(dataset.systems[s].types(i), minlength=model.n_types))
        for name, found in parameters.items():
            if name in values:
                found.append(np.atleast_2d(values[name]))
    counted = np.array(counts, np.float64).reshape(-1, model.n_types)
    net = model.fitting_net
    bias, std = energy_bias(np.array(energies), counted, net.atom_ener, model.atom_exclude_types, net.rcond)
    sums = {name: _moments(np.concatenate(found)) for name, found in parameters.items() if found}
    return Moments(radial, angular, bias, std, **sums)


def spread(n: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` evenly spaced numbers from 0 to n − 1; all n if there are fewer."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(np.int64))


def environment_moments(geometries: Iterator[Geometry], model: ModelConfig) -> tuple[Doubles, Doubles]:
    """Moments of s and of the direction terms by center type: two arrays (ntypes, 3).

    Every atom counts Σ sel slots.  Neighbors of excluded pairs (`exclude_types`, `pair_exclude_types`) and of types
    with sel 0 count as zeros, like empty slots.
    """
    d = model.descriptor
    assert isinstance(d.sel, list)
    n_types, slots = model.n_types, sum(d.sel)
    seen = np.ones((n_types, n_types), bool)
    if not d.mixed:
        seen[:, np.array(d.sel) == 0] = False
    for a, b in (*d.exclude_types, *model.pair_exclude_types):
        seen[a, b] = seen[b, a] = False
    radial, angular = np.zeros((n_types, 3)), np.zeros((n_types, 3))
    for g in geometries:
        centers = np.repeat(np.arange(g.n_local), np.diff(g.neighbors.offsets))
        types = g.types[centers]
        keep = seen[types, g.types[g.neighbors.indices]]
        displacements = g.positions[g.neighbors.indices[keep]] - g.positions[centers[keep]]
        r2 = np.einsum("ij,ij->i", displacements, displacements)
        r = np.sqrt(r2)
        s = switch(r, d.rcut, d.rcut_smth)[0] / (r + d.env_protection)
        v = s / (r + d.env_protection)  # the direction terms are v·(x, y, z)
        atoms = np.bincount(g.types[: g.n_local], minlength=n_types) * float(slots)
        sums = ((radial, s, s**2), (angular, v * displacements.sum(axis=1), v**2 * r2))
        for moments, values, squares in sums:
            moments[:, NUMBER] += atoms * (3 if moments is angular else 1)
            moments[:, SUM] += np.bincount(types[keep], values, minlength=n_types)
            moments[:, SQUARES] += np.bincount(types[keep], squares, minlength=n_types)
    return radial, angular


def energy_bias(
    energies: Doubles,
    counts: Doubles,
    atom_ener: Sequence[float | None] = (),
    excluded: Iterable[int] = (),
    rcond: float | None = None,
) -> tuple[Doubles, float]:
    """Energy of each type (ntypes,), eV, by a least-squares fit, and the standard deviation of its residual.

    The solution has the smallest norm, with `rcond` as in `numpy.linalg.lstsq`.  Types whose energy `atom_ener` gives
    have that energy, so that a single atom gets it exactly (as in DeePMD-kit's TensorFlow back end; its PyTorch back
    end fits them, too).  Excluded types have none.

    Parameters
    ----------
    energies, counts
        (n,) eV, and (n, ntypes) numbers of atoms of each type.
    atom_ener
        (ntypes,) eV, None for types to be fitted; empty if all are.
    excluded
        Types whose atoms have no energy.
    """
    n_types = counts.shape[1]
    if len(energies) == 0:
        return np.zeros(n_types), 0.0
    counts = counts.copy()
    counts[:, list(excluded)] = 0.0
    given = np.array([np.nan if e is None else e for e in atom_ener or [None] * n_types], float)
    fixed = ~np.isnan(given)
    rest = energies - counts[:, fixed] @ given[fixed]
    free = counts * ~fixed
    bias = np.linalg.lstsq(free, rest, rcond=rcond)[0]
    std = float((rest - free @ bias).std())
    bias[fixed] = given[fixed]
    return bias, std


def _moments(values: Doubles) -> Doubles:
    """(k, 3) moments of the columns of (n, k) values."""
    return np.stack([np.full(values.shape[1], float(len(values))), values.sum(axis=0), (values**2).sum(axis=0)], axis=1)


def _mean(moments: Doubles) -> Doubles:
    return moments[:, SUM] / np.maximum(moments[:, NUMBER], 1.0)


def _deviation(moments: Doubles, floor: float, default: float) -> Doubles:
    number = np.maximum(moments[:, NUMBER], 1.0)
    variance = moments[:, SQUARES] / number - (moments[:, SUM] / number) ** 2
    deviation = np.maximum(np.sqrt(np.maximum(variance, 0.0)), floor)
    return np.where(moments[:, NUMBER] > 0, deviation, default)
