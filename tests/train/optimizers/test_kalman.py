from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from dphpc.core.errors import InputError, RunError
from dphpc.train.loss import EnergyLoss
from dphpc.train.network_step import NetworkStep
from dphpc.train.optimizers import KalmanOptimizer, blocks, make_optimizer
from dphpc.train.optimizers.blocks import PENDING, Blocks, choose, filter_bytes
from dphpc.train.optimizers.kalman import BlockFilter, energy_measurement, force_measurement
from dphpc.train.parameters import Parameters
from dphpc.train.schema.optimization import LkfConfig, LossConfig
from dphpc.train.step import LossGradient, Prediction, TableStep
from tests.models import random_model
from tests.train.batches import random_batch
from tests.train.optimizers.gradients import input_with, numpy_values


def test_blocks_gather_and_split() -> None:
    found = Blocks.of([3, 4, 2, 2, 25, 2, 1], 10)
    members = [[int(i) for i in row if i < found.n_values] for row in found.index]
    edges = (0, 9), (9, 11), (11, 19), (19, 27), (27, 36), (36, 39)
    assert members == [list(range(*pair)) for pair in edges]
    assert found.shape == (6, 9)
    assert found.n_values == 39


def plain_filter(parts: list[np.ndarray], n: int, measurements: list[tuple[np.ndarray, float]], r: float) -> np.ndarray:
    """RLEKF with dense matrices, one per block; the sum of all changes."""
    covariance = [np.eye(len(part)) for part in parts]
    forgetting, total = 0.98, np.zeros(n)
    for h, error in measurements:
        gains = [p @ h[part] for p, part in zip(covariance, parts, strict=True)]
        a = 1.0 / (forgetting * r + sum(h[part] @ k for part, k in zip(parts, gains, strict=True)))
        for i, (part, k) in enumerate(zip(parts, gains, strict=True)):
            covariance[i] = (covariance[i] - a * np.outer(k, k)) / forgetting
            total[part] += a * error * k
        forgetting = 0.9987 * forgetting + 1 - 0.9987
    return total


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_the_filter_equals_dense_matrices(dtype: torch.dtype, tolerance: float) -> None:
    rng = np.random.default_rng(2)
    found = Blocks.of([3, 4, 25, 2, 1], 10)
    parts = [row[row < found.n_values] for row in found.index]
    measurements = [(rng.normal(size=35), float(rng.uniform())) for _ in range(3 * PENDING + 2)]
    kalman, total = BlockFilter(found, dtype, noise=4.0), np.zeros(35)
    for h, error in measurements:
        total += kalman.step(torch.from_numpy(h), error).numpy()
    expected = plain_filter(parts, 35, measurements, 4.0)
    np.testing.assert_allclose(total, expected, atol=tolerance * np.abs(expected).max())


def test_one_block_solves_linear_least_squares() -> None:
    """Without forgetting the filter's weights are those of ridge regression, Σ(y − hw)² + |w|², exactly."""
    rng = np.random.default_rng(3)
    h, true = rng.normal(size=(40, 6)), rng.normal(size=6)
    y = h @ true + 0.1 * rng.normal(size=40)
    kalman, w = BlockFilter(Blocks.of([6], 6), torch.float64, forgetting=1.0), np.zeros(6)
    for row, label in zip(h, y, strict=True):
        w += kalman.step(torch.from_numpy(row), float(label - row @ w)).numpy()
    np.testing.assert_allclose(w, np.linalg.solve(h.T @ h + np.eye(6), h.T @ y), rtol=1e-10)


def test_measurements_are_mean_absolute_errors_and_their_slopes() -> None:
    """The seeds' gradient is minus √(frames) times the finite difference of the error along the weights.

    The frames' numbers of atoms differ, an atom of a group comes twice, and a prefactor scales both.
    """
    model = random_model()
    batch, parameters = random_batch(model), Parameters(model)
    engine, group = NetworkStep(model, parameters), np.array([1, 11, 1, 12, 20, 31, 32, 38, 35])
    counted, root = np.arange(batch.n_local), np.sqrt(batch.n_frames)
    rng = np.random.default_rng(0)
    direction = torch.from_numpy(rng.normal(size=parameters.flats[0].shape))

    def errors(size: float) -> list[float]:
        with torch.no_grad():
            parameters.flats[0].add_(direction, alpha=size)
        prediction = engine.forward(batch)
        with torch.no_grad():
            parameters.flats[0].add_(direction, alpha=-size)
        return [measure(prediction)[1] for measure in measures]

    measures: list[Callable[[Prediction], tuple[LossGradient, float]]] = [
        lambda prediction: energy_measurement(prediction, batch, counted, 3.0),
        lambda prediction: force_measurement(prediction, batch, counted, group, 3.0),
    ]
    step = 1e-6
    slopes = (np.array(errors(step)) - np.array(errors(-step))) / (2 * step)
    for slope, measure in zip(slopes, measures, strict=True):
        engine.backward(measure(engine.forward(batch))[0])
        assert parameters.flats[0].grad is not None
        assert float(parameters.flats[0].grad @ direction) == pytest.approx(-slope * root, rel=1e-5)
    prediction, atoms = engine.forward(batch), np.bincount(batch.frame)
    energies = np.abs((batch.energy.ravel() - prediction.energy) / atoms).mean()
    forces = np.abs((batch.forces - prediction.forces)[group] / atoms[batch.frame[group]][:, None]).mean()
    assert measures[0](prediction)[1] == pytest.approx(3.0 * root * energies, rel=1e-12)
    assert measures[1](prediction)[1] == pytest.approx(3.0 * root * forces, rel=1e-12)


