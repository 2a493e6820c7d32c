import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.parallel.comm import NOBODY
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


def test_partners_go_round_the_ring_and_stop_at_open_faces() -> None:
    box = Box(np.diag([40.0, 5.0, 5.0]), (False, True, True))
    domain = Domain.even(box, 4, 3)
    assert domain.grid == (4, 1, 1)
    assert domain.partner(0, 1) == NOBODY
    assert domain.partner(0, -1) == 2
    assert domain.partner(1, 1) == 3, "a rank is its own neighbor where the direction is in one piece"
    assert domain.crosses(0, 1)
    assert not domain.crosses(0, -1)
    periodic = Domain.even(Box(np.diag([40.0, 5.0, 5.0])), 4, 3)
    assert periodic.partner(0, 1) == 0


def test_hops_count_thin_bricks_and_images() -> None:
    domain = Domain.even(Box(np.diag([40.0, 5.0, 5.0])), 4, 0)
    assert [domain.hops(axis, 9.0) for axis in range(3)] == [1, 2, 2]
    assert domain.hops(0, 21.0) == 3
    open_box = Domain.even(Box(np.diag([40.0, 5.0, 5.0]), (False, False, True)), 4, 0)
    assert open_box.hops(0, 1000.0) == 3, "no farther than there are bricks"
    assert open_box.hops(1, 9.0) == 0
