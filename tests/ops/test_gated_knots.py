"""The table of networks with gains and gates against NumPy, and its way back against finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dphpc.model.gated import Gate, GatedNetwork
from dphpc.model.networks import initial_network
from dphpc.model.radial_table import Grid, RadialTable
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.se_a.gated_knots import GatedKnotTable

SCALES = (0.3, 0.4)
"""dstd of two center types."""

OF_S, PLAIN = Grid(0.0, (0.001, 0.02, 0.1), (20, 40, 12)), Grid(-0.7, (0.05, 0.3), (13, 6))


def parameters(davg: float) -> SeAParameters:
    return SeAParameters(
        rcut=6.0, rcut_smth=0.5, protection=0.0, scale=0.1, axis_neuron=4, sel=np.array([5, 7], np.int32),
        davg=np.full(2, davg), dstd=np.array([[scale, 0.2] for scale in SCALES]),
        network=np.array([[0, 2], [1, 3]], np.int32), flags=np.full((2, 2), 3, np.uint8),
    )  # fmt: skip


def made(smooth: bool, dtype: type) -> tuple[list[GatedNetwork], SeAParameters, list[Grid]]:
    """Networks of center + 2·neighbor, each with its grid."""
    rng = np.random.default_rng(3)
    layers = initial_network([1, 5, 10, 20], "tanh", rng, resnet_dt=True).astype(dtype).layers
    gates = [Gate(6.0, 0.5, 0.0, 0.0, scale) if smooth else None for scale in (*SCALES, *SCALES)]
    networks = [GatedNetwork(layers, rng.normal(size=20).astype(dtype), gate) for gate in gates]
    grids = [OF_S.in_units_of(scale) if smooth else PLAIN for scale in (*SCALES, *SCALES)]
    return networks, parameters(0.0 if smooth else 0.1), grids


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-7)])
def test_tables_are_those_of_the_networks(smooth: bool, dtype: type, tolerance: float) -> None:
    networks, p, grids = made(smooth, dtype)
    table = GatedKnotTable(networks, p, grids)
    networks[0].layers[1].w += 0.1  # new weights in the same arrays
    networks[1].gains *= 1.5
    table.update()
    exact = [net.astype(np.float64) for net in networks]
    expected = [RadialTable.from_networks([n], grid).coefficients[0] for n, grid in zip(exact, grids, strict=True)]
    assert table.coefficients.dtype == dtype
    # Measured: 2e-14, 6e-8.
    np.testing.assert_allclose(table.coefficients, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    s0 = -p.davg / p.dstd[:, 0]
    assert np.any(table.empty) == (not smooth)
    for (c, t), i in np.ndenumerate(p.network):
        value, _ = RadialTable((grids[i],), table.coefficients[i][None]).evaluate(s0[c : c + 1], np.zeros(1, int))
        np.testing.assert_allclose(table.empty[c, t], s0[c] * value[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("smooth", [False, True])
def test_gradients_equal_finite_differences(smooth: bool) -> None:
    networks, p, grids = made(smooth, np.float64)
    table, rng, h = GatedKnotTable(networks, p, grids), np.random.default_rng(4), 1e-6
    seeds = rng.normal(size=table.coefficients.shape), rng.normal(size=table.empty.shape)
    arrays = dict(networks[0].parameters())
    layers = {name: np.empty_like(value) for name, value in arrays.items() if name != "gains"}
    gradients: list[dict[str, Any]] = [{**layers, "gains": np.empty(20)} for _ in networks]
    table.backward(seeds[0].copy(), seeds[1], gradients)

    def total() -> float:
        table.update()
        return float((seeds[0] * table.coefficients).sum() + (seeds[1] * table.empty).sum())

    places = [(arrays[name], found) for name, found in layers.items()]
    places += [(net.gains, own["gains"]) for net, own in zip(networks, gradients, strict=True)]
    for array, found in places:
        k = int(np.abs(found).argmax())
        values = []
        for sign in (1, -1):
            array.flat[k] += sign * h
            values.append(total())
            array.flat[k] -= sign * h
        assert found.flat[k] == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_equal_gates_share_their_tables() -> None:
    networks, p, grids = made(True, np.float64)
    assert len(GatedKnotTable(networks, p, grids)._bases) == 2
    same = [replace(net, gate=networks[0].gate) for net in networks]
    assert len(GatedKnotTable(same, p, grids[:1] * 4)._bases) == 1
