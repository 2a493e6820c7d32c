"""Blocks of the Kalman filter's covariance: which weights share one, and how large the memory allows it to be.

Small neighboring arrays are gathered and large ones split (RLEKF, Hu et al., arXiv 2212.06989, section "splitting
big and gathering small layers").  Blocks are padded to one size, so that a batched product handles all of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import InputError
from dphpc.core.memory import memory_available
from dphpc.train.schema.optimization import LkfConfig

log = logging.getLogger(__name__)

SHARE = 0.5
"""Fraction of the available memory that the filter may take by default."""

LARGEST = 5120
"""Block size of DeePMD-kit, not exceeded by default."""

PENDING = 8
"""Updates that wait as vectors before they are subtracted from the covariance in one product."""


@dataclass(frozen=True)
class Blocks:
    """A partition of `n_values` numbers, which are stored array after array.

    Attributes
    ----------
    index
        (n_blocks, size) position of each number; padding has position `n_values`.
    """

    index: NDArray[np.int64]
    n_values: int

    @classmethod
    def of(cls, sizes: Sequence[int], largest: int) -> Blocks:
        """Blocks of at most `largest` values for arrays of the given sizes."""
        parts, start = _parts(sizes, largest), sum(sizes)
        width = _width(parts)
        index = np.full((len(parts), width), start, np.int64)
        for row, part in zip(index, parts, strict=True):
            members = np.concatenate([np.arange(r.start, r.stop) for r in part])
            row[: len(members)] = members
        return cls(index, start)

    @property
    def shape(self) -> tuple[int, int]:
        """Number and size of the blocks."""
        return self.index.shape[0], self.index.shape[1]


def filter_bytes(sizes: Sequence[int], largest: int, itemsize: int) -> float:
    """Bytes of the covariance, its pending updates and a step's vectors."""
    parts = _parts(sizes, largest)
    width = _width(parts)
    return float(len(parts) * width * itemsize) * (width + PENDING + 4)


def _parts(sizes: Sequence[int], largest: int) -> list[list[range]]:
    """Each block's positions, as ranges."""
    parts: list[list[range]] = []
    start, room = 0, 0
    for n in sizes:
        if n <= room:
            parts[-1].append(range(start, start + n))
            room -= n
        else:
            pieces = -(-n // largest)
            edges = [start + n * k // pieces for k in range(pieces + 1)]
            parts += [[range(a, b)] for a, b in pairwise(edges)]
            room = largest - (edges[-1] - edges[-2])
        start += n
    return parts


def _width(parts: list[list[range]]) -> int:
    return max(sum(map(len, part)) for part in parts)


def choose(sizes: Sequence[int], config: LkfConfig) -> int:
    """The block size: the input's, or the largest that fits into the memory.

    Raises
    ------
    InputError
        The input's size does not fit, or no size does.
    """
    itemsize = np.dtype(config.kf_precision).itemsize
    available = memory_available()
    budget = SHARE * available if config.kf_memory_gb is None else config.kf_memory_gb * 1e9
    of = f"half of the {available / 1e9:.1f} GB available" if config.kf_memory_gb is None else "kf_memory_gb"
    fitting = _largest_fitting(sizes, itemsize, min(budget, available))
    if config.kf_blocksize is None:
        if not fitting:
            raise InputError(
                f"the Kalman filter of {sum(sizes):,} parameters does not fit into {budget / 1e9:.3g} GB ({of})",
                where="optimizer/kf_memory_gb", expected=f"at least {filter_bytes(sizes, 1, itemsize) / 1e9:.3g} GB",
                remedy="free memory, or use another optimizer",
            )  # fmt: skip
        size = min(fitting, LARGEST)
    else:
        size = config.kf_blocksize
        needed = filter_bytes(sizes, size, itemsize)
        if needed > min(budget, available) and size > fitting:
            raise InputError(
                f"blocks of {size} weights need {needed / 1e9:.1f} GB for {sum(sizes):,} parameters",
                where="optimizer/kf_blocksize",
                expected=f"at most {fitting}, which fits into {min(budget, available) / 1e9:.1f} GB ({of})",
                remedy="lower kf_blocksize or leave it out, or raise kf_memory_gb where the machine has the memory",
            )  # fmt: skip
    log.info(
        "Kalman filter: blocks of at most %d weights take %.2f GB of %.2f GB (%s), as does every checkpoint",
        size, filter_bytes(sizes, size, itemsize) / 1e9, budget / 1e9, of,
    )  # fmt: skip
    return size


def _largest_fitting(sizes: Sequence[int], itemsize: int, budget: float) -> int:
    """The largest block size that fits into `budget` bytes, by bisection; 0 if none does."""
    low, high = 0, sum(sizes) + 1
    for _ in range(math.ceil(math.log2(high)) + 1):
        middle = (low + high) // 2
        if middle > low and filter_bytes(sizes, middle, itemsize) <= budget:
            low = middle
        else:
            high = max(middle, low + 1)
    return low
