from __future__ import annotations

import numpy as np
import pytest
import torch

from dphpc.train.optimizers import GradientOptimizer, make_optimizer
from dphpc.train.optimizers.muon import gram_newton_schulz, newton_schulz, orthogonalized
from dphpc.train.parameters import Parameters
from tests.models import random_model
from tests.train.optimizers.gradients import gradients, input_with, numpy_values, set_gradients


def quintic_svd(matrix: np.ndarray) -> np.ndarray:
    """U f(Σ) Vᵀ with the quintic applied five times to each singular value."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (24, 24)])
@pytest.mark.parametrize("gram", [True, False])
def test_newton_schulz_acts_on_singular_values_alone(shape: tuple[int, int], gram: bool) -> None:
    matrix = np.random.default_rng(1).normal(size=shape)
    got = orthogonalized(torch.from_numpy(matrix), gram=gram).numpy()
    np.testing.assert_allclose(got, quintic_svd(matrix), atol=1e-12)  # measured 2e-15
    values = np.linalg.svd(got, compute_uv=False)
    assert 0.6 < values.min() <= values.max() < 1.25  # the exact orthogonalization has 1


def test_float32_and_zero_matrices() -> None:
    matrix = torch.from_numpy(np.random.default_rng(1).normal(size=(300, 40)) @ np.diag(np.logspace(-6, 0, 40)))
    wide, narrow = gram_newton_schulz(matrix), gram_newton_schulz(matrix.float())
    assert float((wide - narrow).abs().max()) < 2e-3  # measured 1e-4; the smallest singular values are noise there
    assert not newton_schulz(torch.zeros(3, 4)).any()
    assert not gram_newton_schulz(torch.zeros(4, 3)).any()


@pytest.mark.parametrize("lr_adjust", [0.0, 10.0])
def test_steps_equal_the_formula(lr_adjust: float) -> None:
    parameters = Parameters(random_model())
    options = {"type": "HybridMuon", "momentum": 0.9, "weight_decay": 0.1, "lr_adjust": lr_adjust}
    optimizer = make_optimizer(input_with(options), parameters)
    assert isinstance(optimizer, GradientOptimizer)
    start, momenta = numpy_values(parameters), {}
    expected = dict(start)
    matrices = {n for n, v in expected.items() if v.ndim == 2 and min(v.shape) > 1}
    assert any(n.startswith("descriptor") for n in matrices)
    adam = {n: torch.from_numpy(expected[n].copy()).requires_grad_(True) for n in expected if n not in matrices}
    assert any(n.endswith("layers.0.w") for n in adam)  # the embedding's first layer is a vector
    reference = torch.optim.Adam(adam.values(), lr=1e-3 / (lr_adjust or 1.0), betas=(0.9, 0.95))
    for step in range(4):
        set_gradients(parameters, step)
        given = {name: value.numpy().copy() for name, value in gradients(parameters).items()}
        optimizer.step(1e-3)
        for name in matrices:
            m = momenta[name] = 0.9 * momenta.get(name, 0.0) + 0.1 * given[name]
            rows, columns = m.shape
            scale = np.sqrt(max(1, rows / columns)) if lr_adjust else 0.18 * np.sqrt(max(rows, columns))
            step_of = quintic_svd(0.9 * m + 0.1 * given[name])
            expected[name] = (1 - 1e-3 * 0.1) * expected[name] - 1e-3 * scale * step_of
        for name, value in adam.items():
            value.grad = torch.from_numpy(given[name])
        reference.step()
    expected |= {name: value.detach().numpy() for name, value in adam.items()}
    for name, value in parameters.split(parameters.flats).items():
        moved = np.abs(expected[name] - start[name]).max()
        tolerance = 1e-5 if name in matrices else 1e-12  # measured 1e-6: Newton–Schulz runs in float32
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=0, atol=tolerance * moved)
