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

from dphpc.core.errors import InputError
from dphpc.train.data import Batch, Dataset
from dphpc.train.data.system import LABELS
from dphpc.train.schema import LossConfig
from dphpc.train.step import LossGradient, Prediction

Doubles = NDArray[np.float64]
TERMS = {
    "e": ("energy",), "f": ("forces",), "v": ("virial",), "ae": ("atom_ener",), "pf": ("forces", "atom_pref"),
}  # fmt: skip
"""The labels that each term compares with."""

Penalty = Callable[[Doubles], tuple[Doubles, Doubles]]


@dataclass
class LossResult:
    """A batch's loss.

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
            getattr(self, f"_add_{name}")(terms, prediction, limit + (start - limit) * ratio)
        value = math.fsum(terms.values)
        terms.errors["rmse"] = math.sqrt(value) if value >= 0.0 else math.nan
        return LossResult(value, terms.errors, terms.gradient())

    def counted(self, batch: Batch) -> NDArray[np.bool_]:
        """(n_local,) which atoms have an energy."""
        if not self._no_energy:
            return np.ones(batch.n_local, bool)
        return ~np.isin(batch.types[: batch.n_local], self._no_energy)

    def _add_e(self, terms: _Terms, prediction: Prediction, prefactor: float) -> None:
        terms.add_frames("e", prediction.energy[:, None], terms.batch.energy, prefactor)

    def _add_v(self, terms: _Terms, prediction: Prediction, prefactor: float) -> None:
        terms.add_frames("v", prediction.virial.reshape(-1, 9), terms.batch.virial, prefactor)

    def _add_f(self, terms: _Terms, prediction: Prediction, prefactor: float) -> None:
        terms.add_forces("f", prediction.forces, prefactor, None)

    def _add_pf(self, terms: _Terms, prediction: Prediction, prefactor: float) -> None:
        weights = terms.batch.atom_pref
        if weights is None and self.config.use_default_pf:
            weights = np.ones(terms.batch.n_local)
        terms.add_forces("pf", prediction.forces, prefactor if weights is not None else None, weights)

    def _add_ae(self, terms: _Terms, prediction: Prediction, prefactor: float) -> None:
        terms.add_atom_energy(prediction.atom_energy, prefactor)


def prefactors(config: LossConfig) -> dict[str, tuple[float, float]]:
    """(start, limit) of the terms that are on; DeePMD-kit needs both to be nonzero."""
    pairs = {name: (getattr(config, f"start_pref_{name}"), getattr(config, f"limit_pref_{name}")) for name in TERMS}
    return {name: pair for name, pair in pairs.items() if pair[0] != 0.0 and pair[1] != 0.0}


def require_labels(config: LossConfig, dataset: Dataset) -> None:
    """Refuse training data of which no system has the labels of some term that is on.

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
    """What errors of energies, forces and so on are reported as."""
    return "mae" if config.loss_func == "mae" else "rmse"


