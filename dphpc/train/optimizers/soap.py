"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321, Algorithm 3).

For a gradient G (m, n) the running means L of GGᵀ (m, m) and R of GᵀG (n, n) have eigenvectors Q_L and Q_R;
Adam's moments live in G′ = Q_LᵀGQ_R and its step is turned back.  Every `precondition_frequency` steps the bases
follow by one power iteration, Q ← qr(RQ).  A side longer than `max_precond_dim` keeps the identity (one-sided).
Unlike the paper we store the first moment in the eigenbasis and turn it when the basis changes: the same numbers
for one product less; and the first step is made, with the eigenvectors of the first gradient's own products.

Operations a step for the water net (two fitting nets of 1600×240, 240×240, 240×240): a one-sided 1600×240 matrix
takes three products of 184 MFLOP, a two-sided 240×240 one six of 28 MFLOP; 1.8 GFLOP in all, and every tenth step
Q_R of six matrices (two products and one QR of 240×240 each side) and one product to turn the moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dphpc.parallel.comm import Communicator
from dphpc.train.optimizers.adam import AdamRule
from dphpc.train.optimizers.gradient import is_matrix, leaves
from dphpc.train.optimizers.protocol import State
from dphpc.train.parameters import Parameters
from dphpc.train.schema.optimization import SoapConfig

EPSILON = 1e-8
"""ε of Adam."""

Agree = Callable[[Tensor], Tensor]
"""Returns rank 0's value of a tensor.

Eigenvectors of (nearly) equal eigenvalues, such as the many zeros for the first gradients, depend on rounding, and so
on processor and number of threads: without this, ranks would diverge.
"""


@dataclass
class Side:
    """Running mean of GGᵀ or GᵀG for one side of a matrix, and its eigenvectors, both (k, k)."""

    covariance: Tensor
    basis: Tensor

    @classmethod
    def of_size(cls, k: int, value: Tensor) -> Side:
        """A side of length k before the first step, with the matrix's precision and device."""
        return cls(value.new_zeros((k, k)), torch.eye(k, dtype=value.dtype, device=value.device))


class _Matrix:
    """Moments and sides of one weight matrix."""

    def __init__(self, value: Tensor, max_dim: int) -> None:
        self.value = value
        m, n = value.shape
        self.left = Side.of_size(m, value) if m <= max_dim else None
        self.right = Side.of_size(n, value) if n <= max_dim else None
        self.exp_avg = torch.zeros_like(value.detach())
        self.exp_avg_sq = torch.zeros_like(value.detach())

    def to_basis(self, x: Tensor) -> Tensor:
        """Q_Lᵀ x Q_R."""
        x = x if self.left is None else self.left.basis.T @ x
        return x if self.right is None else x @ self.right.basis

    def from_basis(self, x: Tensor) -> Tensor:
        """Q_L x Q_Rᵀ."""
        x = x if self.left is None else self.left.basis @ x
        return x if self.right is None else x @ self.right.basis.T

    def accumulate(self, gradient: Tensor, beta: float) -> None:
        """L ← βL + (1−β)GGᵀ, R likewise."""
        if self.left is not None:
            self.left.covariance.addmm_(gradient, gradient.T, beta=beta, alpha=1.0 - beta)
        if self.right is not None:
            self.right.covariance.addmm_(gradient.T, gradient, beta=beta, alpha=1.0 - beta)

    def start_bases(self, agree: Agree) -> None:
        """Eigenvectors of the first products, largest eigenvalue first."""
        for side in (self.left, self.right):
            if side is not None:
                side.basis.copy_(agree(torch.linalg.eigh(side.covariance).eigenvectors.flip(1)))

    def follow(self, agree: Agree) -> None:
        """One power iteration on both sides; the moments are turned along."""
        if self.left is not None:
            order, turn = _iterate(self.left, agree)
            self.exp_avg.copy_(turn.T @ self.exp_avg)
            self.exp_avg_sq.copy_(self.exp_avg_sq[order])
        if self.right is not None:
            order, turn = _iterate(self.right, agree)
            self.exp_avg.copy_(self.exp_avg @ turn)
            self.exp_avg_sq.copy_(self.exp_avg_sq[:, order])

    def state(self) -> State:
        """All tensors, by name."""
        result = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        for name, side in (("left", self.left), ("right", self.right)):
            if side is not None:
                result |= {f"covariance_{name}": side.covariance, f"basis_{name}": side.basis}
        return result


