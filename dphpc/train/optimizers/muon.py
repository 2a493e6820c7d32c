"""Muon for the weight matrices, Adam for everything else (`HybridMuon` of a training input).

Formulas in `dphpc.ops.muon.contract`.  The scale s = coeff·√max(m, n) gives the step of a matrix (m, n) the root mean
square of Adam's (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, eq. 4).  On a GPU torch computes
the steps, also in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dphpc.ops.muon.contract import COEFFICIENTS, ITERATIONS, TINY, MuonMatrix, MuonStep
from dphpc.ops.muon.native import muon_step
from dphpc.train.optimizers.adam import AdamRule
from dphpc.train.optimizers.gradient import is_matrix, leaves
from dphpc.train.optimizers.protocol import State
from dphpc.train.parameters import Parameters
from dphpc.train.schema.optimization import HybridMuonConfig


def newton_schulz(matrix: Tensor) -> Tensor:
    """O(M) of a matrix (m, n), m ≤ n."""
    a, b, c = COEFFICIENTS
    x = matrix / (torch.linalg.matrix_norm(matrix) + TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def gram_newton_schulz(matrix: Tensor) -> Tensor:
    """The same for m ≥ n by iterating on the Gram matrix XᵀX (n, n)."""
    a, b, c = COEFFICIENTS
    x = matrix / (torch.linalg.matrix_norm(matrix) + TINY)
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
    """Newton–Schulz along a matrix's short side; with `gram` in the Gram form if the sides differ."""
    wide = matrix.shape[0] < matrix.shape[1]
    if gram and matrix.shape[0] != matrix.shape[1]:
        return gram_newton_schulz(matrix.T).T if wide else gram_newton_schulz(matrix)
    return newton_schulz(matrix) if wide else newton_schulz(matrix.T).T


class HybridMuonRule:
    """Muon with Nesterov momentum and decoupled weight decay on matrices, Adam on the rest."""

    def __init__(self, config: HybridMuonConfig, parameters: Parameters) -> None:
        self.config = config
        values = leaves(parameters)
        self._matrices = {name: value for name, value in values.items() if is_matrix(name, value)}
        self._momentum = {name: torch.zeros_like(value.detach()) for name, value in self._matrices.items()}
        rest = {name: value for name, value in values.items() if name not in self._matrices}
        factor = 1.0 / config.lr_adjust if config.lr_adjust > 0 else 1.0
        betas = config.adam_beta1, config.adam_beta2
        self._adam = AdamRule(rest, betas, lr_factor=factor, device=parameters.device)
        self._on_gpu = parameters.device is not None

    def scale(self, m: int, n: int) -> float:
        """The factor of the orthogonal step of a matrix (m, n)."""
        if self.config.lr_adjust > 0:
            return math.sqrt(max(1.0, m / n))
        return self.config.lr_adjust_coeff * math.sqrt(max(m, n))

    def step(self, learning_rate: float) -> None:
        """Make one step."""
        c = self.config
        step = MuonStep(learning_rate, c.momentum, c.weight_decay, c.enable_gram)
        if self._on_gpu:
            self._step_on_gpu(step)
        else:
            muon_step(step, [self._arrays(name, value) for name, value in self._matrices.items()])
        self._adam.step(learning_rate)

    def _arrays(self, name: str, value: Tensor) -> MuonMatrix:
        assert value.grad is not None
        arrays = value.grad.numpy(), value.detach().numpy(), self._momentum[name].numpy()
        return MuonMatrix(*arrays, self.scale(*value.shape))

    @torch.no_grad()
    def _step_on_gpu(self, s: MuonStep) -> None:
        for name, value in self._matrices.items():
            gradient, momentum = value.grad, self._momentum[name]
            assert gradient is not None
            momentum.lerp_(gradient, 1.0 - s.momentum)
            update = orthogonalized(torch.lerp(gradient, momentum, s.momentum).float(), gram=s.gram)
            value.mul_(1.0 - s.rate * s.decay)
            value.add_(update.to(value.dtype), alpha=-s.rate * self.scale(*value.shape))

    def state(self) -> State:
        """`momentum.NAME` for matrices, Adam's moments for the rest."""
        return {f"momentum.{name}": value for name, value in self._momentum.items()} | self._adam.state()

    def set_steps(self, n_steps: int) -> None:
        """Set the number of steps done."""
        self._adam.set_steps(n_steps)

    def describe(self) -> str:
        """One line for the log."""
        return f"HybridMuon on {len(self._matrices)} matrices, Adam for the rest"
