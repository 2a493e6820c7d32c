"""Energies and forces in one pass against the references in a row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dphpc.core.errors import InputError
from dphpc.core.exact_sum import FORCE_SPACING, total
from dphpc.model.networks import Network, initial_network
from dphpc.ops.energy import native, reference
from dphpc.ops.energy.contract import Accumulators
from dphpc.ops.threads import set_threads


def fitting_net(case, n_columns: int = 0, widths: tuple[int, ...] = (31, 31, 62), dtype: type = np.float64) -> Network:
    n_in = case.e.table.n_channels * case.p.axis_neuron + n_columns
    net = initial_network([n_in, *widths], "tanh", np.random.default_rng(5), resnet_dt=True, output=1)
    for layer in net.layers:
        layer.w *= 0.3
    return net.astype(dtype)


def evaluate(
    ops, case, net: Network, columns: np.ndarray | None = None, env=None, atomic: bool = True, spacing: float = 0.0
):
    n_all = len(case.env.positions)
    atom_virial = np.ones((n_all, 3, 3)) if atomic else None
    out = Accumulators(np.ones((n_all, 3)), np.ones((3, 3, 3)), atom_virial, spacing)
    prepared = ops.prepare(net, case.e.table.n_channels, case.p.axis_neuron)
    energies, largest = ops.energy_and_forces(env or case.env, case.p, case.e, prepared, columns, out)
    return energies, np.array(largest), out.forces, total(out.virial), out.atom_virial


def usable(se_a_case, variant: str, **changes):
    """The case with no more axis columns than it has channels."""
    case = se_a_case(variant, **changes)
    return replace(case, p=replace(case.p, axis_neuron=min(case.p.axis_neuron, case.e.table.n_channels)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])  # measured 8e-15, 1e-6
def test_native_agrees(se_a_case, variant, dtype, tolerance):
    case = usable(se_a_case, variant, dtype=dtype)
    columns = np.random.default_rng(1).normal(size=(len(case.env.centers), 3)).astype(dtype)
    for extra, threads in ((None, 1), (columns, 2)):
        set_threads(threads)
        net = fitting_net(case, 0 if extra is None else 3, dtype=dtype)
        results = [evaluate(ops, case, net, extra) for ops in (native, reference)]
        for got, expected in zip(*results, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("factor", [1, 2])
def test_skip_connection_around_the_first_layer(se_a_case, factor):
    case = usable(se_a_case, "plain")
    net = fitting_net(case, widths=(factor * case.e.table.n_channels * case.p.axis_neuron, 16))
    assert net.layers[0].skip == factor
    for got, expected in zip(*(evaluate(ops, case, net) for ops in (native, reference)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())  # measured 3e-15


def test_a_single_layer(se_a_case):
    case = usable(se_a_case, "plain")
    net = fitting_net(case, widths=())
    for got, expected in zip(*(evaluate(ops, case, net) for ops in (native, reference)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())  # measured 2e-15


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_energy_has_the_same_bits_wherever_its_atom_stands(se_a_case, dtype):
    case = usable(se_a_case, "wide", dtype=dtype)
    net = fitting_net(case, dtype=dtype)
    order = np.random.default_rng(8).permutation(np.tile(np.arange(len(case.env.centers)), 7))
    shuffled = replace(case.env, centers=case.env.centers[order])
    set_threads(1)
    energies = evaluate(native, case, net, atomic=False)[0]
    for threads in (1, 2, 3):
        set_threads(threads)
        assert np.array_equal(evaluate(native, case, net, env=shuffled, atomic=False)[0], energies[order])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_forces_and_virial_have_the_same_bits_in_any_order_and_number_of_threads(se_a_case, dtype):
    case = usable(se_a_case, "wide", dtype=dtype)
    net = fitting_net(case, dtype=dtype)
    set_threads(1)
    first = evaluate(native, case, net, atomic=False, spacing=FORCE_SPACING)
    plain = evaluate(native, case, net, atomic=False)
    assert np.array_equal(np.round(first[2] / FORCE_SPACING), first[2] / FORCE_SPACING)
    np.testing.assert_allclose(first[2], plain[2], rtol=0, atol=1e-9)  # measured 2e-11
    assert not np.array_equal(first[2], plain[2])
    shuffled = replace(case.env, centers=np.random.default_rng(8).permutation(case.env.centers))
    for threads in (1, 2, 3):
        set_threads(threads)
        again = evaluate(native, case, net, env=shuffled, atomic=False, spacing=FORCE_SPACING)
        assert np.array_equal(again[2], first[2])
        assert np.array_equal(again[3], first[3])


def test_the_reference_promises_no_bits(se_a_case):
    case = usable(se_a_case, "plain")
    with pytest.raises(InputError, match="compress the model"):
        evaluate(reference, case, fitting_net(case), spacing=FORCE_SPACING)
