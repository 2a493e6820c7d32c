"""LKF: a layer-wise extended Kalman filter on energies and groups of forces.

State: the weights w with covariance P, block-diagonal with L blocks.  A measurement is one number, ŷ = Σ_j σ_j y_j / n
with σ_j = sign(label_j − y_j), whose innovation is the mean absolute error e and whose gradient H = ∂ŷ/∂w is what one
`backward` with seeds σ_j / n gives.  Then (RLEKF, arXiv 2212.06989, Algorithm 1)

    a = 1 / (λR + Σ_i H_iᵀP_iH_i),  K_i = P_iH_i,  w_i += a·e·K_i,  P_i ← (P_i − a·K_iK_iᵀ) / λ,  λ ← νλ + 1 − ν

with P = 1 at the start and R = `kf_noise`·L: the published code adds λ once for each block.  It measures energies and
forces both divided by the number of atoms N: a force's variance is R·N² in (eV/Å)², an energy's R in (eV/atom)².
One variance for both would leave one of them untrained.  A prefactor multiplies e and H: R/prefactor² in its place.

A step takes the energies, then the forces of `kf_force_groups` groups of `kf_force_atoms` random atoms of each frame,
each after a new prediction.  A batch's frames make one measurement (FEKF, "Training one DeePMD model in minutes: a step
towards online learning", PPoPP 2024): H is summed over frames, and e is their mean times √(frames).

P is kept as s·(P₀ − UᵀU) with up to `PENDING` rows of U: an update reads P₀ once, for P₀H, and appends K√(a/s) to U,
where the plain form reads P twice and writes it once more; P₀ −= UᵀU is one product every `PENDING` updates.  Bytes an
update for N weights in blocks of b: N(b + PENDING)·8 in float64 on average, and 2Nb·8/PENDING for the subtraction;
operations 2N(b + PENDING) and 2Nb.  Water net, N = 1.02 M, b = 256: 2.7 GB and 1.1 GFLOP, limited by memory.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dphpc.core.errors import RunError
from dphpc.train.data import Batch
from dphpc.train.loss import EnergyLoss, LossResult
from dphpc.train.optimizers.blocks import PENDING, Blocks, choose
from dphpc.train.optimizers.protocol import Engine, State, finite, require_names
from dphpc.train.parameters import Parameters
from dphpc.train.schema.optimization import LkfConfig
from dphpc.train.step import LossGradient, Prediction

FORGETTING_RATE = 0.9987
"""ν (RLEKF)."""


class BlockFilter:
    """The filter itself, for a vector of weights.

    Parameters
    ----------
    blocks
        Partition of the weights.
    dtype
        Precision of the covariance.
    noise
        R, variance of a measurement; the weights' initial variance is 1.
    forgetting
        λ at the start.
    """

    def __init__(self, blocks: Blocks, dtype: torch.dtype, noise: float = 1.0, forgetting: float = 0.98) -> None:
        self.blocks, self.noise, self.forgetting = blocks, noise, forgetting
        self.n_pending, self.scale = 0, 1.0
        n_blocks, size = blocks.shape
        self._index = torch.from_numpy(blocks.index.ravel())
        self.covariance = torch.zeros((n_blocks, size, size), dtype=dtype)
        self.covariance.diagonal(dim1=1, dim2=2).fill_(1.0)
        self.pending = torch.zeros((n_blocks, PENDING, size), dtype=dtype)

    def step(self, gradient: Tensor, error: float) -> Tensor:
        """The change (N,) of the weights for an innovation `error` with this gradient (N,).

        Raises
        ------
        RunError
            Gradient or error is not finite; the filter has not been changed.
        """
        n_blocks, size = self.blocks.shape
        values = torch.cat((gradient, gradient.new_zeros(1)))[self._index]
        h = values.view(n_blocks, 1, size).to(self.covariance.dtype)
        rows = self.pending[:, : self.n_pending]
        gain = torch.bmm(h, self.covariance)  # P is symmetric; row·P runs at the speed of memory
        if self.n_pending:
            gain.baddbmm_(torch.bmm(h, rows.transpose(1, 2)), rows, alpha=-1.0)
        gain *= self.scale
        a = 1.0 / (self.forgetting * self.noise + float((h * gain).sum(dtype=torch.float64)))
        if not (math.isfinite(a) and a > 0.0 and math.isfinite(error)):
            raise RunError(
                "the Kalman filter's gradient or error is not finite",
                remedy='lower kf_start_pref_*, or set kf_precision: "float64"',
            )
        self.pending[:, self.n_pending] = gain[:, 0] * math.sqrt(a / self.scale)
        self.n_pending += 1
        if self.n_pending == PENDING:
            self.covariance.baddbmm_(self.pending.transpose(1, 2), self.pending, alpha=-1.0)
            self.n_pending = 0
        self.scale /= self.forgetting
        self.forgetting = FORGETTING_RATE * self.forgetting + 1.0 - FORGETTING_RATE
        change = gradient.new_zeros(self.blocks.n_values + 1)
        change[self._index] = (gain.view(-1) * (a * error)).to(gradient.dtype)
        return change[:-1]


class KalmanOptimizer:
    """`LKF` of a training input.

    Parameters
    ----------
    n_steps
        Number of steps of the whole training, over which prefactors change geometrically from start to limit.
    seed
        For the random groups of atoms.

    Raises
    ------
    InputError
        The covariance does not fit into the memory.
    """

    def __init__(self, config: LkfConfig, parameters: Parameters, n_steps: int, seed: int) -> None:
        self.config, self.parameters, self.n_steps, self.seed, self.done = config, parameters, n_steps, seed, 0
        sizes = [slot.size for slot in parameters.slots.values()]
        blocks, dtype = Blocks.of(sizes, choose(sizes, config)), getattr(torch, config.kf_precision)
        self.filter = BlockFilter(blocks, dtype, config.kf_noise * blocks.shape[0], config.kf_forgetting)

    def update(self, engine: Engine, batch: Batch, loss: EnergyLoss, learning_rate: float) -> LossResult:
        """See `Optimizer.update`; the learning rate enters the returned loss only."""
        prediction = engine.forward(batch)
        result = finite(loss(prediction, batch, learning_rate))
        counts = loss.counted(batch)
        counted = np.arange(batch.n_local) if counts is None else np.flatnonzero(counts)
        groups = self.groups(counted, batch.frame[counted]) if batch.forces is not None else []
        if batch.energy is not None:
            self._measure(engine, *energy_measurement(prediction, batch, counted, self._prefactor("e")))
        for k, atoms in enumerate(groups):
            if k or batch.energy is not None:
                prediction = engine.forward(batch)
            self._measure(engine, *force_measurement(prediction, batch, counted, atoms, self._prefactor("f")))
        self.done += 1
        return result

    def _measure(self, engine: Engine, seeds: LossGradient, error: float) -> None:
        engine.backward(seeds)
        gradients = [value.reshape(-1) for value in self.parameters.split(self.parameters.gradients).values()]
        change, start = self.filter.step(torch.cat(gradients), error), 0
        for value in self.parameters.split(self.parameters.flats).values():
            value += change[start : start + value.numel()].view(value.shape)
            start += value.numel()
        engine.weights_changed()

    def groups(self, atoms: np.ndarray, frames: np.ndarray) -> list[np.ndarray]:
        """Random groups with as many atoms of every frame; none is repeated before all of its frame were taken.

        A pure function of seed and step.
        """
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=self.done << 64))  # no overlap
        size, n_groups = self.config.kf_force_atoms, self.config.kf_force_groups
        chosen = []
        for frame in np.unique(frames):
            own = atoms[frames == frame]
            rounds = [rng.permutation(own) for _ in range(-(-n_groups * size // len(own)))]
            chosen.append(np.concatenate(rounds)[: n_groups * size].reshape(n_groups, size))
        return list(np.concatenate(chosen, axis=1)) if chosen else []

    def _prefactor(self, name: str) -> float:
        start, limit = getattr(self.config, f"kf_start_pref_{name}"), getattr(self.config, f"kf_limit_pref_{name}")
        return float(start * (limit / start) ** (self.done / max(1, self.n_steps)))

    def state(self) -> State:
        """Covariance and pending rows, and `filter` with (number of pending rows, scale, λ)."""
        return {} if not self.done else self._state()

    def _state(self) -> State:
        f = self.filter
        numbers = torch.tensor([float(f.n_pending), f.scale, f.forgetting], dtype=torch.float64)
        return {"covariance": f.covariance, "pending": f.pending, "filter": numbers}

    def load(self, state: State, n_steps: int) -> None:
        """See `Optimizer.load`."""
        if not state:
            return
        own = self._state()
        require_names(state, own, self.describe())
        for name, value in own.items():
            value.copy_(state[name])
        pending, self.filter.scale, self.filter.forgetting = own["filter"].tolist()
        self.filter.n_pending, self.done = int(pending), n_steps

    def describe(self) -> str:
        """One line for the log."""
        n, size = self.filter.blocks.shape
        return f"LKF with {n} blocks of {size} weights, {self.config.kf_force_groups} groups of forces a step"


def energy_measurement(
    prediction: Prediction, batch: Batch, counted: np.ndarray, prefactor: float = 1.0
) -> tuple[LossGradient, float]:
    """Seeds for the sum of frames' signed energies per atom; √(frames) times their mean absolute error (eV/atom)."""
    assert batch.energy is not None
    difference = prefactor * (batch.energy.ravel() - prediction.energy) / _atoms(batch, counted)
    seeds = prefactor * np.sign(difference) / _atoms(batch, counted)
    return LossGradient(seeds, None, None, None), float(np.abs(difference).mean() * math.sqrt(batch.n_frames))


def force_measurement(
    prediction: Prediction, batch: Batch, counted: np.ndarray, group: np.ndarray, prefactor: float = 1.0
) -> tuple[LossGradient, float]:
    """The same for forces on a group with as many atoms of each frame, possibly repeated.

    Seeds for the sum of the frames' mean signed force components divided by their numbers of atoms, and √(frames) times
    the mean absolute error (eV/Å divided by the number of atoms).
    """
    assert batch.forces is not None
    scale = prefactor / _atoms(batch, counted)[batch.frame[group]][:, None]
    difference = scale * (batch.forces[group] - prediction.forces[group])
    seeds = np.zeros_like(prediction.forces)
    np.add.at(seeds, group, np.sign(difference) * scale * (batch.n_frames / difference.size))
    error = float(np.abs(difference).mean() * math.sqrt(batch.n_frames))
    return LossGradient(np.zeros(batch.n_frames), None, seeds, None), error


def _atoms(batch: Batch, counted: np.ndarray) -> np.ndarray:
    """(n_frames,) atoms with an energy, at least 1."""
    return np.maximum(np.bincount(batch.frame[counted], minlength=batch.n_frames), 1)
