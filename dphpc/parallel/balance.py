"""Load balancing: cut planes are moved so that bricks are smaller where there is more work.

Planes run through the whole box, so that a brick has one neighbor on each side.  With the planes of two directions
fixed, the best planes of the third are those with the smallest bottleneck (rectilinear partitioning; Nicol,
J. Parallel Distrib. Comput. 23, 119 (1994)); the directions take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.parallel.comm import Communicator
from dphpc.parallel.domain import Domain

BINS = 1024
"""Number of places along a direction at which a plane may stand."""

ROUNDS = 3
"""How many times the planes of each direction are moved."""

BISECTIONS = 30
"""Steps of the search for the smallest bottleneck."""


def imbalance(work: float, comm: Communicator) -> float:
    """How much more work the most loaded rank has than the mean, as a fraction of the mean; collective."""
    most, mean = comm.allreduce(np.array([work]), "max")[0], comm.allreduce(np.array([work]))[0] / comm.size
    return float(most / mean - 1.0) if mean > 0.0 else 0.0


class Pace:
    """How long this rank takes for its work."""

    def __init__(self) -> None:
        self._spent = np.zeros(2)  # seconds, and the work done in them

    def note(self, seconds: float, work: float) -> None:
        """Take up what was measured."""
        self._spent += seconds, work

    def slowness(self, comm: Communicator) -> float:
        """Seconds per work noted since the last call, relative to the mean of all ranks, 1 if none; collective."""
        seconds, work = self._spent
        self._spent[...] = 0.0
        own = seconds / work if work else 0.0
        mean = comm.allreduce(np.array([own]))[0] / comm.size
        return float(np.clip(own / mean, 0.5, 2.0)) if own else 1.0


def balanced(
    domain: Domain, fractional: Sequence[Doubles], work: Doubles, thinnest: Sequence[float], comm: Communicator
) -> Domain:
    """The domain with its planes moved so that the most loaded brick has the least work; collective.

    Parameters
    ----------
    fractional
        Three arrays (n_local,): the fractional coordinates of this rank's atoms.
    work
        (n_local,) work of each atom, in any unit that all ranks share.
    thinnest
        (3,) the least width of a brick along each direction, as a fraction of the box.
    """
    # Atoms beyond an open face are counted in the outermost bin.
    bins = [np.clip((x * BINS).astype(np.int64), 0, BINS - 1) for x in fractional]
    for _ in range(ROUNDS):
        for axis in range(3):
            if domain.grid[axis] == 1:
                continue
            others = [k for k in range(3) if k != axis]
            shape = [domain.grid[k] for k in others]
            column = np.ravel_multi_index([domain.place(fractional[k], k) for k in others], shape)
            size = int(np.prod(shape))
            found = np.bincount(bins[axis] * size + column, work, BINS * size)
            # bincount of no atoms gives integers.
            histogram = comm.allreduce(found.astype(np.float64)).reshape(BINS, size)
            gap = max(1, int(np.ceil(min(thinnest[axis], 0.5 / domain.grid[axis]) * BINS)))
            planes = best_planes(histogram, domain.grid[axis], gap) / BINS
            cuts = [planes if k == axis else domain.cuts[k] for k in range(3)]
            domain = replace(domain, cuts=tuple(cuts))
    return domain


def best_planes(histogram: Doubles, n_parts: int, gap: int = 1) -> NDArray[np.int64]:
    """(n_parts + 1,) bins at which to cut a histogram (n_bins, n_columns) so that its bottleneck is smallest.

    The bottleneck is the largest sum of a column between two planes; planes stand at least `gap` bins apart.
    """
    below = np.concatenate((np.zeros((1, histogram.shape[1])), np.cumsum(histogram, axis=0)))
    n_bins = len(histogram)

    def planes(limit: float) -> NDArray[np.int64] | None:
        """Each plane as far on as the limit allows; None if the last part exceeds it."""
        cuts = [0]
        for part in range(1, n_parts):
            start = cuts[-1]
            far = min(np.searchsorted(below[:, c], below[start, c] + limit, "right") - 1 for c in range(below.shape[1]))
            cuts.append(int(np.clip(far, start + gap, n_bins - gap * (n_parts - part))))
        worst = np.max(np.diff(below[[*cuts, n_bins]], axis=0))
        return np.array([*cuts, n_bins]) if worst <= limit else None

    most = float(below[-1].max())
    low, high, best = most / n_parts, most * 1.001, planes(most * 1.001)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        trial = planes(middle)
        if trial is None:
            low = middle
        else:
            high, best = middle, trial
    assert best is not None
    return best
