"""The reference against finite differences, and the native kernels against the reference."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from dphpc.model.radial_table import RadialTable
from dphpc.ops.se_a import reference
from dphpc.ops.se_a.contract import Embedding
from dphpc.ops.se_a.native import SeATape
from dphpc.ops.threads import set_threads
from tests.ops import taped as native

# Largest difference relative to the largest entry; measured over all variants: 9e-16 … 2e-13 and 3e-8 … 9e-7.
TOLERANCE: dict[type, float] = {np.float64: 2e-12, np.float32: 5e-6}


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert got.shape == expected.shape
    scale = np.abs(expected).max(initial=0.0) or 1.0
    assert np.abs(got - expected).max(initial=0.0) <= tolerance * scale


def forces_of(ops: Any, case: Any) -> tuple[np.ndarray, np.ndarray]:
    forces = np.zeros_like(case.env.positions)
    center_virial = np.full((len(case.env.centers), 3, 3), np.nan)
    ops.forces_into(case.env, case.p, case.e, case.bar, forces, center_virial)
    return forces, center_virial


# ------------------------------------------------------------------------------------- the reference


def functional(case: Any, positions: np.ndarray) -> float:
    """Σ Ā·A."""
    return float((reference.moments(case.moved(positions), case.p, case.e)[0] * case.bar).sum())


def test_reference_forces_are_derivatives(variant, se_a_case):
    case = se_a_case(variant)
    forces, _ = forces_of(reference, case)
    x, h = case.env.positions, 1e-5
    rng = np.random.default_rng(1)
    for atom, axis in zip(rng.integers(0, 46, 6), rng.integers(0, 3, 6), strict=True):
        step = np.zeros_like(x)
        step[atom, axis] = h
        slope = (functional(case, x + step) - functional(case, x - step)) / (2 * h)
        assert forces[atom, axis] == pytest.approx(-slope, rel=1e-7, abs=1e-8)  # measured 4e-10


def test_reference_virial_is_strain_derivative(variant, se_a_case):
    case = se_a_case(variant)
    atom_virial, center_virial = np.zeros((len(case.env.positions), 3, 3)), np.zeros((len(case.env.centers), 3, 3))
    reference.forces_into(
        case.env, case.p, case.e, case.bar, np.zeros_like(case.env.positions), center_virial, atom_virial
    )
    strain = np.random.default_rng(2).normal(size=(3, 3))
    x, h = case.env.positions, 1e-6
    slope = (functional(case, x + h * x @ strain.T) - functional(case, x - h * x @ strain.T)) / (2 * h)
    assert -(center_virial.sum(axis=0) * strain).sum() == pytest.approx(slope, rel=1e-7, abs=1e-8)
    np.testing.assert_allclose(atom_virial.sum(axis=0), center_virial.sum(axis=0), atol=1e-12)


def test_reference_tangent_is_derivative(variant, se_a_case):
    case = se_a_case(variant)
    strain = np.random.default_rng(3).normal(size=(3, 3)) * 0.1
    everywhere = np.broadcast_to(strain, (len(case.env.centers), 3, 3))
    got = reference.tangent(case.env, case.p, case.e, case.direction, everywhere)
    x, h = case.env.positions, 1e-6
    step = h * (case.direction + x @ strain.T)
    ahead, behind = (reference.moments(case.moved(y), case.p, case.e)[0] for y in (x + step, x - step))
    assert_close(got, (ahead - behind) / (2 * h), 1e-8)  # measured 4e-10


def test_reference_tangent_adjoint_is_transpose(variant, se_a_case):
    """S = Σ Ā·A + Ǡ·Ȧ is linear in the table: its gradient times any other table is S of that table."""
    case = se_a_case(variant)
    args = (case.direction, case.strain)
    table_bar, empty_bar = reference.tangent_adjoint(case.env, case.p, case.e, *args, case.bar, case.bar_dot)
    rng = np.random.default_rng(4)
    table = RadialTable(case.e.table.grids, rng.normal(size=case.e.table.coefficients.shape))
    other = Embedding(table, rng.normal(size=case.e.empty.shape))
    expected = (reference.moments(case.env, case.p, other)[0] * case.bar).sum()
    expected += (reference.tangent(case.env, case.p, other, *args) * case.bar_dot).sum()
    got = (table_bar * table.coefficients).sum() + (empty_bar * other.empty).sum()
    assert got == pytest.approx(expected, rel=1e-11)  # measured 3e-14


def test_reference_features_adjoint_is_derivative():
    rng = np.random.default_rng(5)
    moments, step = rng.normal(size=(2, 3, 4, 11))
    adjoint = rng.normal(size=(3, 11 * 5))
    # Features are quadratic: the central difference is exact.
    change = (reference.features(moments + step, 5) - reference.features(moments - step, 5)) / 2
    got = (reference.features_adjoint(moments, adjoint) * step).sum()
    assert got == pytest.approx((adjoint * change).sum(), rel=1e-12)


# ------------------------------------------------------------------------------------- native kernels


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("threads", [1, 2])
def test_native_agrees(variant, se_a_case, dtype, threads):
    case, tolerance = se_a_case(variant, dtype=dtype), TOLERANCE[dtype]
    set_threads(threads)
    got, largest = native.moments(case.env, case.p, case.e)
    expected, expected_largest = reference.moments(case.env, case.p, case.e)
    assert got.dtype == dtype
    assert_close(got, expected, tolerance)
    assert largest == pytest.approx(expected_largest, rel=1e-13)
    for a, b in zip(forces_of(native, case), forces_of(reference, case), strict=True):
        assert_close(a, b, tolerance)

    args = (case.env, case.p, case.e, case.direction, case.strain)
    assert_close(native.tangent(*args), reference.tangent(*args), tolerance)
    for a, b in zip(
        native.tangent_adjoint(*args, case.bar, case.bar_dot),
        reference.tangent_adjoint(*args, case.bar, case.bar_dot),
        strict=True,
    ):
        assert a.dtype == np.float64
        assert_close(a, b, tolerance)


def test_forces_add_to_what_is_there(se_a_case):
    case = se_a_case()
    alone, virial = forces_of(native, case)
    for threads in (1, 2):
        set_threads(threads)
        forces = np.ones_like(alone)
        native.forces_into(case.env, case.p, case.e, case.bar, forces, virial)
        np.testing.assert_allclose(forces, 1.0 + alone, atol=1e-12)


def test_same_bits_from_run_to_run(se_a_case):
    case = se_a_case("wide")
    args = (case.env, case.p, case.e, case.direction, case.strain)
    one = native.moments(*args[:3])[0], native.tangent(*args)
    set_threads(2)
    assert np.array_equal(one[0], native.moments(*args[:3])[0])
    assert np.array_equal(one[1], native.tangent(*args))
    runs = [(*forces_of(native, case), *native.tangent_adjoint(*args, case.bar, case.bar_dot)) for _ in range(3)]
    for run in runs[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_images_belong_to_their_owners(se_a_case, threads):
    """Forces on the last atoms, images, are their owners', whom they follow along a direction."""
    whole, rng = se_a_case("wide"), np.random.default_rng(7)
    set_threads(threads)
    n_local, n_all = 30, len(whole.env.positions)
    rows = whole.env.centers < n_local
    env = replace(whole.env, centers=whole.env.centers[rows])
    case = replace(whole, env=env, bar=whole.bar[rows], bar_dot=whole.bar_dot[rows], strain=whole.strain[rows])
    owners = rng.integers(0, n_local, n_all - n_local).astype(np.int32)
    assert np.isin(np.arange(n_local, n_all - 1), env.neighbors.indices).all(), "all but the lonely one matter"
    tape = SeATape(np.float64)
    tape.moments(env, case.p, case.e, owners)
    forces, virial = np.ones((n_local, 3)), np.empty((len(env.centers), 3, 3))
    tape.forces_into(case.bar, forces, virial)
    of_all, expected_virial = forces_of(reference, case)
    expected = 1.0 + of_all[:n_local]
    np.add.at(expected, owners, of_all[n_local:])
    assert_close(forces, expected, TOLERANCE[np.float64])
    assert_close(virial, expected_virial, TOLERANCE[np.float64])

    direction = case.direction[:n_local]
    args = env, case.p, case.e, np.concatenate((direction, direction[owners])), case.strain
    assert_close(tape.tangent(direction, case.strain), reference.tangent(*args), TOLERANCE[np.float64])
    got = tape.tangent_adjoint(case.bar, case.bar_dot)
    for a, b in zip(got, reference.tangent_adjoint(*args, case.bar, case.bar_dot), strict=True):
        assert_close(a, b, TOLERANCE[np.float64])


