"""Adam in plain NumPy."""

from __future__ import annotations

import numpy as np

from dphpc.core.arrays import Floats
from dphpc.ops.adam.contract import AdamStep


def adam_step(s: AdamStep, gradient: Floats, value: Floats, first: Floats, second: Floats) -> None:
    """See `contract.AdamOps.adam_step`."""
    g = gradient if s.decoupled else gradient + s.decay * value
    first[...] = s.beta1 * first + (1.0 - s.beta1) * g
    second[...] = s.beta2 * second + (1.0 - s.beta2) * g * g
    if s.decoupled:
        value *= 1.0 - s.rate * s.decay
    root = np.sqrt(second / (1.0 - s.beta2**s.count)) + s.epsilon
    value -= s.rate * first / (1.0 - s.beta1**s.count) / root


def squared_norm(values: Floats) -> float:
    """See `contract.AdamOps.squared_norm`."""
    return float(np.square(values, dtype=np.float64).sum())
