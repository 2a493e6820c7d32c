"""Every build of the kernels that this CPU can run, and the text that travels with the package."""

from __future__ import annotations

from importlib import import_module, resources

import numpy as np
import pytest

import dphpc._native
from dphpc.core import cores
from dphpc.core.errors import InputError
from dphpc.model.networks import initial_network
from dphpc.ops import threads
from dphpc.ops.fitting import native as fitting
from dphpc.ops.fitting import reference as fitting_reference
from dphpc.ops.neighbors import native as neighbors
from dphpc.ops.neighbors import reference as neighbors_reference
from dphpc.ops.se_a import reference as se_a_reference
from tests.ops import taped as se_a


@pytest.fixture(params=dphpc._native.builds)
def build(request, monkeypatch):
    kernels = import_module(f"dphpc._native._{request.param}")
    for module in (dphpc._native, neighbors):
        monkeypatch.setattr(module, "kernels", kernels)
    return kernels


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-12), (np.float32, 5e-6)])
@pytest.mark.parametrize("channels", [1, 37, 100])
def test_every_build_agrees(build, se_a_case, channels, dtype, tolerance):
    case = se_a_case("grids_in_parts", channels=channels, dtype=dtype)
    n_all = len(case.env.positions)
    results = []
    for ops in (se_a, se_a_reference):
        forces, virial = np.zeros((n_all, 3)), np.zeros((len(case.env.centers), 3, 3))
        ops.forces_into(case.env, case.p, case.e, case.bar, forces, virial)
        args = (case.env, case.p, case.e, case.direction, case.strain)
        moments = ops.moments(*args[:3])[0]
        adjoints = ops.tangent_adjoint(*args, case.bar, case.bar_dot)
        results.append((moments, ops.features(moments, 1), forces, virial, ops.tangent(*args), *adjoints))
    for got, expected in zip(*results, strict=True):
        assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()  # measured 3e-14, 6e-7

    net = initial_network([30, 24, 24], "tanh", np.random.default_rng(0), resnet_dt=True, output=1)
    x = np.random.default_rng(1).normal(size=(40, 30))
    for a, b in zip(fitting.energy_and_adjoint(net, x), fitting_reference.energy_and_adjoint(net, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)

    found, expected = (
        ops.build_neighbors(case.env.positions, case.env.types, np.arange(len(case.env.types)), 46, 4.0)
        for ops in (neighbors, neighbors_reference)
    )
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_kernel_text_is_installed():
    """CuPy compiles the shared headers at run time: they must be in the package."""
    text = resources.files("dphpc").joinpath("_kernels/shared/env_row.h").read_text()
    assert "smooth_switch" in text


def test_default_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert threads.default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(InputError, match="many"):
        threads.default_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cores, "affinity", lambda: frozenset(range(8)))
    monkeypatch.setattr(cores, "quota", lambda: None)
    assert threads.default_threads(ranks_on_node=2) == 4
    assert threads.default_threads(ranks_on_node=100) == 1


def test_set_threads():
    threads.set_threads(2)
    assert threads.get_threads() == 2
    with pytest.raises(InputError, match="0 threads"):
        threads.set_threads(0)
