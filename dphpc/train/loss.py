"""The loss `ener` of DeePMD-kit's PyTorch back end: value, reported errors, and derivatives.

L = p_e·⟨ΔE²/N⟩ + p_f·⟨ΔF²⟩ + p_v·⟨ΔV²/N⟩ + p_ae·⟨Δe²⟩ + p_pf·⟨w·ΔF²⟩, where each prefactor goes with the learning
rate, p = limit + (start − limit)·lr/lr₀.  Energies and virials are averaged over frames (and components), per-atom
terms over all atoms of the batch; atoms of types without energy do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import InputError
from dphpc.train.data import Batch, Dataset
from dphpc.train.data.system import LABELS
from dphpc.train.schema.optimization import LossConfig
from dphpc.train.step import LossGradient, Prediction

TERMS = {
    "e": ("energy",), "f": ("forces",), "v": ("virial",), "ae": ("atom_ener",), "pf": ("forces", "atom_pref"),
}  # fmt: skip
"""The labels that each term compares with, by the term's name in `start_pref_NAME`."""

Penalty = Callable[[Doubles], tuple[Doubles, Doubles]]
"""Value and derivative of what the loss makes of differences."""


@dataclass
class LossResult:
    """The loss of a batch.

    Attributes
    ----------
    value
        The weighted sum that training minimizes.
    errors
        What `lcurve.out` shows: `rmse`, `rmse_e` (eV per atom), `rmse_f` (eV/Å), … (`mae_…` for that loss); NaN
        where a label is missing.
    gradient
        Derivatives of `value` by the prediction.
    """

    value: float
    errors: dict[str, float]
    gradient: LossGradient


class EnergyLoss:
    """Compares predictions with a batch's labels.

    Parameters
    ----------
    config
        The input's `loss` section.
    start_lr
        The schedule's learning rate at which the prefactors have their start values.
    no_energy_types
        Types that have no energy (`atom_exclude_types`).

    Raises
    ------
    InputError
        Huber's loss is asked for together with a term that it is not defined for.
    """

    def __init__(self, config: LossConfig, start_lr: float, no_energy_types: frozenset[int] = frozenset()) -> None:
        self.config, self.start_lr, self._no_energy = config, start_lr, sorted(no_energy_types)
        self.prefactors = prefactors(config)
        if config.use_huber and ("pf" in self.prefactors or config.relative_f is not None):
            raise InputError("Huber's loss is not defined for relative_f and for forces with atom_pref", where="loss")
        if not self.prefactors:
            raise InputError(
                "the loss has no term: of every start_pref_*, limit_pref_* pair at least one is zero", where="loss"
            )

    @property
    def error_names(self) -> list[str]:
        """Keys of `LossResult.errors`, sorted."""
        return sorted(["rmse", *(f"{measure_of(self.config)}_{name}" for name in self.prefactors)])

    def __call__(self, prediction: Prediction, batch: Batch, learning_rate: float) -> LossResult:
        """Loss of a prediction at a learning rate."""
        terms = _Terms(self.config, batch, self.counted(batch))
        ratio = learning_rate / self.start_lr
        for name, (start, limit) in self.prefactors.items():
            terms.add(name, prediction, limit + (start - limit) * ratio)
        value = math.fsum(terms.values)
        terms.errors["rmse"] = math.sqrt(value) if value >= 0.0 else math.nan
        return LossResult(value, terms.errors, terms.gradient())

    def counted(self, batch: Batch) -> NDArray[np.bool_] | None:
        """(n_local,) whether an atom's type has an energy; None if all have."""
        return ~np.isin(batch.types[: batch.n_local], self._no_energy) if self._no_energy else None


def prefactors(config: LossConfig) -> dict[str, tuple[float, float]]:
    """(start, limit) of the terms that are on; DeePMD-kit needs both to be nonzero."""
    pairs = {name: (getattr(config, f"start_pref_{name}"), getattr(config, f"limit_pref_{name}")) for name in TERMS}
    return {name: pair for name, pair in pairs.items() if pair[0] != 0.0 and pair[1] != 0.0}


