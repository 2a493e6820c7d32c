"""The cell search against all distances."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.core.errors import RunError
from dphpc.ops.neighbors import native, reference
from dphpc.ops.threads import set_threads

SYSTEMS = {
    "dense": (250, (9.0, 9.0, 9.0), 3.0),
    "crowded": (1100, (4.0, 4.0, 4.0), 9.0),  # every atom sees every other: rows longer than a thousand
    "one": (1, (5.0, 5.0, 5.0), 2.0),
    "thin_gas": (60, (1e7, 1e7, 1e7), 3.0),
    "flat": (300, (20.0, 20.0, 0.0), 3.0),
    "line": (100, (0.0, 50.0, 0.0), 4.0),
    "slab": (300, (30.0, 8.0, 2.0), 5.0),
    "coincident": (40, (0.0, 0.0, 0.0), 1.0),
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_agrees_with_all_distances(name, threads):
    n, size, reach = SYSTEMS[name]
    rng = np.random.default_rng(1)
    positions = rng.random((n, 3)) * size - 3.0
    types = rng.integers(0, 3, n).astype(np.int32)
    ids = rng.permutation(n) // (1 if name == "coincident" else 2)  # two images of an atom
    n_local = n if n < 1000 else 20
    set_threads(threads)
    for rows in (n_local, n_local // 2):
        expected = reference.build_neighbors(positions, types, ids, rows, reach)
        got = native.build_neighbors(positions, types, ids, rows, reach)
        assert got.offsets.dtype == np.int64
        assert got.indices.dtype == np.int32
        np.testing.assert_array_equal(got.offsets, expected.offsets)
        np.testing.assert_array_equal(got.indices, expected.indices)
        assert got.reach == reach


def test_no_atoms():
    got = native.build_neighbors(np.zeros((0, 3)), np.zeros(0, np.int32), np.zeros(0, np.int64), 0, 3.0)
    assert got.n_pairs == 0
    assert got.offsets.tolist() == [0]


def test_two_clusters_far_apart():
    """Cells follow the bounding box, so emptiness between clusters must not cost correctness or memory."""
    rng = np.random.default_rng(2)
    positions = np.concatenate((rng.random((80, 3)) * 5.0, rng.random((80, 3)) * 5.0 + 1e9))
    types = np.zeros(160, np.int32)
    expected = reference.build_neighbors(positions, types, np.arange(160), 160, 2.0)
    np.testing.assert_array_equal(
        native.build_neighbors(positions, types, np.arange(160), 160, 2.0).indices, expected.indices
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_position_not_finite(bad):
    positions = np.random.default_rng(3).random((20, 3))
    positions[13, 1] = bad
    with pytest.raises(RunError, match="atom 13 \\(ghost\\)"):
        native.build_neighbors(positions, np.zeros(20, np.int32), np.arange(20), 10, 2.0)
