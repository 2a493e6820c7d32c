import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.parallel.domain import Domain, choose_grid


@pytest.mark.parametrize(
    ("lengths", "n_ranks", "grid"),
    [
        ((10, 10, 10), 1, (1, 1, 1)),
        ((10, 10, 10), 8, (2, 2, 2)),
        ((80, 10, 10), 8, (8, 1, 1)),
        ((10, 40, 20), 8, (1, 4, 2)),
        ((10, 10, 30), 7, (1, 1, 7)),
    ],
)
def test_the_grid_has_the_least_surface(lengths: tuple[int, ...], n_ranks: int, grid: tuple[int, ...]) -> None:
    assert choose_grid(Box(np.diag(np.array(lengths, float))), n_ranks) == grid


def test_bricks_cover_the_box_once() -> None:
    box = Box(np.array([[9.0, 0, 0], [4.0, 8.0, 0], [1.0, 2.0, 20.0]]))
    fractional = np.random.default_rng(0).uniform(0, 1, (500, 3))
    fractional[0], fractional[1] = 0.0, 1.0  # rounding can bring an atom to the end of the box
    owners = np.zeros(500, int)
    for rank in range(12):
        domain = Domain.even(box, 12, rank)
        owners += np.all(
            [domain.place(fractional[:, axis], axis) == domain.coordinates[axis] for axis in range(3)], axis=0
        )
    assert np.all(owners == 1)


def test_a_brick_owns_what_is_placed_in_it() -> None:
    box = Box(np.array([[9.0, 0, 0], [4.0, 8.0, 0], [1.0, 2.0, 20.0]]), (True, False, True), np.array([1.0, 2.0, 3.0]))
    fractional = np.random.default_rng(0).uniform(0, 1, (40_000, 3))
    fractional[:300, 1] *= 9.0
    fractional[300:600, 1] -= 9.0
    fractional[:3] = 0.0, 0.5, 1.0
    positions = box.origin + fractional @ box.matrix
    owners = np.zeros(len(positions), int)
    for rank in range(12):
        domain = Domain.even(box, 12, rank)
        outside = domain.outside(positions, domain.own)
        places = [domain.place(box.fractional(positions, axis), axis) for axis in range(3)]
        assert np.array_equal(outside, np.any(np.transpose(places) != domain.coordinates, axis=1))
        owners += ~outside
    assert np.all(owners == 1)


def test_the_interior_is_farther_than_the_reach() -> None:
    box = Box(np.diag([40.0, 6.0, 5.0]), (True, True, False))
    domain = Domain.even(box, 4, 1)
    positions = np.array([[10.9, 3, 2], [11.1, 3, 2], [18.9, 0.1, 4.9], [19.1, 3, 2], [15, 0.9, 2], [15, 5.1, 2]])
    assert domain.grid == (4, 1, 1)
    outside = domain.outside(positions, domain.interior(1.0))
    assert outside.tolist() == [True, False, False, True, False, False]
    outside = domain.outside(positions, domain.interior(1.0, images=True))
    assert outside.tolist() == [True, False, True, True, True, True]
    assert domain.outside(positions, domain.interior(7.0)).all(), "all of a thin brick is near a face"


@pytest.mark.parametrize("periodic", [(True, True, True), (False, True, True), (False, False, False)])
@pytest.mark.parametrize(("n_ranks", "reach"), [(1, 3.0), (1, 17.0), (4, 9.0), (4, 25.0), (12, 6.0)])
def test_bricks_are_images_of_each_other(periodic: tuple[bool, bool, bool], n_ranks: int, reach: float) -> None:
    box = Box(np.diag([40.0, 5.0, 8.0]), periodic)
    ranks = [Domain.even(box, n_ranks, rank) for rank in range(n_ranks)]
    for domain in ranks:
        for other in ranks:
            there = [image for image in domain.images(reach) if image.rank == other.rank]
            back = [image for image in other.images(reach) if image.rank == domain.rank]
            for a, b in zip(there, reversed(back), strict=True):
                assert np.array_equal(np.negative(a.offset), b.offset)
                assert np.array_equal(np.negative(a.shift), b.shift)
                for axis in range(3):
                    assert domain.interval(axis, a.offset[axis]) == tuple(np.add(other.interval(axis), a.shift[axis]))
                    assert not a.shift[axis] or periodic[axis]


def test_images_go_round_the_ring_and_stop_at_open_faces() -> None:
    domain = Domain.even(Box(np.diag([40.0, 5.0, 5.0]), (False, True, False)), 4, 3)
    assert [(i.offset, i.rank, i.shift) for i in domain.images(5.0)] == [
        ((-1, -1, 0), 2, (0, -1, 0)), ((-1, 0, 0), 2, (0, 0, 0)), ((-1, 1, 0), 2, (0, 1, 0)),
        ((0, -1, 0), 3, (0, -1, 0)), ((0, 1, 0), 3, (0, 1, 0)),
    ]  # fmt: skip
    periodic = Domain.even(Box(np.diag([40.0, 50.0, 50.0])), 1, 0)
    assert len(periodic.images(5.0)) == 26


def test_hops_count_thin_bricks_and_images() -> None:
    domain = Domain.even(Box(np.diag([40.0, 5.0, 5.0])), 4, 0)
    assert [domain.hops(axis, 9.0) for axis in range(3)] == [1, 2, 2]
    assert domain.hops(0, 21.0) == 3
    open_box = Domain.even(Box(np.diag([40.0, 5.0, 5.0]), (False, False, True)), 4, 0)
    assert open_box.hops(0, 1000.0) == 3, "no farther than there are bricks"
    assert open_box.hops(1, 9.0) == 0