def require_labels(config: LossConfig, dataset: Dataset) -> None:
    """Refuse training data without any labels for a term that is on.

    Raises
    ------
    InputError
        The message names the term and the file.
    """
    for name in prefactors(config):
        missing = [label for label in TERMS[name] if label not in dataset.labels]
        if name == "pf" and config.use_default_pf:
            missing = [label for label in missing if label != "atom_pref"]
        if missing:
            file = LABELS[missing[0]].file
            raise InputError(
                f"no system of the training data has {file} in all its sets", where=f"loss/start_pref_{name}",
                expected=f"{dataset.systems[0].name}/set.*/{file}",
                remedy=f"add the file, or set start_pref_{name} and limit_pref_{name} to 0",
            )  # fmt: skip


def measure_of(config: LossConfig) -> str:
    """The measure in which errors are reported: "mae" or "rmse"."""
    return "mae" if config.loss_func == "mae" else "rmse"


@dataclass
class _Terms:
    """The terms of a batch's loss added so far: values, reported errors, and derivatives by the prediction."""

    config: LossConfig
    batch: Batch
    counted: NDArray[np.bool_] | None
    values: list[float] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    energy: Doubles | None = None
    virial: Doubles | None = None
    forces: Doubles | None = None
    atom_energy: Doubles | None = None

    def _delta(self, which: int) -> float:
        delta = self.config.huber_delta
        return delta[which] if isinstance(delta, list) else delta

    def _penalty(self, which: int) -> Penalty:
        if self.config.loss_func == "mae":
            return lambda d: (np.abs(d), np.sign(d))
        if self._is_huber:
            return lambda d: huber(d, self._delta(which))
        return lambda d: (d * d, 2.0 * d)

    def add(self, name: str, prediction: Prediction, prefactor: float) -> None:
        """Add the term of this name, a key of `TERMS`; one whose label is missing adds nothing and reports NaN."""
        batch = self.batch
        match name:
            case "e" if batch.energy is not None:
                self._add_frames("e", prediction.energy[:, None], batch.energy, prefactor)
            case "v" if batch.virial is not None:
                self._add_frames("v", prediction.virial.reshape(-1, 9), batch.virial, prefactor)
            case "f" if batch.forces is not None:
                self._add_forces("f", prediction.forces, batch.forces, prefactor)
            case "pf" if batch.forces is not None and (batch.atom_pref is not None or self.config.use_default_pf):
                weights = np.ones(batch.n_local) if batch.atom_pref is None else batch.atom_pref
                self._add_forces("pf", prediction.forces, batch.forces, prefactor, weights)
            case "ae" if batch.atom_ener is not None:
                self._add_atom_energy(prediction.atom_energy, batch.atom_ener, prefactor)
            case _:
                self._report(name, math.nan)

    def _report(self, name: str, mean: float) -> None:
        """Report a term's error, given the mean of the differences as `_size` measures them."""
        measure = measure_of(self.config)
        self.errors[f"{measure}_{name}"] = mean if measure == "mae" else math.sqrt(mean)

    @property
    def _is_huber(self) -> bool:
        return self.config.use_huber and self.config.loss_func != "mae"

    def _size(self, difference: Doubles, penalty: Doubles) -> Doubles:
        """What is reported of differences, absolute values or squares, which all losses but Huber's penalize."""
        return difference * difference if self._is_huber else penalty

    def _add_frames(self, name: str, predicted: Doubles, label: Doubles, prefactor: float) -> None:
        """Energies or virials, predicted (n_frames, k), per atom of the frame."""
        batch = self.batch
        atoms = batch.natoms if self.counted is None else np.bincount(batch.frame, self.counted, batch.n_frames)
        per_atom = (1.0 / np.maximum(atoms, 1) * (atoms > 0))[:, None]
        difference = (predicted - label.reshape(predicted.shape)) * per_atom
        value, slope = self._penalty(0 if name == "e" else 2)(difference)
        size = prefactor / predicted.size
        self._report(name, float(self._size(difference, value).sum()) / predicted.size)
        if self.config.loss_func == "mse" and not (self._is_huber or self.config.intensive_ener_virial):
            # ΔE²/N is the default of DeePMD-kit; (ΔE/N)² with intensive_ener_virial.
            value, derivative = value * atoms[:, None], slope * size
        else:
            derivative = slope * per_atom * size
        self.values.append(float(value.sum()) * size)
        if name == "e":
            self.energy = derivative[:, 0]
        else:
            self.virial = derivative.reshape(-1, 3, 3)

    def _add_forces(
        self, name: str, predicted: Doubles, label: Doubles, prefactor: float, weights: Doubles | None = None
    ) -> None:
        """Forces (n_local, 3), with weights (n_local,) for `pf`."""
        difference, scale = predicted - label, self._force_scale(label)
        if scale is not None:
            difference *= scale
        n_counted, penalty = self._n_counted, self._penalty(1)
        if self.config.f_use_norm and weights is None:
            length = np.linalg.norm(difference, axis=1, keepdims=True)
            value, slope = penalty(length)
            slope = slope * np.divide(difference, length, out=np.zeros_like(difference), where=length > 0)
            measured = 3.0 * length if measure_of(self.config) == "mae" else difference * difference
            size = prefactor / n_counted
        else:
            value, slope = penalty(difference)
            measured = self._size(difference, value)
            size = prefactor / (3 * n_counted)
        if weights is not None:
            weight = weights.reshape(len(label), -1)
            value, slope, measured = value * weight, slope * weight, measured * weight
        self.values.append(float(value.sum()) * size)
        self._report(name, float(measured.sum()) / (3 * n_counted))
        derivative = slope * (size if scale is None else scale * size)
        self.forces = derivative if self.forces is None else self.forces + derivative

    def _force_scale(self, label: Doubles) -> Doubles | None:
        """(n_local, 1) factors of the forces' differences; None where all are 1."""
        scale = None if self.counted is None else np.where(self.counted, 1.0, 0.0)[:, None]
        if self.config.relative_f is not None:
            relative = 1.0 / (np.linalg.norm(label, axis=1, keepdims=True) + self.config.relative_f)
            scale = relative if scale is None else scale * relative
        return scale

    @property
    def _n_counted(self) -> int:
        """Number of atoms whose type has an energy, at least 1."""
        return max(1, self.batch.n_local if self.counted is None else int(self.counted.sum()))

    def _add_atom_energy(self, predicted: Doubles, label: Doubles, prefactor: float) -> None:
        """Atomic energies (n_local,)."""
        difference = predicted - label.ravel()
        if self.counted is not None:
            difference[~self.counted] = 0.0
        value, slope = self._penalty(0)(difference)
        self.values.append(float(value.sum()) * prefactor / self._n_counted)
        self._report("ae", float(self._size(difference, value).sum()) / self._n_counted)
        self.atom_energy = slope * (prefactor / self._n_counted)

    def gradient(self) -> LossGradient:
        """The derivatives gathered so far."""
        energy = np.zeros(self.batch.n_frames) if self.energy is None else self.energy
        return LossGradient(energy, self.atom_energy, self.forces, self.virial)


def huber(difference: Doubles, delta: float) -> tuple[Doubles, Doubles]:
    """½d² for |d| ≤ δ and δ·(|d| − ½δ) beyond, and its derivative (Huber, Ann. Math. Stat. 35 (1964) 73)."""
    size = np.abs(difference)
    value = np.where(size <= delta, 0.5 * difference * difference, delta * (size - 0.5 * delta))
    return value, np.clip(difference, -delta, delta)
