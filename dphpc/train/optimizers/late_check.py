"""Adam on a GPU, with the gradient's norm checked by the host one step late, so as not to wait for it."""

from __future__ import annotations

import torch
from torch import Tensor

from dphpc.core.errors import RunError
from dphpc.train.data import Batch
from dphpc.train.loss import EnergyLoss, LossResult
from dphpc.train.optimizers.adam import Adam
from dphpc.train.optimizers.gradient import GradientOptimizer
from dphpc.train.optimizers.protocol import Engine, State, finite
from dphpc.train.parameters import Parameters


class LateCheckOptimizer(GradientOptimizer):
    """Adam whose kernel leaves the weights unchanged if the gradient is not finite.

    While the GPU computes the gradient, the host goes on to the next batch.  It looks at the norm when it has to wait
    for that batch's prediction anyway, or when the state is asked for.
    """

    def __init__(self, rule: Adam, parameters: Parameters) -> None:
        super().__init__(rule, parameters)
        self._adam = rule
        self._norm: Tensor | None = None

    def update(self, engine: Engine, batch: Batch, loss: EnergyLoss, learning_rate: float) -> LossResult:
        """See `Optimizer.update`; an error about the gradient is that of the step before."""
        prediction = engine.forward(batch)
        self._check()
        result = finite(loss(prediction, batch, learning_rate))
        engine.backward(result.gradient)
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in self.parameters.gradients]
        self._norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        self._adam.step(learning_rate, self._norm)
        self._begun = True
        engine.weights_changed()
        return result

    def _check(self) -> None:
        norm, self._norm = self._norm, None
        if norm is not None and not torch.isfinite(norm.cpu()):
            raise RunError(
                "the gradient of the step before is not finite",
                remedy="lower start_lr, or look for a frame with overlapping atoms",
            )

    def state(self) -> State:
        """See `Optimizer.state`; RunError if the last gradient was not finite."""
        self._check()
        return super().state()
