"""The cell: what lies outside it, and how far."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import DataError


def test_shifts_that_32_bits_do_not_hold_are_refused() -> None:
    box = Box(np.diag([2.0, 3.0, 4.0]))
    assert box.wrap_shifts(np.array([[2.0**32 - 1.0, -1.0, 0.0]])).tolist() == [[2**31 - 1, -1, 0]]
    for far in (2.0**32, -(2.0**32) - 2.0, 1e300):
        with pytest.raises(DataError, match=r"lies .*e\+\d+ cells outside the box"):
            box.wrap_shifts(np.array([[0.0, 0.0, 0.0], [far, 0.0, 0.0]]))


def leaning(xy: float, xz: float, yz: float) -> np.ndarray:
    """Box vectors of 4, 5 and 6 Å along x, y and z, with tilts in parts of these."""
    return np.array([[4.0, 0.0, 0.0], [4.0 * xy, 5.0, 0.0], [4.0 * xz, 5.0 * yz, 6.0]])


@pytest.mark.parametrize(
    ("tilts", "flipped"),
    [
        ((0.59, -0.59, 0.59), (0.59, -0.59, 0.59)),
        ((0.61, 0.0, 0.0), (-0.39, 0.0, 0.0)),
        ((-0.61, 0.5, 0.0), (0.39, 0.5, 0.0)),
        ((0.0, 0.9, 0.0), (0.0, -0.1, 0.0)),
        ((0.2, 0.3, 0.7), (0.2, 0.1, -0.3)),  # c loses b, which leans itself
        ((0.5, -0.3, 0.7), (0.5, 0.2, -0.3)),  # and then a
        ((3.3, -2.2, 4.9), (0.3, 0.3, -0.1)),
    ],
)
def test_a_box_that_leans_is_flipped_back(tilts: tuple[float, ...], flipped: tuple[float, ...]) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    for frame in (np.eye(3), turn):
        box = Box(leaning(*tilts) @ frame)
        ways = box.ways_upright()
        np.testing.assert_allclose(box.combined(ways).matrix, leaning(*flipped) @ frame, atol=1e-12)
        assert round(np.linalg.det(ways)) == 1
        assert np.array_equal(box.combined(ways).ways_upright(), np.eye(3))


def test_open_vectors_are_not_flipped() -> None:
    for k, tilts in ((0, (0.9, 0.9, 0.0)), (1, (0.9, 0.0, 0.9)), (2, (0.0, 0.9, 0.9))):
        periodic = [True, True, True]
        periodic[k] = False
        assert np.array_equal(Box(leaning(*tilts), tuple(periodic)).ways_upright(), np.eye(3))


def test_images_keep_their_order_until_a_vector_leans_the_other_way() -> None:
    upright, left, right = (Box(np.array([[9.0, 0, 0], [tilt, 8, 0], [0, 0, 30]])) for tilt in (0.0, -0.1, 0.1))
    assert right.orders_images_as(upright, 13.0)
    assert not left.orders_images_as(upright, 13.0)
    assert left.orders_images_as(upright, 7.9), "no two images are so near"
    assert Box(left.matrix, (True, False, True)).orders_images_as(upright, 13.0)


def test_angles_are_those_of_the_other_two_vectors() -> None:
    box = Box(np.array([[2.0, 0.0, 0.0], [1.5, 1.5, 0.0], [0.0, 0.0, 3.0]]))
    np.testing.assert_allclose(box.angles, [90.0, 90.0, 45.0], rtol=1e-15)
    assert Box(np.diag([3.0, 4.0, 5.0])).angles.tolist() == [90.0, 90.0, 90.0]


def test_an_atom_on_a_face_has_one_wrapped_position() -> None:
    box = Box(np.array([[32.09, 0.0, 0.0], [-0.0377, 10.4, 0.0], [0.011, 0.023, 10.1]])).on_grid()
    for fraction in ([0.0, 0.52, 0.0], [0.3, 0.0, 0.7], [0.0, 0.0, 0.41]):
        on_face = np.round(fraction @ box.matrix / box.spacing) * box.spacing
        shifts = np.array([[a, b, c] for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)], np.int32)
        positions, images = box.wrapped(on_face + shifts @ box.matrix, -shifts)
        assert (positions == on_face).all()
        assert not images.any()