def test_a_tape_forgets_the_batch_before(se_a_case):
    """Batches of more and fewer centers and pairs, one after the other, and moments that are asked for twice."""
    case, tape = se_a_case("wide"), SeATape(np.float64)
    few = case.env.centers[3:7]
    for centers in (few, case.env.centers, few[:1], few):
        env = replace(case.env, centers=centers)
        rows = np.isin(case.env.centers, centers)
        strain, bar, bar_dot = case.strain[rows], case.bar[rows], case.bar_dot[rows]
        tape.moments(case.env, case.p, case.e)
        got, expected = [tape.moments(env, case.p, case.e)[0]], [native.moments(env, case.p, case.e)[0]]
        for results, of in ((got, tape.forces_into), (expected, partial(native.forces_into, env, case.p, case.e))):
            forces, virial = np.zeros_like(env.positions), np.zeros((len(centers), 3, 3))
            of(bar, forces, virial)
            results += [forces, virial]
        got += [tape.tangent(case.direction, strain), *tape.tangent_adjoint(bar, bar_dot)]
        args = env, case.p, case.e, case.direction, strain
        expected += [native.tangent(*args), *native.tangent_adjoint(*args, bar, bar_dot)]
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_center_alone_has_the_same_moments(se_a_case):
    """A row does not depend on which other centers are worked on."""
    case = se_a_case()
    together = native.moments(case.env, case.p, case.e)[0]
    for i, center in enumerate(case.env.centers):
        alone = replace(case.env, centers=np.array([center], np.int32))
        assert np.array_equal(native.moments(alone, case.p, case.e)[0][0], together[i])