def test_updates_fit_the_labels_of_another_model() -> None:
    model, other = random_model(0), random_model(1)
    parameters, batch = Parameters(model), random_batch(model)
    truth = NetworkStep(other, Parameters(other)).forward(batch)
    batch = replace(batch, energy=truth.energy, forces=truth.forces)
    options = {"type": "LKF", "kf_blocksize": 200, "kf_limit_pref_f": 0.5, "kf_noise": 1e-4}
    optimizer = make_optimizer(input_with(options), parameters)
    assert isinstance(optimizer, KalmanOptimizer)
    assert optimizer.filter.noise == pytest.approx(1e-4 * 16)  # DeePMD-kit adds λ once for each block
    assert optimizer.filter.blocks.shape[0] == 16
    engine = TableStep(model, parameters, TableStep.fitting_grid(model, 0.8, 1e-8), 1e-8)
    loss, before = EnergyLoss(LossConfig(), 1.0), numpy_values(parameters)
    results = [optimizer.update(engine, batch, loss, 1.0).errors for _ in range(40)]
    assert results[-1]["rmse_f"] < 0.5 * results[0]["rmse_f"]  # measured 0.38
    assert results[-1]["rmse_e"] < 0.05 * results[0]["rmse_e"]  # measured 0.004
    after = parameters.split(parameters.flats)
    assert all(not np.array_equal(before[name], value.numpy()) for name, value in after.items())


def test_groups_take_each_frames_atoms_in_turn_and_are_new_in_every_step() -> None:
    """Frames of 15, 0 and 4 atoms: three groups of five of each, an atom again when all have come."""
    options = {"type": "LKF", "kf_blocksize": 50, "kf_force_groups": 3, "kf_force_atoms": 5}
    optimizer = make_optimizer(input_with(options), Parameters(random_model()))
    assert isinstance(optimizer, KalmanOptimizer)
    atoms, frames, seen = np.arange(10, 29), np.repeat([0, 2], [15, 4]), []
    for step in (0, 1, 0):
        optimizer.done = step
        groups = optimizer.groups(atoms, frames)
        assert [len(g) for g in groups] == [10, 10, 10]
        large, small = (np.concatenate([g[part] for g in groups]) for part in (slice(5), slice(5, 10)))
        assert sorted(large.tolist()) == list(range(10, 25))
        assert all(sorted(small[k : k + 4].tolist()) == [25, 26, 27, 28] for k in (0, 4, 8))
        seen.append(large.tolist())
    assert seen[0] == seen[2] != seen[1]
    assert optimizer.groups(atoms[:0], frames[:0]) == []


def test_a_stored_state_goes_on_to_the_bit() -> None:
    rng = np.random.default_rng(2)
    measurements = [(torch.from_numpy(rng.normal(size=35)), 0.3) for _ in range(PENDING + 5)]
    found = Blocks.of([35], 10)
    whole, stopped = BlockFilter(found, torch.float64), BlockFilter(found, torch.float64)
    for h, error in measurements[: PENDING + 2]:
        whole.step(h, error)
        stopped.step(h, error)
    assert 0 < stopped.n_pending < PENDING
    again = BlockFilter(found, torch.float64)
    again.covariance, again.pending = stopped.covariance.clone(), stopped.pending.clone()
    again.n_pending, again.scale, again.forgetting = stopped.n_pending, stopped.scale, stopped.forgetting
    for h, error in measurements[PENDING + 2 :]:
        assert torch.equal(whole.step(h, error), again.step(h, error))


def test_not_a_number_changes_nothing() -> None:
    kalman = BlockFilter(Blocks.of([6], 6), torch.float64)
    for h, error in ((torch.full((6,), np.nan, dtype=torch.float64), 1.0), (torch.ones(6).double(), np.inf)):
        with pytest.raises(RunError, match="not finite"):
            kalman.step(h, error)
    assert kalman.n_pending == 0
    assert kalman.scale == 1.0


def test_the_largest_block_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [25, 1250, 100, 384000, 240, 57600, 240, 57600, 240, 240, 1] * 2
    monkeypatch.setattr(blocks, "memory_available", lambda: 8e9)
    size = choose(sizes, LkfConfig())
    assert filter_bytes(sizes, size, 8) <= 4e9 < filter_bytes(sizes, int(1.02 * size), 8)
    n_blocks, width = Blocks.of(sizes, size).shape
    assert filter_bytes(sizes, size, 8) == pytest.approx(8.0 * n_blocks * width * width, rel=0.05)
    assert size < choose(sizes, LkfConfig(kf_precision="float32"))
    assert choose(sizes, LkfConfig(kf_memory_gb=1.0)) < size
    assert choose([10, 20], LkfConfig()) >= 30
    assert choose(sizes, LkfConfig(kf_blocksize=64)) == 64


@pytest.mark.slow
def test_blocks_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [384000, 240, 57600, 240, 57600, 240, 240, 1] * 2
    monkeypatch.setattr(blocks, "memory_available", lambda: 16e9)
    with pytest.raises(InputError, match=r"blocks of 5120 weights need 42\.\d GB") as caught:
        choose(sizes, LkfConfig(kf_blocksize=5120))
    assert caught.value.where == "optimizer/kf_blocksize"
    assert "at most 9" in str(caught.value.expected)
    with pytest.raises(InputError, match="does not fit into 1e-06 GB"):
        choose(sizes, LkfConfig(kf_memory_gb=1e-6))
    with pytest.raises(InputError, match="gradient_max_norm"):
        make_optimizer(input_with({"type": "LKF"}, gradient_max_norm=1.0), Parameters(random_model()))
