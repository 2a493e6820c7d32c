"""The compiled tape of the fitting net against the plain one."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.model.networks import Network, initial_network
from dphpc.ops.fitting import native, reference
from dphpc.ops.se_a import reference as se_a
from dphpc.ops.threads import set_threads

NAMES = ["tanh", "sigmoid", "softplus", "relu", "relu6", "gelu", "silu", "silut:0.5", "linear"]
CHANNELS, AXIS = 11, 4
# Behind the features and columns: skips of all kinds, odd widths, none.
WIDTHS = [[12, 24, 24], [44], [47, 47], [88, 13], []]


def network(widths: list[int], n_columns: int, name: str, dtype: type) -> Network:
    rng = np.random.default_rng(3)
    net = initial_network([CHANNELS * AXIS + n_columns, *widths], name, rng, resnet_dt=True, output=1)
    return net.astype(dtype)


def plain(net: Network, moments, columns, seeds, tangent):
    """What plain net and descriptor make of the same arrays, and the gradients by the net's parameters."""
    n, n_features = len(moments), CHANNELS * AXIS
    left = np.einsum("nam,nak->nmk", tangent, moments[:, :, :AXIS])
    right = np.einsum("nam,nak->nmk", moments, tangent[:, :, :AXIS])
    inputs = np.concatenate((se_a.features(moments, AXIS), columns), axis=1)
    tangents = np.concatenate(((left + right).reshape(n, -1), np.zeros_like(columns)), axis=1)
    energies, adjoint = reference.energy_and_adjoint(net, inputs)
    adjoint = adjoint[:, :n_features]
    gradients, q = reference.gradient(net, inputs, tangents, seeds)
    moments_bar = se_a.features_adjoint(moments, q[:, :n_features]) + se_a.features_adjoint(tangent, adjoint)
    return energies, se_a.features_adjoint(moments, adjoint), moments_bar, gradients


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])  # measured 1e-14, 3e-6
def test_native_agrees(name, widths, dtype, tolerance):
    rng = np.random.default_rng(2)
    for n, n_columns, threads, add in ((5, 0, 1, False), (230, 3, 2, True), (1, 3, 3, False), (45, 0, 2, True)):
        set_threads(threads)
        net = network(widths, n_columns, name, dtype)
        moments, tangent = (0.7 * rng.normal(size=(2, n, 4, CHANNELS))).astype(dtype)
        columns, seeds = rng.normal(size=(n, n_columns)).astype(dtype), rng.normal(size=n).astype(dtype)
        start = {key: rng.normal(size=value.shape).astype(dtype) for key, value in net.parameters()}
        ours = {key: value.copy() for key, value in start.items()}
        *expected, theirs = plain(net, moments, columns, seeds, tangent)
        theirs = {key: theirs[key] + start[key] if add else theirs[key] for key in start}
        tape = native.FittingTape(net, CHANNELS, AXIS)
        got = (*tape.energy_and_adjoint(moments, columns), tape.gradient(seeds, tangent, ours, add=add))
        for a, b in zip((*got, *ours.values()), (*expected, *theirs.values()), strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=1.0))


@pytest.mark.parametrize("widths", [[48, 48], [1603]])  # without and with a skip connection of the first layer
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_threads_that_share_inputs_agree_with_one(widths, threads):
    rng = np.random.default_rng(5)
    channels, axis, n = 100, 16, 37
    net = initial_network([channels * axis + 3, *widths], "tanh", rng, resnet_dt=True, output=1)
    moments, tangent = 0.1 * rng.normal(size=(2, n, 4, channels))
    columns, seeds = rng.normal(size=(n, 3)), rng.normal(size=n)

    def results(threads: int) -> list[np.ndarray]:
        set_threads(threads)
        tape = native.FittingTape(net, channels, axis)
        tape.repack()
        gradients = {key: np.zeros_like(value) for key, value in net.parameters()}
        energies, adjoint = tape.energy_and_adjoint(moments, columns)
        return [energies, adjoint, tape.gradient(seeds, tangent, gradients), *gradients.values()]

    for one, several in zip(results(1), results(threads), strict=True):
        np.testing.assert_allclose(several, one, rtol=0, atol=1e-13 * np.abs(one).max())  # measured 2e-15


def test_repack_takes_new_weights():
    net = network([12, 24], 0, "tanh", np.float64)
    tape = native.FittingTape(net, CHANNELS, AXIS)
    moments = np.random.default_rng(1).normal(size=(3, 4, CHANNELS))
    tape.energy_and_adjoint(moments)
    for layer in net.layers:
        layer.w *= 0.5
    tape.repack()
    expected = net(se_a.features(moments, AXIS))[:, 0]
    np.testing.assert_allclose(tape.energy_and_adjoint(moments)[0], expected, rtol=1e-12)


def test_names_left_out_are_not_touched():
    net = network([12], 0, "tanh", np.float64)
    tape = native.FittingTape(net, CHANNELS, AXIS)
    rng = np.random.default_rng(1)
    moments, tangent = rng.normal(size=(2, 3, 4, CHANNELS))
    tape.energy_and_adjoint(moments)
    wanted = {"layers.1.w": np.zeros((12, 1))}
    tape.gradient(rng.normal(size=3), tangent, wanted)
    assert np.any(wanted["layers.1.w"])
    for gradients, out in (({"layers.0.w": np.zeros((12, 44)).T}, None), ({}, np.zeros((11, 4, 3)).T)):
        with pytest.raises(TypeError):  # a copy of it would be set
            tape.gradient(rng.normal(size=3), tangent, gradients, out=out)
