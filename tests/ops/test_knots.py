"""The compiled table of embedding networks against NumPy, and its way back against torch's autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dphpc.model.networks import Layer, Network, initial_network
from dphpc.model.radial_table import Grid, RadialTable
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.se_a.knots import EmptySlots, KnotTable
from dphpc.ops.threads import set_threads

SMOOTH = ["tanh", "sigmoid", "softplus", "gelu", "gelu_tf", "silu", "linear", "none"]
GRIDS = [Grid.uniform(-0.7, 5.3, 64), Grid(-0.7, (0.05, 0.3), (13, 6))]
WIDTHS = [[1, 5, 10, 20], [1, 1, 2, 13], [1, 7]]


def parameters(n_networks: int) -> SeAParameters:
    """Of two types with average rows that are not zero; one of them takes no slots."""
    return SeAParameters(
        rcut=6.0, rcut_smth=0.5, protection=0.0, scale=0.1, axis_neuron=4, sel=np.array([5, 0], np.int32),
        davg=np.array([0.11, -0.2]), dstd=np.array([[0.3, 0.2], [0.4, 0.3]]),
        network=np.arange(4, dtype=np.int32).reshape(2, 2) % n_networks, flags=np.full((2, 2), 3, np.uint8),
    )  # fmt: skip


def networks(n: int, widths: list[int], name: str, dtype: type) -> list[Network]:
    rng = np.random.default_rng(3)
    return [initial_network(widths, name, rng, resnet_dt=i % 2 == 0).astype(dtype) for i in range(n)]


def torch_coefficients(net: Network, grid: Grid) -> torch.Tensor:
    """Quintic Hermite pieces (n_intervals, 6, M) as textbooks write them."""
    g, g1, g2 = net.jet(torch.from_numpy(grid.knots), torch)
    h = torch.from_numpy(grid.widths)[:, None]
    left, right = (
        [x[side], h * y[side], h * h * z[side]] for side in (slice(-1), slice(1, None)) for x, y, z in [(g, g1, g2)]
    )
    (a, b, c), (d, e, f) = left, right
    return torch.stack(
        [
            a, b, 0.5 * c,
            10 * (d - a) - 6 * b - 4 * e - 1.5 * c + 0.5 * f,
            -15 * (d - a) + 8 * b + 7 * e + 1.5 * c - f,
            6 * (d - a) - 3 * (b + e) - 0.5 * (c - f),
        ],
        dim=1,
    )  # fmt: skip


def twin(net: Network) -> Network:
    """The network with float64 leaves of torch."""

    def leaf(a):
        return None if a is None else torch.tensor(a, dtype=torch.float64, requires_grad=True)

    return Network([Layer(leaf(y.w), leaf(y.b), leaf(y.idt), y.activation, y.resnet) for y in net.layers])


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("grid", GRIDS, ids=["uniform", "two parts"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-13), (np.float32, 2e-7)])
def test_table_and_gradient(name, grid, dtype, tolerance):
    for widths, threads in zip(WIDTHS, (1, 2, 3), strict=True):
        set_threads(threads)
        nets, p = networks(3, widths, name, dtype), parameters(3)
        rng = np.random.default_rng(4)
        table = KnotTable(nets, p, grid)
        expected = RadialTable.from_networks([net.astype(np.float64) for net in nets], grid).coefficients
        size = np.abs(expected).max()
        assert table.coefficients.dtype == dtype
        np.testing.assert_allclose(table.coefficients, expected, rtol=0, atol=tolerance * size)

        for net in nets:  # new weights in the same arrays
            for _, value in net.parameters():
                value += 0.1 * rng.normal(size=value.shape)
        table.update()
        twins = [twin(net) for net in nets]
        coefficients = torch.stack([torch_coefficients(net, grid) for net in twins])
        np.testing.assert_allclose(table.coefficients, coefficients.detach(), rtol=0, atol=tolerance * size)
        s0 = -p.davg / p.dstd[:, 0]
        index, t = grid.locate(s0)
        powers = torch.from_numpy(t[:, None] ** np.arange(6) * s0[:, None])
        empty = torch.einsum("ctkm,ck->ctm", coefficients[p.network, index[:, None]], powers)
        empty = empty * torch.from_numpy(p.sel > 0)[None, :, None]
        np.testing.assert_allclose(table.empty, empty.detach(), rtol=0, atol=tolerance * size)

        by_table, by_empty = rng.normal(size=coefficients.shape), rng.normal(size=empty.shape)
        ((torch.from_numpy(by_table) * coefficients).sum() + (torch.from_numpy(by_empty) * empty).sum()).backward()
        found = [{key: np.full_like(value, np.nan) for key, value in net.parameters()} for net in nets]
        table.backward(by_table, by_empty, found)
        for net, arrays in zip(twins, found, strict=True):
            for key, value in net.parameters():
                scale = float(value.grad.abs().max())
                np.testing.assert_allclose(
                    arrays[key], value.grad, rtol=0, atol=tolerance * max(scale, 1.0), err_msg=key
                )


def test_slots_that_read_the_same_piece():
    """Both neighbor types have one network: the way back is the transpose of the way ahead."""
    p, grid = replace(parameters(1), sel=np.array([5, 3], np.int32)), GRIDS[0]
    slots, rng = EmptySlots(p, grid), np.random.default_rng(0)
    coefficients, empty = rng.normal(size=(1, grid.n_intervals, 6, 7)), rng.normal(size=(2, 2, 7))
    values, adjoint = slots.of(coefficients), np.zeros_like(coefficients)
    np.testing.assert_array_equal(values[:, 0], values[:, 1])
    slots.add_adjoint(empty, adjoint)
    assert (values * empty).sum() == pytest.approx((coefficients * adjoint).sum(), rel=1e-13)


def test_left_out_arrays_stay():
    nets, grid = networks(1, [1, 4, 8], "tanh", np.float64), GRIDS[0]
    table = KnotTable(nets, parameters(1), grid)
    wanted, all_of_it = {"layers.1.w": np.zeros((4, 8))}, {k: np.zeros_like(v) for k, v in nets[0].parameters()}
    seed = np.random.default_rng(0).normal(size=table.coefficients.shape)
    for arrays in (wanted, all_of_it):
        table.backward(seed.copy(), np.zeros((2, 2, 8)), [arrays])
    np.testing.assert_array_equal(wanted["layers.1.w"], all_of_it["layers.1.w"])
    with pytest.raises(TypeError):  # a copy of it would be set
        table.backward(seed.copy(), np.zeros((2, 2, 8)), [{"layers.1.w": np.zeros((8, 4)).T}])


def test_threads_do_not_change_a_bit():
    nets, grid, results = networks(2, [1, 25, 50, 100], "tanh", np.float64), Grid.uniform(-1, 9, 256), []
    for threads in (1, 2, 5):
        set_threads(threads)
        table = KnotTable(nets, parameters(2), grid)
        found = [{key: np.empty_like(value) for key, value in net.parameters()} for net in nets]
        table.backward(
            np.cos(np.arange(table.coefficients.size)).reshape(table.coefficients.shape), np.ones((2, 2, 100)), found
        )
        results.append([table.coefficients, *found[0].values(), *found[1].values()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
