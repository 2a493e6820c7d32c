"""Layers of few rows by kernels of our own, against NumPy and against products of any number of rows."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dphpc.core.exact_sum import FORCE_SPACING
from dphpc.model.activations import activation
from dphpc.model.networks import Layer, Network
from dphpc.ops import kernel_text
from dphpc.ops.energy import cuda, tiles
from dphpc.ops.energy.cuda import FEW_ROWS_SHAPE, CudaEnergy
from dphpc.ops.energy.tiles import Part
from tests.ops.emulation.device import EmulatedDevice
from tests.ops.test_energy import evaluate, fitting_net, usable
from tests.ops.test_fitting import ACTIVATIONS

UNSET = -7.0

# Widths with no skip, the input once and twice; longer and wider than a piece, and no multiple of anything.
WIDTHS = [(7, 5), (1, 1), (70, 70), (37, 74), (130, 3)]


def layer_of(n_in: int, n_out: int, name: str = "tanh", *, idt: bool = True, dtype: type = np.float64) -> Layer:
    rng = np.random.default_rng(n_in)
    w, b = rng.normal(size=(n_in, n_out)) / np.sqrt(n_in), rng.normal(size=n_out)
    factors = rng.uniform(0.5, 1.5, n_out).astype(dtype) if idt else None
    return Layer(w.astype(dtype), b.astype(dtype), factors, name, True)


def ahead_and_back(device, layer: Layer, x, factor, above, below):
    """y, ∂y/∂z, the adjoint of x and its product with `below`, each with a row that is to stay `UNSET`."""
    n, (n_in, n_out) = len(x), layer.w.shape
    ops = CudaEnergy(device)
    net = ops.prepare(Network([layer]), 1, 1)
    up = [None if a is None else ops.workspace.new(a) for a in (x, factor, above, below)]
    found = [ops.workspace.new(np.full((n + 1, width), UNSET, x.dtype)) for width in (n_out, n_out, n_in, n_in)]
    part = Part(net, 0, n, n, 0.0)
    y, slope, adjoint, product = found
    ops._launch_few(part, "layer_ahead", net.layers[0], n_out, up[0], slope, y)
    ops._launch_few(part, "layer_back", net.layers[0], n_in, up[1], up[2], adjoint, up[3], product)
    return [device.download(a) for a in found]


def given(layer: Layer, n: int):
    rng, dtype = np.random.default_rng(n), layer.w.dtype
    n_in, n_out = layer.w.shape
    return [rng.normal(size=(n, width)).astype(dtype) for width in (n_in, n_out, n_out, n_in)]


def expected(layer: Layer, x, factor, above, below):
    x, factor, above, below = (a.astype(np.float64) for a in (x, factor, above, below))
    idt = 1.0 if layer.idt is None else layer.idt
    z = x @ layer.w.astype(np.float64) + (0.0 if layer.b is None else layer.b)
    y, slope, _ = activation(layer.activation)(np, z)
    y, adjoint = y * idt, factor @ layer.w.T.astype(np.float64)
    if layer.skip:
        y = y + np.tile(x, layer.skip)
        adjoint = adjoint + above.reshape(len(x), layer.skip, -1).sum(axis=1)
    return y, slope * idt, adjoint, below * adjoint


def compare(device, layer: Layer, n: int, tolerance: float) -> None:
    arrays = given(layer, n)
    for got, wanted in zip(ahead_and_back(device, layer, *arrays), expected(layer, *arrays), strict=True):
        np.testing.assert_allclose(got[:n], wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1.0))
        assert (got[n] == UNSET).all(), "a row beyond the last is written to"


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 3e-6)])  # measured 7e-16, 2e-7
@pytest.mark.parametrize("widths", WIDTHS)
def test_layers_of_all_shapes(device, widths, dtype, tolerance):
    for n in (1, 2, 15, 16, 17, 20):
        compare(device, layer_of(*widths, dtype=dtype), n, tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_all_activations_with_and_without_factors(device, name):
    for idt in (True, False):
        layer = layer_of(7, 14, name, idt=idt)
        compare(device, layer, 5, 1e-14)  # measured 4e-16
        layer.b = None
        compare(device, layer, 5, 1e-14)


def test_the_first_layer_leaves_an_adjoint_alone(device):
    layer = layer_of(7, 5)
    x, factor, _, _ = given(layer, 3)
    _, _, adjoint, product = ahead_and_back(device, layer, x, factor, None, None)
    np.testing.assert_allclose(adjoint[:3], factor @ layer.w.T, rtol=0, atol=1e-14)
    assert (product == UNSET).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bits_of_a_row_do_not_depend_on_place_or_number(device, dtype):
    layer = layer_of(70, 140, dtype=dtype)
    arrays = given(layer, 40)
    whole = ahead_and_back(device, layer, *arrays)
    for rows in ([0], [39], [5, 17, 33], np.random.default_rng(1).permutation(40)):
        for few, all_rows in zip(ahead_and_back(device, layer, *(a[rows] for a in arrays)), whole, strict=True):
            assert np.array_equal(few[:-1], all_rows[rows])


def test_tensor_cores_are_given_the_right_elements(monkeypatch):
    """By what PTX says of the lanes' elements; a GPU's own products are tested by all else here."""
    plain = kernel_text.kernel_text

    def by_tensor_cores(name, **definitions):
        text, n = re.subn(
            r"asm volatile\(.*?\);",
            "host::multiply_add(sums[i][j], a[i], b[j]);",
            plain(name, __CUDA_ARCH__=800, **definitions),
            flags=re.DOTALL,
        )
        assert n == 1
        return text

    monkeypatch.setattr(cuda, "kernel_text", by_tensor_cores)
    device = EmulatedDevice()
    for widths in WIDTHS:
        compare(device, layer_of(*widths), 17, 1e-14)


@pytest.mark.parametrize("most", [0, 10**6])
def test_products_of_few_rows_and_of_many(device, se_a_case, monkeypatch, most):
    """Which of them a net takes; their results are the same but for rounding."""
    case = usable(se_a_case, "plain")
    net, ops = fitting_net(case), CudaEnergy(device)
    monkeypatch.setattr(tiles, "FEW_ROWS", most)
    launched = getattr(device, "launched", [])
    launched.clear()
    found = evaluate(ops, case, net, spacing=FORCE_SPACING)
    if launched:
        assert ("layer_ahead" in launched) == ("layer_back" in launched) == bool(most)
        assert ("activate" in launched) == ("pass_back" in launched) == (not most)
    monkeypatch.setattr(tiles, "FEW_ROWS", 10**6 - most)
    for a, b in zip(found, evaluate(ops, case, net, spacing=FORCE_SPACING), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def test_a_shape_is_made_of_whole_tiles():
    shape = FEW_ROWS_SHAPE
    assert shape["ROWS"] % 8 == shape["COLUMNS"] % 8 == shape["DEPTH"] % 32 == shape["BLOCK"] % 32 == 0
    assert shape["DEPTH"] // (shape["BLOCK"] // 32) % 4 == 0, "tensor cores take four terms at a time"