def _iterate(side: Side, agree: Agree) -> tuple[Tensor, Tensor]:
    """Q ← qr(C·Q) with columns in the order of their eigenvalues; the order, and Q_oldᵀ·Q_new."""
    old = side.basis
    product = side.covariance @ old
    order = agree(torch.argsort((old * product).sum(0), descending=True, stable=True))
    new = agree(torch.linalg.qr(product[:, order]).Q)
    turn = old.T @ new
    side.basis.copy_(new)
    return order, turn


class SoapRule:
    """SOAP for the weight matrices, Adam for the rest; weight decay is decoupled.

    Parameters
    ----------
    comm
        The ranks that make the same steps; all use rank 0's bases.
    """

    def __init__(self, config: SoapConfig, parameters: Parameters, comm: Communicator) -> None:
        self.config, self.n_steps, self._comm = config, 0, comm
        values = leaves(parameters)
        self._matrices = {
            name: _Matrix(value, config.max_precond_dim)
            for name, value in values.items()
            if is_matrix(name, value) and min(value.shape) <= config.max_precond_dim
        }
        rest = {name: value for name, value in values.items() if name not in self._matrices}
        self._adam = AdamRule(rest, (config.adam_beta1, config.adam_beta2), device=parameters.device)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Make one step."""
        c = self.config
        first = self.n_steps == 0
        follow = not first and self.n_steps % c.precondition_frequency == 0
        self.n_steps += 1
        shampoo_beta = c.adam_beta2 if c.shampoo_beta is None else c.shampoo_beta
        root = math.sqrt(1.0 - c.adam_beta2**self.n_steps)
        size = learning_rate * root / (1.0 - c.adam_beta1**self.n_steps)
        for matrix in self._matrices.values():
            gradient = matrix.value.grad
            assert gradient is not None
            matrix.accumulate(gradient, shampoo_beta)
            if first:
                matrix.start_bases(self._agree)
            elif follow:
                matrix.follow(self._agree)
            turned = matrix.to_basis(gradient)
            matrix.exp_avg.lerp_(turned, 1.0 - c.adam_beta1)
            matrix.exp_avg_sq.mul_(c.adam_beta2).addcmul_(turned, turned, value=1.0 - c.adam_beta2)
            update = matrix.from_basis(matrix.exp_avg / (matrix.exp_avg_sq.sqrt().add_(EPSILON * root)))
            matrix.value.mul_(1.0 - learning_rate * c.weight_decay)
            matrix.value.add_(update, alpha=-size)
        self._adam.step(learning_rate)

    def _agree(self, x: Tensor) -> Tensor:
        """See `Agree`."""
        return x if self._comm.size == 1 else torch.from_numpy(self._comm.bcast(x.cpu().numpy())).to(x.device)

    def state(self) -> State:
        """`exp_avg.NAME` and `exp_avg_sq.NAME` (of matrices in their eigenbasis), `covariance_left.NAME`, …"""
        own = {f"{key}.{name}": x for name, matrix in self._matrices.items() for key, x in matrix.state().items()}
        return own | self._adam.state()

    def set_steps(self, n_steps: int) -> None:
        """Set the number of steps done."""
        self.n_steps = n_steps
        self._adam.set_steps(n_steps)

    def describe(self) -> str:
        """One line for the log."""
        sides = [sum(side is not None for side in (m.left, m.right)) for m in self._matrices.values()]
        return f"SOAP on {len(sides)} matrices, {sides.count(1)} of them one-sided; Adam for the rest"
