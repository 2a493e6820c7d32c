"""Muon for the weight matrices, Adam for everything else (`HybridMuon` of a training input).

Muon (K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): the step of a matrix is its momentum
with all singular values set to about 1, W −= η·s·UVᵀ for M = UΣVᵀ, by five Newton–Schulz iterations
X ← aX + b(XXᵀ)X + c(XXᵀ)²X.  The scale s = coeff·√max(m, n) gives the step Adam's root mean square
(Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, eq. 4).

Operations a step for the water net (two fitting nets of 1600×240, 240×240, 240×240): of a 1600×240 matrix the Gram
form takes 2·184 + 5·4·28 MFLOP = 0.9 GFLOP (plain iterations: 2.0), of a 240×240 one 0.41 GFLOP; 3.5 GFLOP in all.
They run in float32 whatever the parameters' precision (Jordan takes bfloat16): half the time, and rounding changes
the step by 1e-4 of its size or less.  Momentum and weights stay in the parameters' precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dphpc.train.optimizers.adam import AdamRule
from dphpc.train.optimizers.gradient import is_matrix, leaves
from dphpc.train.optimizers.protocol import State
from dphpc.train.parameters import Parameters
from dphpc.train.schema import HybridMuonConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of Jordan's post: steepest at 0 while singular values end between 0.68 and 1.13."""

ITERATIONS = 5
_TINY = 1e-30
"""Keeps a zero matrix zero."""


def newton_schulz(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with the singular vectors of the given one and singular values between about 0.7 and 1.1.

    Singular values below some 1e-3 of the matrix's norm stay smaller.
    """
    a, b, c = COEFFICIENTS
    x = matrix / (torch.linalg.matrix_norm(matrix) + _TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def gram_newton_schulz(matrix: Tensor) -> Tensor:
    """The same for m ≥ n by iterating on the Gram matrix XᵀX (n, n): the long side enters two products only.

    With G = XᵀX each iteration is X ← X·p(G), p(G) = aI + bG + cG², so that G ← p G p; all of them commute.
    """
    a, b, c = COEFFICIENTS
    x = matrix / (torch.linalg.matrix_norm(matrix) + _TINY)
    gram, product = x.T @ x, None
    for k in range(ITERATIONS):
        p = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal().add_(a)
        product = p if product is None else product @ p
        if k + 1 < ITERATIONS:
            gram = p @ gram @ p
    assert product is not None
    return x @ product


def orthogonalized(matrix: Tensor, *, gram: bool) -> Tensor:
    """Newton–Schulz along a matrix's short side, by the Gram form where `gram` and the sides differ."""
    wide = matrix.shape[0] < matrix.shape[1]
    if gram and matrix.shape[0] != matrix.shape[1]:
        return gram_newton_schulz(matrix.T).T if wide else gram_newton_schulz(matrix)
    return newton_schulz(matrix) if wide else newton_schulz(matrix.T).T


class HybridMuonRule:
    """Muon with Nesterov momentum m ← βm + (1−β)g, step from βm + (1−β)g, and decoupled weight decay."""

    def __init__(self, config: HybridMuonConfig, parameters: Parameters) -> None:
        self.config = config
        values = leaves(parameters)
        self._matrices = {name: value for name, value in values.items() if is_matrix(name, value)}
        self._momentum = {name: torch.zeros_like(value.detach()) for name, value in self._matrices.items()}
        rest = {name: value for name, value in values.items() if name not in self._matrices}
        factor = 1.0 / config.lr_adjust if config.lr_adjust > 0 else 1.0
        betas = config.adam_beta1, config.adam_beta2
        self._adam = AdamRule(rest, betas, lr_factor=factor, device=parameters.device)

    def scale(self, m: int, n: int) -> float:
        """What multiplies the orthogonal step of an (m, n) matrix."""
        if self.config.lr_adjust > 0:
            return math.sqrt(max(1.0, m / n))
        return self.config.lr_adjust_coeff * math.sqrt(max(m, n))

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One step."""
        beta = self.config.momentum
        for name, value in self._matrices.items():
            gradient, momentum = value.grad, self._momentum[name]
            assert gradient is not None
            momentum.lerp_(gradient, 1.0 - beta)
            update = orthogonalized(torch.lerp(gradient, momentum, beta).float(), gram=self.config.enable_gram)
            value.mul_(1.0 - learning_rate * self.config.weight_decay)
            value.add_(update.to(value.dtype), alpha=-learning_rate * self.scale(*value.shape))
        self._adam.step(learning_rate)

    def state(self) -> State:
        """`momentum.NAME` of matrices, Adam's moments of the rest."""
        return {f"momentum.{name}": value for name, value in self._momentum.items()} | self._adam.state()

    def set_steps(self, n_steps: int) -> None:
        """Go on as after `n_steps` steps."""
        self._adam.set_steps(n_steps)

    def describe(self) -> str:
        """One line for the log."""
        return f"HybridMuon on {len(self._matrices)} matrices, Adam for the rest"
