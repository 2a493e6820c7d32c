"""The reference against finite differences, and the native fitting net against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.model.activations import activation
from dphpc.model.networks import Layer, Network, initial_network
from dphpc.ops.fitting import native, reference
from dphpc.ops.threads import set_threads

ACTIVATIONS = ["tanh", "sigmoid", "softplus", "relu", "relu6", "gelu", "gelu_tf", "silu", "silut", "silut:0.5",
               "custom_silu:2", "none", "linear"]  # fmt: skip
# Widths with all skips: none, doubling, equal; and odd ones.
WIDTHS = [[6, 12, 12, 7], [5, 10], [37, 24, 48, 48], [1, 1, 2]]


def network(widths: list[int], name: str, dtype: type = np.float64, resnet_dt: bool = True) -> Network:
    net = initial_network(widths, name, np.random.default_rng(3), resnet_dt=resnet_dt, output=1)
    for layer in net.layers:
        for key, value in list(layer.parameters()):
            setattr(layer, key, value.astype(dtype))
    return net


@pytest.mark.parametrize("widths", WIDTHS)
def test_reference_adjoint_is_derivative(widths):
    net = network(widths, "tanh")
    rng = np.random.default_rng(1)
    x, step, h = rng.normal(size=(9, widths[0])), rng.normal(size=(9, widths[0])), 1e-5
    energy, adjoint = reference.energy_and_adjoint(net, x)
    np.testing.assert_allclose(energy, net(x)[:, 0], rtol=1e-14)
    slope = (net(x + h * step)[:, 0] - net(x - h * step)[:, 0]) / (2 * h)
    np.testing.assert_allclose((adjoint * step).sum(axis=1), slope, rtol=1e-7, atol=1e-9)  # measured 1e-10


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-14), (np.float32, 1e-5)])  # measured 9e-16, 6e-7
def test_native_agrees(name, widths, dtype, tolerance):
    rng = np.random.default_rng(2)
    for resnet_dt, n, threads in ((True, 23, 1), (False, 1, 1), (True, 700, 2), (True, 0, 1)):
        set_threads(threads)
        net = network(widths, name, dtype, resnet_dt)
        x = rng.normal(size=(n, widths[0])).astype(dtype)
        for got, expected in zip(native.energy_and_adjoint(net, x), reference.energy_and_adjoint(net, x), strict=True):
            assert got.dtype == dtype
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max(initial=1.0))


def test_layers_without_bias():
    net = network([6, 12, 12], "tanh")
    net.layers[1].b = None
    x = np.random.default_rng(4).normal(size=(5, 6))
    for got, expected in zip(native.energy_and_adjoint(net, x), reference.energy_and_adjoint(net, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_results_outlive_the_next_call():
    net = network([6, 12], "tanh")
    x, y = np.random.default_rng(5).normal(size=(2, 8, 6))
    first = native.energy_and_adjoint(net, x)
    kept = [a.copy() for a in first]
    native.energy_and_adjoint(net, y)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))


def arguments(dtype: type) -> np.ndarray:
    rng = np.random.default_rng(6)
    scales = (1e-7, 1e-3, 0.3, 1.0, 4.0, 30.0, 1000.0)
    corners = [0.0, 6.0, -6.0, 3.0, 0.5, 1e300 if dtype is np.float64 else 1e38, np.inf]
    return np.concatenate([*(s * rng.normal(size=3000) for s in scales), corners])[None].astype(dtype)


def activate(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The native activation and its slope at x (1, n): what a net of one weight, 1, makes of it."""
    net = Network([Layer(np.ones((1, 1), x.dtype), None, None, name, False)])
    y, slope = native.energy_and_adjoint(net, x.T)
    return y[None], slope.T


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_tanh_to_the_last_places(dtype):
    x = arguments(dtype)
    exact = np.tanh(x.astype(np.longdouble))
    y, _ = activate("tanh", x)
    assert (np.abs(y - exact) / np.spacing(np.abs(exact).astype(dtype))).max() < 3.0  # measured 2.44


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_activations_at_all_sizes(name, dtype):
    x = arguments(dtype)
    x = x[np.abs(x) < 1e4][None]
    unit = np.finfo(dtype).eps
    y, slope = activate(name, x)
    expected, expected_slope, _ = activation(name)(np, x.astype(np.float64))
    # Products such as x·sigmoid(x) cancel for large negative x: the error is of the size of x there.
    np.testing.assert_array_less(np.abs(y - expected), 4 * unit * (np.abs(x) + 1.0))  # measured 1.3
    np.testing.assert_array_less(np.abs(slope - expected_slope), 20 * unit * (np.abs(x) + 1.0))  # measured 11


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if not n.startswith("relu")])
def test_nan_stays_nan(name):
    y, _ = activate(name, np.full((1, 70), np.nan))
    assert np.isnan(y).all()
