"""One step of Muon (K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) with Nesterov momentum.

m ← m + (1 − β)(g − m)        M = g + β(m − g)        W ← (1 − η·decay)W − η·s·O(M)

O(M) is M = UΣVᵀ with its singular values brought to about 1, by five Newton–Schulz iterations from X = M/‖M‖:
X ← X·p(XᵀX), p(G) = aI + bG + cG², along the short side.  In the Gram form of a matrix that is longer than wide X
enters two products only: G = XᵀX ← p·G·p, whose factors all commute, and at the end X·p₁p₂…

Singular values below some 1e-3 of the matrix's norm stay smaller.

Operations a step for the water net (two fitting nets of 1600×240, 240×240, 240×240): of a 1600×240 matrix the Gram
form takes 2·184 + 17·28 MFLOP = 0.84 GFLOP (plain iterations: 2.0), of a 240×240 one 0.41 GFLOP; 3.3 GFLOP in all,
and 2.1 where only half of each symmetric product is computed.  They run in float32 whatever the parameters' precision
(Jordan takes bfloat16): rounding changes the step by 1e-4 of its size or less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dphpc.core.arrays import Floats

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of Jordan's post: steepest at 0 while singular values end between 0.68 and 1.13."""

ITERATIONS = 5

TINY = 1e-30
"""Added to a norm; keeps a zero matrix zero."""


@dataclass(frozen=True)
class MuonStep:
    """η, β, the weight decay, and whether matrices that are not square use the Gram form."""

    rate: float
    momentum: float
    decay: float
    gram: bool


@dataclass(frozen=True)
class MuonMatrix:
    """Arrays (m, n) of one parameter, C-contiguous and of one precision, and the scale s of its steps."""

    gradient: Floats
    value: Floats
    momentum: Floats
    scale: float


class MuonOps(Protocol):
    """A back end."""

    def muon_step(self, s: MuonStep, matrices: Sequence[MuonMatrix]) -> None:
        """Change values and momenta in place; in `native` to the same bits with any number of threads."""
