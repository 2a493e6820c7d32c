"""Optimizers behind `optimizer/type` of a training input."""

from __future__ import annotations

import logging

from dphpc.core.errors import InputError
from dphpc.parallel.comm import Communicator, Serial
from dphpc.train.optimizers.adam import Adam
from dphpc.train.optimizers.gradient import GradientOptimizer, Rule
from dphpc.train.optimizers.kalman import KalmanOptimizer
from dphpc.train.optimizers.late_check import LateCheckOptimizer
from dphpc.train.optimizers.muon import HybridMuonRule
from dphpc.train.optimizers.protocol import Engine, Optimizer
from dphpc.train.optimizers.soap import SoapRule
from dphpc.train.parameters import Parameters
from dphpc.train.schema import TrainInput
from dphpc.train.schema.optimization import AdamWConfig, HybridMuonConfig, LkfConfig, SoapConfig

__all__ = ["Engine", "GradientOptimizer", "KalmanOptimizer", "Optimizer", "make_optimizer", "make_rule"]

log = logging.getLogger(__name__)


def make_optimizer(config: TrainInput, parameters: Parameters, comm: Communicator | None = None) -> Optimizer:
    """The optimizer that an input asks for; its seed and `numb_steps` are resolved.

    Parameters
    ----------
    comm
        The ranks that make the same steps.

    Raises
    ------
    InputError
        LKF does not fit into the memory, or is asked for what it does not do.
    """
    t = config.training
    if isinstance(config.optimizer, LkfConfig) and parameters.device is not None:
        raise InputError("LKF does not run on a GPU yet", where="optimizer/type", remedy="another one, or --device cpu")
    if not isinstance(config.optimizer, LkfConfig):
        rule = make_rule(config, parameters, comm or Serial())
        if isinstance(rule, Adam) and parameters.device is not None and not t.gradient_max_norm:
            return LateCheckOptimizer(rule, parameters)
        return GradientOptimizer(rule, parameters, t.gradient_max_norm)
    if t.gradient_max_norm:
        raise InputError(
            "gradient_max_norm does not act on LKF, which makes no step along the loss's gradient",
            where="training/gradient_max_norm", remedy="remove it",
        )  # fmt: skip
    unused = [n for n in ("v", "ae", "pf") if getattr(config.loss, f"start_pref_{n}")]
    if unused:
        log.warning("LKF fits energies and forces only; prefactors of %s change the shown loss alone", unused)
    assert t.numb_steps is not None, "resolved before"
    assert t.seed is not None, "resolved before"
    return KalmanOptimizer(config.optimizer, parameters, t.numb_steps, t.seed)


def make_rule(config: TrainInput, parameters: Parameters, comm: Communicator) -> Rule:
    """The rule of an optimizer that steps by the loss's gradient."""
    options = config.optimizer
    if isinstance(options, HybridMuonConfig):
        return HybridMuonRule(options, parameters)
    if isinstance(options, SoapConfig):
        return SoapRule(options, parameters, comm)
    assert not isinstance(options, LkfConfig)
    betas = (options.adam_beta1, options.adam_beta2)
    decoupled = isinstance(options, AdamWConfig)
    return Adam(parameters, betas, options.weight_decay, decoupled=decoupled)
