"""One step of Adam (Kingma and Ba, arXiv:1412.6980, Algorithm 1) or AdamW (Loshchilov and Hutter, arXiv:1711.05101).

g ← ∇ + decay·θ  (Adam)        m ← β₁m + (1 − β₁)g        m̂ = m/(1 − β₁ᵗ)
θ ← (1 − η·decay)θ  (AdamW)    v ← β₂v + (1 − β₂)g²       v̂ = v/(1 − β₂ᵗ)        θ ← θ − η m̂/(√v̂ + ε)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dphpc.core.arrays import Floats


@dataclass(frozen=True)
class AdamStep:
    """η, β₁, β₂, ε, the weight decay and whether it acts apart from the gradient, and t ≥ 1."""

    rate: float
    beta1: float
    beta2: float
    count: int
    decay: float = 0.0
    decoupled: bool = False
    epsilon: float = 1e-8


class AdamOps(Protocol):
    """A back end."""

    def adam_step(self, s: AdamStep, gradient: Floats, value: Floats, first: Floats, second: Floats) -> None:
        """Change value θ and the moments m, v in place: C-contiguous arrays of one shape and precision."""

    def squared_norm(self, values: Floats) -> float:
        """Σ x² of a C-contiguous array, summed in float64; in `native` the same bits with any number of threads."""
