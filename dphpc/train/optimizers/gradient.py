"""What Adam, Muon and SOAP have in common: one step from one gradient of the loss."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from dphpc.core.errors import RunError
from dphpc.ops.adam.native import Ends, squared_norm
from dphpc.train.data import Batch
from dphpc.train.loss import EnergyLoss, LossResult
from dphpc.train.optimizers.protocol import Engine, State, finite, require_names
from dphpc.train.parameters import Parameters


class Rule(Protocol):
    """How parameters are changed by their gradients; the state is that of `Optimizer`."""

    def step(self, learning_rate: float) -> None:
        """Change the parameters, given their gradients."""

    def state(self) -> State:
        """Views of the state by name; complete even before the first step."""

    def set_steps(self, n_steps: int) -> None:
        """Set the number of steps done."""

    def describe(self) -> str:
        """One line for the log."""


class GradientOptimizer:
    """Checks and limits the gradient, then lets a rule change the parameters.

    Parameters
    ----------
    max_norm
        Largest norm of the whole gradient; a larger one is scaled down to it.  0: no limit.
    """

    def __init__(self, rule: Rule, parameters: Parameters, max_norm: float = 0.0) -> None:
        self.rule, self.parameters, self.max_norm = rule, parameters, max_norm
        self._begun = False

    def update(self, engine: Engine, batch: Batch, loss: EnergyLoss, learning_rate: float) -> LossResult:
        """See `Optimizer.update`."""
        result = finite(loss(engine.forward(batch), batch, learning_rate))
        engine.backward(result.gradient)
        self.step(learning_rate)
        engine.weights_changed()
        return result

    def step(self, learning_rate: float) -> float:
        """Make one step by the present gradient; returns its norm, before scaling.

        Raises
        ------
        RunError
            The gradient is not finite; no weight has been changed.
        """
        gradients = self.parameters.gradients
        norm = math.sqrt(math.fsum(map(_square, gradients, self.parameters.ends)))
        if not math.isfinite(norm):
            raise RunError(
                "the gradient is not finite", remedy="lower start_lr, or look for a frame with overlapping atoms"
            )
        factor = self.max_norm / (norm + 1e-6) if self.max_norm else 1.0
        if factor < 1.0:
            for g in gradients:
                g.mul_(factor)
        self.rule.step(learning_rate)
        self._begun = True
        return norm

    def state(self) -> State:
        """See `Optimizer.state`."""
        return self.rule.state() if self._begun else {}

    def load(self, state: State, n_steps: int) -> None:
        """See `Optimizer.load`."""
        if not state:
            return
        own = self.rule.state()
        require_names(state, own, self.rule.describe())
        for name, value in own.items():
            value.copy_(state[name])
        self.rule.set_steps(n_steps)
        self._begun = True

    def describe(self) -> str:
        """See `Optimizer.describe`."""
        return self.rule.describe()


def _square(x: Tensor, ends: Ends) -> float:
    """Σ x²."""
    return squared_norm(x.numpy(), ends) if x.is_cpu else float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def is_matrix(name: str, value: Tensor) -> bool:
    """Whether an array is a weight matrix with more than one row and column; vectors are left to Adam."""
    return name.endswith(".w") and min(value.shape) > 1


def leaves(parameters: Parameters) -> dict[str, Tensor]:
    """The parameters by name, as leaves whose gradients are views of the flat gradients."""
    values, gradients = parameters.split(parameters.flats), parameters.split(parameters.gradients)
    for name, value in values.items():
        value.requires_grad_(True)
        value.grad = gradients[name]
    return values
