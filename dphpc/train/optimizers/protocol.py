"""The interface of an optimizer, and that of the engine from which it gets predictions and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from dphpc.core.errors import InputError, RunError
from dphpc.train.data import Batch
from dphpc.train.loss import EnergyLoss, LossResult
from dphpc.train.step import LossGradient, Prediction

State = dict[str, Tensor]
"""An optimizer's tensors, by name."""


class Engine(Protocol):
    """Predictions and gradients of a batch: `TableStep` or `NetworkStep`."""

    def forward(self, batch: Batch) -> Prediction:
        """Energies, forces and virials of a batch."""

    def backward(self, loss: LossGradient, done: Callable[[str], None] = ...) -> None:
        """Set the parameters' gradients for the batch of the last `forward`, see `TableStep.backward`."""

    def weights_changed(self) -> None:
        """Must be called after the weights have changed."""


class Optimizer(Protocol):
    """Changes a model's parameters, one batch at a time."""

    def update(self, engine: Engine, batch: Batch, loss: EnergyLoss, learning_rate: float) -> LossResult:
        """Make one training step; returns the batch's loss before it.

        Raises
        ------
        RunError
            Loss or gradient is not finite; it has not changed any weight.
        """

    def state(self) -> State:
        """Views of everything that a bitwise restart needs, by name; empty before the first step."""

    def load(self, state: State, n_steps: int) -> None:
        """Restore what `state` returned after `n_steps` steps.

        Raises
        ------
        InputError
            The state is that of another optimizer.
        """

    def describe(self) -> str:
        """One line for the log."""


def finite(result: LossResult) -> LossResult:
    """The result; RunError if its loss is not finite."""
    if not math.isfinite(result.value):
        raise RunError("the loss is not finite", remedy="look at these frames, or lower start_lr")
    return result


def require_names(state: State, expected: State, optimizer: str) -> None:
    """Raise InputError unless `state` has the names and shapes of `expected`."""
    missing = sorted(expected.keys() - state.keys())
    surplus = sorted(state.keys() - expected.keys())
    shapes = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or surplus or shapes:
        name = (missing or surplus or shapes)[0]
        how = "lacks" if missing else "has" if surplus else "has another shape of"
        raise InputError(
            f"the checkpoint was not written by {optimizer} with these options: its state {how} '{name}'",
            where="optimizer", expected="the optimizer of the restarted training",
            remedy="restore the section optimizer, or use --init-model to start the optimizer anew",
        )  # fmt: skip
