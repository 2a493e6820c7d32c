"""The compiled step against NumPy's, and NumPy's against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dphpc.ops.adam import native, reference
from dphpc.ops.adam.contract import AdamStep
from dphpc.ops.threads import set_threads


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])  # measured 3e-16, 2e-7
def test_three_ways_agree(decoupled, dtype, tolerance):
    set_threads(2)
    rng = np.random.default_rng(4)
    start = rng.normal(size=(7, 11)).astype(dtype)
    values = [start.copy() for _ in range(2)]
    moments = [np.zeros((2, 7, 11), dtype) for _ in range(2)]
    peer = torch.tensor(start, requires_grad=True)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    judge = kind([peer], lr=0.03, betas=(0.8, 0.95), weight_decay=0.1)
    for count in range(1, 6):
        gradient = rng.normal(size=(7, 11)).astype(dtype)
        s = AdamStep(0.03, 0.8, 0.95, count, 0.1, decoupled)
        for ops, value, (first, second) in zip((native, reference), values, moments, strict=True):
            ops.adam_step(s, gradient, value, first, second)
        peer.grad = torch.from_numpy(gradient)
        judge.step()
    for value in values:
        np.testing.assert_allclose(value, peer.detach().numpy(), rtol=0, atol=tolerance)
    np.testing.assert_allclose(moments[0], moments[1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_arrays_behind_one_another_are_changed_like_one(n_threads):
    start, gradient = np.random.default_rng(6).normal(size=(2, 100_003))
    s, results = AdamStep(0.03, 0.8, 0.95, 1), []
    for ends in (None, np.array([7, 7, 40_000, 40_001, 100_003])):
        set_threads(n_threads)
        value, moments = start.copy(), np.zeros((2, *start.shape))
        native.adam_step(s, gradient, value, *moments, ends)
        results.append((value, moments))
    for one, several in zip(*results, strict=True):
        np.testing.assert_array_equal(one, several)
    assert not np.any(results[0][0] == start)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_norm_has_the_same_bits_on_any_number_of_threads(dtype):
    values = np.random.default_rng(5).normal(size=100_003).astype(dtype)
    for ends in (None, np.array([7, 7, 40_000, 40_001, 100_003])):  # one array, and several behind one another
        found = []
        for n_threads in (1, 2, 3):
            set_threads(n_threads)
            found.append(native.squared_norm(values, ends))
        assert found[0] == pytest.approx(reference.squared_norm(values), rel=1e-13)  # measured 3e-16
        assert found == found[:1] * 3
    set_threads(2)
    assert native.squared_norm(values[:0]) == 0.0
    large = np.full(3, 1e30, dtype)  # whose squares float32 does not hold
    assert native.squared_norm(large) == pytest.approx(3.0 * float(large[0]) ** 2)
    assert not np.isfinite(native.squared_norm(np.array([1.0, np.nan], dtype)))
