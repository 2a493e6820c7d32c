"""A fitting net on a GPU, whose last layer is one kernel, forward and back, with the sum of energies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from dphpc.core.exact_sum import exact_sum
from dphpc.model.activations import _PLAIN
from dphpc.model.networks import Network, initial_network
from dphpc.ops.energy import cuda
from dphpc.ops.energy.cuda import _TALLY, CudaEnergy
from dphpc.ops.energy.tiles import Part
from dphpc.ops.fitting.reference import energy_and_adjoint
from tests.ops.emulation.device import EmulatedDevice, cut

KINDS = [(np.float64, 1), (np.float32, 1), (np.float32, 3)]
"""Precision, and parts of a factor."""

TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5}
"""Of the largest; measured on a host 3e-15 and 2e-6."""

TILE = 8


def net_of(*widths: int, dtype: type = np.float64) -> Network:
    net = initial_network([*widths], "tanh", np.random.default_rng(3), resnet_dt=True, output=1)
    return net.astype(dtype)


@dataclass
class Fitted:
    """What is left on the host of rows that are atoms, and of their sum."""

    energies: np.ndarray
    adjoint: np.ndarray
    sum: np.ndarray
    trouble: int


def fitted(
    device: Any, net: Network, inputs: np.ndarray, parts: int = 1, shift: float = 0.0, largest: Any = 0.5
) -> Fitted:
    """By `CudaEnergy`, whose rows beyond the atoms hold what must not count."""
    if parts == 3 and not device.has_tf32:
        pytest.skip("this GPU has no TF32")
    n, dtype = len(inputs), inputs.dtype
    ops, n_rows = CudaEnergy(device, TILE, in_pieces=True), -(-n // TILE) * TILE
    prepared = replace(ops.prepare(net, 1, 1), parts=parts)

    def up(values: np.ndarray) -> Any:
        array = device.zeros(n_rows * values[:1].size, dtype=values.dtype).reshape(n_rows, *values.shape[1:])
        device.fill(array, np.nan if values.ndim > 1 else np.inf)
        device.upload(values, array[:n])
        return array

    def array(name: str, width: int, parts: int) -> Any:
        growths, found = ops.workspace.growths, ops.workspace.buffer(name, (n_rows * parts * prepared.widest,), dtype)
        if ops.workspace.growths != growths:
            device.fill(found, np.nan)
        return found[: n_rows * parts * width].reshape(n_rows, parts * width)

    x = up(inputs)
    by_inputs = x
    if parts == 3:
        high = cut(inputs)
        with np.errstate(invalid="ignore"):
            x, by_inputs = up(np.concatenate((inputs - high, high, high), axis=1)), up(inputs)
    energies, above, found = device.zeros(n_rows, dtype), up(np.full(n, largest)), device.zeros(3, np.float64)
    trouble = device.zeros(1, np.int64)
    tally = tuple(map(ops.workspace.address, (found, above, trouble)))
    part = Part(prepared, 0, n_rows, n, shift)
    ops._fit(part, x, by_inputs, energies, np.array([(*tally, shift, 1.0)], _TALLY), array)
    return Fitted(*(device.download(a) for a in (energies[:n], by_inputs[:n], found, trouble)))


def assert_agrees(got: Fitted, net: Network, inputs: np.ndarray, shift: float = 0.0) -> None:
    energies, adjoint = energy_and_adjoint(net.astype(np.float64), inputs.astype(np.float64))
    tolerance = TOLERANCE[inputs.dtype.type]
    np.testing.assert_allclose(got.energies, energies, rtol=0, atol=tolerance * np.abs(energies).max())
    np.testing.assert_allclose(got.adjoint, adjoint, rtol=0, atol=tolerance * np.abs(adjoint).max())
    assert np.array_equal(got.sum, exact_sum(got.energies + np.float64(shift)))
    assert got.trouble == 0


@pytest.fixture(params=KINDS, ids=["float64", "float32", "pieces"])
def kind(request: pytest.FixtureRequest) -> tuple[type, int]:
    return request.param


@pytest.fixture
def inputs(kind: tuple[type, int]) -> Any:
    return lambda n, n_in: np.random.default_rng(n).normal(size=(n, n_in)).astype(kind[0])


@pytest.mark.parametrize("widths", [(5,), (1,), (300,), (5, 33), (5, 7, 7), (7, 14, 257), (5, 1)])
def test_nets_of_any_widths(device, kind, inputs, widths):
    """A last layer alone and behind others, with skips around it and below it, of more inputs than are read at once."""
    net, x = net_of(*widths, dtype=kind[0]), inputs(11, widths[0])
    net.layers[-1].resnet = True
    assert net.layers[-1].skip == (1 if widths[-1] == 1 else 0)
    assert_agrees(fitted(device, net, x, kind[1], 0.25), net, x, 0.25)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31, 70])
def test_any_number_of_rows(device, kind, inputs, n, monkeypatch):
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 3)
    net, x = net_of(6, 9, 9, dtype=kind[0]), inputs(n, 6)
    assert_agrees(fitted(device, net, x, kind[1], -1e3), net, x, -1e3)


@pytest.mark.parametrize("name", [*_PLAIN, "silut", "custom_silu:0.1"])
@pytest.mark.parametrize("bare", [False, True])
def test_every_activation_and_what_a_layer_may_lack(device, kind, inputs, name, bare):
    net, x = net_of(6, 1, dtype=kind[0]), inputs(5, 6)
    last = net.layers[-1]
    last.activation, last.resnet = name, not bare
    last.b, last.idt = (None, None) if bare else (np.full(1, 0.4, kind[0]), np.full(1, 0.7, kind[0]))
    assert last.skip == (0 if bare else 1)
    assert_agrees(fitted(device, net, x, kind[1]), net, x)


def test_bits_do_not_depend_on_rows_and_places(device, kind, inputs, monkeypatch):
    net, x = net_of(37, dtype=kind[0]), inputs(70, 37)
    whole, order = fitted(device, net, x, kind[1]), np.random.default_rng(1).permutation(70)
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 2)
    again = fitted(device, net, x[order], kind[1])
    few = fitted(device, net, x[order[:9]], kind[1])
    for n, other in ((70, again), (9, few)):
        assert np.array_equal(other.energies, whole.energies[order[:n]])
        assert np.array_equal(other.adjoint, whole.adjoint[order[:n]])
    assert np.array_equal(again.sum, whole.sum)


def test_warps_of_64_threads(kind, inputs):
    net, x = net_of(6, 70, 70, dtype=kind[0]), inputs(19, 6)
    assert_agrees(fitted(EmulatedDevice(warp=64), net, x, kind[1]), net, x)


@pytest.mark.parametrize("row", [0, 18])
@pytest.mark.parametrize("what", ["largest", "nan", "inf"])
def test_trouble_of_one_row_shows(device, kind, inputs, row, what):
    net, x, largest = net_of(6, 9, dtype=kind[0]), inputs(19, 6), np.full(19, 0.5)
    if what == "largest":
        largest[row] = 1.5
    else:
        net, x = net_of(6, dtype=kind[0]), x.copy()
        x[row] = float(what)
    assert fitted(device, net, x, kind[1], largest=largest).trouble == 1
