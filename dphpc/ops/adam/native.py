"""Adam on the CPU: each operation is one pass over the arrays, bound by the memory's bandwidth."""

from __future__ import annotations

from dphpc._native import kernels_of
from dphpc.core.arrays import Floats
from dphpc.ops.adam.contract import AdamStep
from dphpc.ops.threads import get_threads


def adam_step(s: AdamStep, gradient: Floats, value: Floats, first: Floats, second: Floats) -> None:
    """See `contract.AdamOps.adam_step`."""
    kernels_of(value.dtype).adam_step(s, gradient, get_threads(), value, first, second)


def squared_norm(values: Floats) -> float:
    """See `contract.AdamOps.squared_norm`."""
    return float(kernels_of(values.dtype).squared_norm(values, get_threads()))
