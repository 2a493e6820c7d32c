"""Adam and AdamW on the flat parameters, with DeePMD-kit's options."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dphpc.core.errors import RunError
from dphpc.train.parameters import Parameters
from dphpc.train.schema import AdamWConfig, OptimizerConfig


class Optimizer:
    """Changes the parameters by their gradients.

    Parameters
    ----------
    config
        The input's `optimizer` section.
    max_norm
        Largest norm of the whole gradient, which is scaled down to it; 0 for no limit.
    """

    def __init__(self, config: OptimizerConfig, parameters: Parameters, max_norm: float = 0.0) -> None:
        self.parameters, self.max_norm = parameters, max_norm
        kind = torch.optim.AdamW if isinstance(config, AdamWConfig) else torch.optim.Adam
        betas = (config.adam_beta1, config.adam_beta2)
        self._torch = kind(parameters.flats, lr=0.0, betas=betas, weight_decay=config.weight_decay, fused=True)

    def step(self, learning_rate: float) -> float:
        """One step; returns the gradient's norm before the limit.

        Raises
        ------
        RunError
            The gradient is not finite; no weight has been changed.
        """
        gradients = [flat.grad for flat in self.parameters.flats if flat.grad is not None]
        # sums in float64: a float32 sum of squares may overflow
        norm = math.sqrt(math.fsum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradients))
        if not math.isfinite(norm):
            raise RunError(
                "the gradient is not finite", remedy="lower start_lr, or look for a frame with overlapping atoms"
            )
        factor = self.max_norm / (norm + 1e-6) if self.max_norm else 1.0
        if factor < 1.0:
            for g in gradients:
                g.mul_(factor)
        for group in self._torch.param_groups:
            group["lr"] = learning_rate
        self._torch.step()
        return norm

    def moments(self) -> dict[str, Tensor]:
        """First and second moments by parameter, to be stored; empty before the first step."""
        result: dict[str, Tensor] = {}
        for key in ("exp_avg", "exp_avg_sq"):
            states = [self._torch.state[flat].get(key) for flat in self.parameters.flats]
            if all(state is not None for state in states):
                named = self.parameters.split([state for state in states if state is not None])
                result |= {f"{key}.{name}": value for name, value in named.items()}
        return result

    def load(self, moments: dict[str, Tensor], n_steps: int) -> None:
        """Set the moments that `moments` gave after `n_steps` steps."""
        if not moments:
            return
        for flat in self.parameters.flats:
            state = {key: torch.zeros_like(flat) for key in ("exp_avg", "exp_avg_sq")}
            self._torch.state[flat] = {"step": torch.tensor(float(n_steps), dtype=torch.float32), **state}
        for key in ("exp_avg", "exp_avg_sq"):
            flats = [self._torch.state[flat][key] for flat in self.parameters.flats]
            for name, view in self.parameters.split(flats).items():
                view.copy_(moments[f"{key}.{name}"])
