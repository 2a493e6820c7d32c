"""Learning-rate schedules with DeePMD-kit 3.2's formulas: exp, cosine and wsd, all with linear warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dphpc.core.errors import InputError
from dphpc.train.schema.optimization import CosineConfig, ExpConfig, LearningRateConfig, WsdConfig


class Schedule:
    """The learning rate of every step.

    Parameters
    ----------
    config
        The input's `learning_rate` section.
    n_steps
        Number of steps of the whole training, warm-up included.

    Attributes
    ----------
    start_lr
        Rate at the end of the warm-up; loss prefactors are scaled by lr/start_lr.

    Raises
    ------
    InputError
        The warm-up takes all the steps.
    """

    def __init__(self, config: LearningRateConfig, n_steps: int) -> None:
        self.start_lr = config.start_lr
        stop = config.stop_lr if config.stop_lr_ratio is None else config.start_lr * config.stop_lr_ratio
        assert stop is not None, "the schema fills in stop_lr"
        self.stop_lr = stop
        self.warmup_steps = config.warmup_steps if config.warmup_ratio is None else int(config.warmup_ratio * n_steps)
        if self.warmup_steps and self.warmup_steps >= n_steps:
            raise InputError(
                f"the warm-up of {self.warmup_steps} steps leaves nothing of {n_steps} steps",
                where="learning_rate/warmup_steps", expected="fewer than training/numb_steps",
            )  # fmt: skip
        self._warmup_start = config.warmup_start_factor * config.start_lr
        n_decay = n_steps - self.warmup_steps
        self._decay: Callable[[int], float]
        if isinstance(config, ExpConfig):
            self._decay = _exponential(config, self.stop_lr, n_decay)
        elif isinstance(config, CosineConfig):
            self._decay = _cosine(config, self.stop_lr, n_decay)
        else:
            self._decay = _stable_decay(config, self.stop_lr, n_steps, n_decay)

    def __call__(self, step: int) -> float:
        """Rate of the step with this index, counted from 0."""
        if step < self.warmup_steps:
            return self._warmup_start + (self.start_lr - self._warmup_start) * (step / self.warmup_steps)
        return self._decay(step - self.warmup_steps)


def _exponential(config: ExpConfig, stop: float, n_decay: int) -> Callable[[int], float]:
    """lr₀·r^(t/s), but not below `stop`; t/s is rounded down unless `smooth`, and r is such that it ends at `stop`."""
    period, rate = config.decay_steps, config.decay_rate
    if rate is None and period >= n_decay:
        period = 100 if n_decay // 10 > 100 else n_decay // 100 + 1
    if rate is None:
        rate = 1.0
        if n_decay:
            rate = float(np.exp(np.log(max(stop, 1e-10) / config.start_lr) / (n_decay / period)))

    def value(t: int) -> float:
        exponent = t / period if config.smooth else t // period
        return max(config.start_lr * rate**exponent, stop)

    return value


def _cosine(config: CosineConfig, stop: float, n_decay: int) -> Callable[[int], float]:
    """Half a cosine from lr₀ to `stop`."""

    def value(t: int) -> float:
        if n_decay == 0:
            return config.start_lr
        if t >= n_decay:
            return stop
        return stop + 0.5 * (config.start_lr - stop) * (1.0 + math.cos(math.pi * t / n_decay))

    return value


def _stable_decay(config: WsdConfig, stop: float, n_steps: int, n_decay: int) -> Callable[[int], float]:
    """Constant, then inverse-linear, cosine or linear decay over the last `decay_phase_ratio` of all steps."""
    start = config.start_lr
    length = max(1, min(int(config.decay_phase_ratio * n_steps), n_decay))
    stable = n_decay - length

    def value(t: int) -> float:
        if t < stable:
            return start
        if t >= n_decay:
            return stop
        tau = (t - stable) / length
        if config.decay_type == "inverse_linear":
            return 1.0 / (tau / stop + (1.0 - tau) / start)
        if config.decay_type == "cosine":
            return stop + 0.5 * (start - stop) * (1.0 + math.cos(math.pi * tau))
        return start + (stop - start) * tau

    return value
