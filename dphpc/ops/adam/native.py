"""Adam on the CPU: each operation is one pass over the arrays, bound by the memory's bandwidth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc._native import kernels_of
from dphpc.core.arrays import Floats
from dphpc.ops.adam.contract import AdamStep
from dphpc.ops.threads import get_threads

Ends = NDArray[np.int64]
"""(n,) where each of several arrays ends, which stand behind one another; each is divided among the threads."""


def adam_step(
    s: AdamStep, gradient: Floats, value: Floats, first: Floats, second: Floats, ends: Ends | None = None
) -> None:
    """See `contract.AdamOps.adam_step`; without `ends` the arguments are one array each."""
    kernels_of(value.dtype).adam_step(s, _ends(value, ends), gradient, get_threads(), value, first, second)


def squared_norm(values: Floats, ends: Ends | None = None) -> float:
    """See `contract.AdamOps.squared_norm`; without `ends` this is one array."""
    return float(kernels_of(values.dtype).squared_norm(_ends(values, ends), values, get_threads()))


def _ends(values: Floats, ends: Ends | None) -> Ends:
    return np.array([values.size], np.int64) if ends is None else ends
