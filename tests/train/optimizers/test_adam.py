from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dphpc.core.errors import InputError, RunError
from dphpc.train.optimizers import GradientOptimizer, make_optimizer
from dphpc.train.parameters import Parameters
from tests.models import random_model
from tests.train.optimizers.gradients import gradients, input_with, set_gradients


def made(parameters: Parameters, optimizer: dict[str, Any], max_norm: float = 0.0) -> GradientOptimizer:
    result = make_optimizer(input_with(optimizer, gradient_max_norm=max_norm), parameters)
    assert isinstance(result, GradientOptimizer)
    return result


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"type": "Adam"}, torch.optim.Adam),
        ({"type": "Adam", "adam_beta1": 0.8, "adam_beta2": 0.99, "weight_decay": 0.1}, torch.optim.Adam),
        ({"type": "AdamW", "weight_decay": 0.1}, torch.optim.AdamW),
    ],
)
@pytest.mark.parametrize("max_norm", [0.0, 2.0])
def test_equals_torch_on_separate_parameters(options: dict[str, Any], kind: type, max_norm: float) -> None:
    parameters = Parameters(random_model())
    separate = {name: value.clone().requires_grad_(True) for name, value in parameters.split(parameters.flats).items()}
    betas = (options.get("adam_beta1", 0.9), options.get("adam_beta2", 0.999))
    reference = kind(separate.values(), lr=1e-3, betas=betas, weight_decay=options.get("weight_decay", 0.0))
    optimizer = made(parameters, options, max_norm)
    for step in range(4):
        set_gradients(parameters, step)
        for name, gradient in gradients(parameters).items():
            separate[name].grad = gradient.clone()
        if max_norm:
            norm = torch.nn.utils.clip_grad_norm_(separate.values(), max_norm)
            reference.step()
            assert optimizer.step(1e-3) == pytest.approx(float(norm), rel=1e-12)
        else:
            reference.step()
            optimizer.step(1e-3)
    for name, value in parameters.split(parameters.flats).items():
        np.testing.assert_allclose(value.numpy(), separate[name].detach().numpy(), rtol=1e-12, atol=1e-15)


OPTIONS: list[dict[str, Any]] = [
    {"type": "AdamW"},
    {"type": "HybridMuon"},
    {"type": "SOAP", "precondition_frequency": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_stored_state_goes_on_to_the_bit(options: dict[str, Any]) -> None:
    runs = []
    for stop_after in (None, 3):
        parameters = Parameters(random_model())
        optimizer = made(parameters, options)
        assert optimizer.state() == {}
        for step in range(6):
            if step == stop_after:
                state = {name: value.clone() for name, value in optimizer.state().items()}
                optimizer = made(parameters, options)
                optimizer.load(state, step)
            set_gradients(parameters, step)
            optimizer.step(1e-3)
        runs.append(parameters.flats[0].detach().numpy().copy())
    assert np.array_equal(*runs)


def test_the_state_of_another_optimizer_is_refused() -> None:
    parameters = Parameters(random_model())
    adam = made(parameters, {"type": "Adam"})
    set_gradients(parameters, 0)
    adam.step(1e-3)
    for options in OPTIONS[1:]:
        with pytest.raises(InputError, match=f"not written by {options['type']}"):
            made(parameters, options).load(adam.state(), 1)
    made(parameters, {"type": "AdamW"}).load(adam.state(), 1)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_gradient_that_is_not_finite_changes_nothing(options: dict[str, Any]) -> None:
    parameters = Parameters(random_model())
    before = parameters.flats[0].detach().clone()
    set_gradients(parameters, 0)
    next(iter(gradients(parameters).values()))[0] = np.nan
    with pytest.raises(RunError, match="not finite"):
        made(parameters, options).step(1e-3)
    assert torch.equal(before, parameters.flats[0].detach())


def test_the_model_sees_its_parameters_change() -> None:
    model = random_model()
    parameters = Parameters(model)
    with torch.no_grad():
        parameters.flats[0] += 1.0
    for name, value in parameters.split(parameters.flats).items():
        assert np.array_equal(dict(model.parameters())[name], value.numpy())
    assert sum(value.size for _, value in model.parameters()) == parameters.n_values
