"""The compiled step against NumPy's, and NumPy's against singular values."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.ops.muon import native, reference
from dphpc.ops.muon.contract import MuonMatrix, MuonStep
from dphpc.ops.threads import set_threads

SHAPES = [(1, 1), (3, 2), (12, 40), (40, 12), (24, 24), (48, 48), (49, 49), (97, 50), (200, 96), (5, 300)]


def matrices(dtype: type, seed: int = 0) -> list[MuonMatrix]:
    rng = np.random.default_rng(seed)
    return [
        MuonMatrix(*(rng.normal(size=shape).astype(dtype) for _ in range(3)), scale=0.5 + 0.1 * k)
        for k, shape in enumerate(SHAPES)
    ]


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_compiled_step_is_the_reference(dtype, gram):
    set_threads(2)
    found, expected = matrices(dtype), matrices(np.float64 if dtype == np.float64 else dtype)
    for _ in range(3):
        step = MuonStep(rate=0.3, momentum=0.9, decay=0.1, gram=gram)
        native.muon_step(step, found)
        reference.muon_step(step, expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.momentum, b.momentum, rtol=0, atol=1e-13 if dtype == np.float64 else 1e-6)
        np.testing.assert_allclose(a.value, b.value, rtol=0, atol=2e-4)  # measured 2e-5


def test_the_same_bits_on_any_number_of_threads():
    found = []
    for n_threads in (1, 2, 3, 5):
        set_threads(n_threads)
        mine = matrices(np.float32)
        native.muon_step(MuonStep(0.3, 0.9, 0.1, gram=True), mine)
        found.append(b"".join(m.value.tobytes() for m in mine))
    set_threads(2)
    assert found == found[:1] * 4


def test_singular_values_end_near_one_and_vectors_stay():
    matrix = np.random.default_rng(1).normal(size=(40, 12))
    got = reference.orthogonalized(matrix)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s /= np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    np.testing.assert_allclose(got, (u * s) @ vt, atol=1e-12)  # measured 2e-15
    assert 0.6 < s.min() <= s.max() < 1.25  # the exact orthogonalization has 1


def test_a_zero_matrix_stays_and_none_is_no_error():
    zero = MuonMatrix(np.zeros((5, 3)), np.ones((5, 3)), np.zeros((5, 3)), 1.0)
    native.muon_step(MuonStep(0.1, 0.9, 0.0, gram=True), [zero])
    assert (zero.value == 1.0).all()
    native.muon_step(MuonStep(0.1, 0.9, 0.0, gram=True), [])


def test_arrays_that_would_be_copied_are_refused():
    turned = np.ones((3, 5)).T
    for arrays in ((turned, np.ones((5, 3)), np.ones((5, 3))), (np.ones((5, 3)), turned, np.ones((5, 3)))):
        with pytest.raises(RuntimeError, match="bad_cast"):
            native.muon_step(MuonStep(0.1, 0.9, 0.0, gram=True), [MuonMatrix(*arrays, 1.0)])