@dataclass
class _Terms:
    """The sum as it grows: values, errors to report, and derivatives."""

    config: LossConfig
    batch: Batch
    counted: NDArray[np.bool_]
    values: list[float] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    energy: Doubles | None = None
    virial: Doubles | None = None
    forces: Doubles | None = None
    atom_energy: Doubles | None = None

    @property
    def _measure(self) -> str:
        return measure_of(self.config)

    def _delta(self, which: int) -> float:
        delta = self.config.huber_delta
        return delta[which] if isinstance(delta, list) else delta

    def _penalty(self, which: int) -> Penalty:
        if self.config.loss_func == "mae":
            return lambda d: (np.abs(d), np.sign(d))
        if self.config.use_huber:
            return lambda d: huber(d, self._delta(which))
        return lambda d: (d * d, 2.0 * d)

    def add_frames(self, name: str, predicted: Doubles, label: Doubles | None, prefactor: float) -> None:
        """Energy or virial: `predicted` (n_frames, k), per atom of the frame."""
        if label is None:
            self.errors[f"{self._measure}_{name}"] = math.nan
            return
        atoms = np.bincount(self.batch.frame, self.counted, self.batch.n_frames)
        per_atom = np.divide(1.0, atoms, out=np.zeros_like(atoms), where=atoms > 0)[:, None]
        difference = (predicted - label.reshape(predicted.shape)) * per_atom
        value, slope = self._penalty(0 if name == "e" else 2)(difference)
        plain_squares = self.config.loss_func == "mse" and not self.config.use_huber
        # ΔE²/N is the default of DeePMD-kit; (ΔE/N)² with intensive_ener_virial.
        weight = 1.0 / np.maximum(per_atom, 1e-300) if plain_squares and not self.config.intensive_ener_virial else 1.0
        size = prefactor / predicted.size
        self.values.append(float((value * weight).sum() * size))
        self.errors[f"{self._measure}_{name}"] = self._error(difference)
        derivative = slope * weight * per_atom * size
        if name == "e":
            self.energy = derivative[:, 0]
        else:
            self.virial = derivative.reshape(-1, 3, 3)

    def _error(self, difference: Doubles) -> float:
        if self._measure == "mae":
            return float(np.abs(difference).mean())
        return float(np.sqrt(np.square(difference).mean()))

    def add_forces(self, name: str, predicted: Doubles, prefactor: float | None, weights: Doubles | None) -> None:
        """Forces (n_local, 3), with weights (n_local,) for `pf`; no prefactor, no weights."""
        label = self.batch.forces
        if label is None or prefactor is None:
            self.errors[f"{self._measure}_{name}"] = math.nan
            return
        scale = np.where(self.counted, 1.0, 0.0)[:, None]
        if self.config.relative_f is not None:
            scale = scale / (np.linalg.norm(label, axis=1, keepdims=True) + self.config.relative_f)
        difference = (predicted - label) * scale
        weight = np.ones((len(label), 1)) if weights is None else weights.reshape(len(label), -1)
        n_counted = max(1, int(self.counted.sum()))
        penalty = self._penalty(1)
        if self.config.f_use_norm and weights is None:
            length = np.linalg.norm(difference, axis=1, keepdims=True)
            value, slope = penalty(length)
            slope = slope * np.divide(difference, length, out=np.zeros_like(difference), where=length > 0)
            size = prefactor / n_counted
        else:
            value, slope = penalty(difference)
            size = prefactor / (3 * n_counted)
        self.values.append(float((value * weight).sum() * size))
        measured = np.abs(difference) if self._measure == "mae" else difference * difference
        if self._measure == "mae" and self.config.f_use_norm and weights is None:
            measured = 3.0 * np.linalg.norm(difference, axis=1, keepdims=True)
        error = float((measured * weight).sum() / (3 * n_counted))
        self.errors[f"{self._measure}_{name}"] = error if self._measure == "mae" else math.sqrt(error)
        derivative = slope * weight * scale * size
        self.forces = derivative if self.forces is None else self.forces + derivative

    def add_atom_energy(self, predicted: Doubles, prefactor: float) -> None:
        """Atomic energies (n_local,)."""
        label = self.batch.atom_ener
        if label is None:
            self.errors[f"{self._measure}_ae"] = math.nan
            return
        difference = np.where(self.counted, predicted - label.ravel(), 0.0)
        n_counted = max(1, int(self.counted.sum()))
        value, slope = self._penalty(0)(difference)
        self.values.append(float(value.sum() * prefactor / n_counted))
        measured = np.abs(difference) if self._measure == "mae" else difference * difference
        error = float(measured.sum() / n_counted)
        self.errors[f"{self._measure}_ae"] = error if self._measure == "mae" else math.sqrt(error)
        self.atom_energy = slope * prefactor / n_counted

    def gradient(self) -> LossGradient:
        """The derivatives gathered so far."""
        energy = np.zeros(self.batch.n_frames) if self.energy is None else self.energy
        return LossGradient(energy, self.atom_energy, self.forces, self.virial)


def huber(difference: Doubles, delta: float) -> tuple[Doubles, Doubles]:
    """½d² for |d| ≤ δ and δ·(|d| − ½δ) beyond, and its derivative (Huber, Ann. Math. Stat. 35 (1964) 73)."""
    size = np.abs(difference)
    value = np.where(size <= delta, 0.5 * difference * difference, delta * (size - 0.5 * delta))
    return value, np.clip(difference, -delta, delta)