def test_no_centers(se_a_case):
    case = se_a_case()
    nobody = replace(case.env, centers=np.zeros(0, np.int32))
    moments, largest = native.moments(nobody, case.p, case.e)
    assert moments.shape == (0, 4, 20)
    assert largest == -np.inf
    assert native.features(moments, 4).shape == (0, 80)
    forces = np.zeros_like(case.env.positions)
    native.forces_into(nobody, case.p, case.e, moments, forces, np.zeros((0, 3, 3)))
    assert not forces.any()


def test_rounded_displacements(se_a_case):
    """The plain float32 mode differs from mixed precision by no more than rounding of the displacements."""
    case = se_a_case(dtype=np.float32)
    mixed = native.moments(case.env, case.p, case.e)[0]
    rounding = replace(case.p, round_displacements=True)
    rounded = native.moments(case.env, rounding, case.e)[0]
    assert_close(rounded, reference.moments(case.env, rounding, case.e)[0], 2e-6)  # measured 2e-7
    assert not np.array_equal(mixed, rounded)
    assert_close(rounded, mixed, 2e-6)  # measured 2e-7


def test_arguments_beyond_the_table_are_reported(se_a_case):
    case = se_a_case()
    short = RadialTable(tuple(replace(g, counts=(10,)) for g in case.e.table.grids), case.e.table.coefficients)
    embedding = Embedding(short, case.e.empty)
    got, largest = native.moments(case.env, case.p, embedding)
    assert largest > short.upper
    assert_close(got, reference.moments(case.env, case.p, embedding)[0], 1e-11)  # the last interval goes on


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("channels", "axis"), [(1, 1), (7, 3), (20, 4), (100, 16), (33, 33)])
def test_native_features(dtype, channels, axis):
    rng = np.random.default_rng(6)
    moments = rng.normal(size=(5, 4, channels)).astype(dtype)
    tolerance = 1e-14 if dtype is np.float64 else 2e-6  # measured 3e-16, 3e-7
    assert_close(native.features(moments, axis), reference.features(moments, axis), tolerance)
