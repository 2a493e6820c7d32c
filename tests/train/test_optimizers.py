from __future__ import annotations

import numpy as np
import pytest
import torch

from dphpc.core.errors import RunError
from dphpc.train.optimizers import Optimizer
from dphpc.train.parameters import Parameters
from dphpc.train.schema import AdamConfig, AdamWConfig
from tests.models import random_model


def set_gradients(parameters: Parameters, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, value in parameters.split([flat.grad for flat in parameters.flats]).items():
        value.copy_(torch.from_numpy(rng.normal(size=tuple(parameters.slots[name].shape))))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (AdamConfig(), torch.optim.Adam),
        (AdamConfig(adam_beta1=0.8, adam_beta2=0.99, weight_decay=0.1), torch.optim.Adam),
        (AdamWConfig(weight_decay=0.1), torch.optim.AdamW),
    ],
)
@pytest.mark.parametrize("max_norm", [0.0, 2.0])
def test_equals_torch_on_separate_parameters(config: AdamConfig | AdamWConfig, kind: type, max_norm: float) -> None:
    parameters = Parameters(random_model())
    separate = {name: value.clone().requires_grad_(True) for name, value in parameters.named()}
    betas = (config.adam_beta1, config.adam_beta2)
    reference = kind(separate.values(), lr=1e-3, betas=betas, weight_decay=config.weight_decay)
    optimizer = Optimizer(config, parameters, max_norm)
    for step in range(4):
        set_gradients(parameters, step)
        for name, gradient in parameters.split([flat.grad for flat in parameters.flats]).items():
            separate[name].grad = gradient.clone()
        if max_norm:
            norm = torch.nn.utils.clip_grad_norm_(separate.values(), max_norm)
            reference.step()
            assert optimizer.step(1e-3) == pytest.approx(float(norm), rel=1e-12)
        else:
            reference.step()
            optimizer.step(1e-3)
    for name, value in parameters.named():
        np.testing.assert_allclose(value.numpy(), separate[name].detach().numpy(), rtol=1e-12, atol=1e-15)


def test_stored_moments_go_on_to_the_bit() -> None:
    runs = []
    for stop_after in (None, 2):
        parameters = Parameters(random_model())
        optimizer = Optimizer(AdamWConfig(), parameters)
        for step in range(5):
            if step == stop_after:
                moments = {name: value.clone() for name, value in optimizer.moments().items()}
                optimizer = Optimizer(AdamWConfig(), parameters)
                optimizer.load(moments, step)
            set_gradients(parameters, step)
            optimizer.step(1e-3)
        runs.append(parameters.flats[0].detach().numpy().copy())
    assert np.array_equal(*runs)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    parameters = Parameters(random_model())
    before = parameters.flats[0].detach().clone()
    set_gradients(parameters, 0)
    next(iter(parameters.split([flat.grad for flat in parameters.flats]).values()))[0] = np.nan
    with pytest.raises(RunError, match="not finite"):
        Optimizer(AdamConfig(), parameters).step(1e-3)
    assert torch.equal(before, parameters.flats[0].detach())


def test_the_model_sees_its_parameters_change() -> None:
    model = random_model()
    parameters = Parameters(model)
    with torch.no_grad():
        parameters.flats[0] += 1.0
    for name, value in parameters.named():
        assert np.array_equal(dict(model.parameters())[name], value.numpy())
    assert sum(value.size for _, value in model.parameters()) == parameters.n_values
