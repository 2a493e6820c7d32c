"""Activations and networks: derivatives against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dphpc.core.errors import InputError
from dphpc.model.activations import activation
from dphpc.model.networks import Layer, Network, initial_network

NAMES = ["tanh", "sigmoid", "softplus", "relu", "relu6", "gelu", "gelu_tf", "silu", "linear", "none", "silut:2.0"]


@pytest.mark.parametrize("name", NAMES)
def test_activation_derivatives(name: str) -> None:
    x, h = np.linspace(-4, 8, 1001) + 1e-4, 1e-5
    f = activation(name)
    low, mid, high = f(np, x - h), f(np, x), f(np, x + h)
    # Measured: 1e-10 for all of them.
    assert mid[1] == pytest.approx((high[0] - low[0]) / (2 * h), abs=1e-9)
    assert mid[2] == pytest.approx((high[1] - low[1]) / (2 * h), abs=1e-9)


def test_unknown_activation_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'tanh'"):
        activation("tanhh")
    with pytest.raises(InputError, match="no number"):
        activation("silut:x")


@pytest.mark.parametrize("widths", [[1, 4, 8, 16], [1, 1, 2, 5, 5], [1, 2, 7]])
def test_jet_is_value_and_derivatives(widths: list[int]) -> None:
    net = initial_network(widths, "gelu", np.random.default_rng(0), resnet_dt=True)
    s, h = np.linspace(-1, 3, 31), 1e-5
    value, first, second = net.jet(s)
    assert value == pytest.approx(net(s[:, None]), abs=1e-14)
    low, high = net.jet(s - h), net.jet(s + h)
    assert first == pytest.approx((high[0] - low[0]) / (2 * h), abs=1e-8)
    assert second == pytest.approx((high[1] - low[1]) / (2 * h), abs=1e-8)


@pytest.mark.parametrize("widths", [[6, 4, 8, 16], [2, 2, 4, 5, 5], [3, 7]])
def test_adjoint_is_torchs(widths: list[int]) -> None:
    rng = np.random.default_rng(0)
    net = initial_network(widths, "gelu", rng, resnet_dt=True)
    net.layers[-1].b = None
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in net.parameters()}
    x, y = rng.normal(size=(5, widths[0])), rng.normal(size=(5, widths[-1]))
    inputs = torch.tensor(x, requires_grad=True)
    twin = Network([
        Layer(*(leaves.get(f"layers.{i}.{k}") for k in ("w", "b", "idt")), layer.activation, layer.resnet)
        for i, layer in enumerate(net.layers)
    ])  # fmt: skip
    twin(inputs, torch).backward(torch.from_numpy(y))
    found, of_inputs = net.adjoint(x, y)
    assert found.keys() == leaves.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, leaves[name].grad, rtol=0, atol=1e-13 * np.abs(value).max())
    np.testing.assert_allclose(of_inputs, inputs.grad, rtol=0, atol=1e-13 * np.abs(of_inputs).max())
