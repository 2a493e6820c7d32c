"""Parameters of a small model with made-up gradients, and the input that an optimizer is made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dphpc.train.parameters import Parameters
from dphpc.train.schema import TrainInput, parse_input
from tests.train.systems import small_input


def set_gradients(parameters: Parameters, seed: int) -> None:
    """Random gradients."""
    rng = np.random.default_rng(seed)
    for name, value in gradients(parameters).items():
        value.copy_(torch.from_numpy(rng.normal(size=tuple(parameters.slots[name].shape))))


def gradients(parameters: Parameters) -> dict[str, torch.Tensor]:
    """Views of the gradients by name."""
    return parameters.split([flat.grad for flat in parameters.flats])


def input_with(optimizer: dict[str, Any], **training: Any) -> TrainInput:
    """A training input with this `optimizer` section."""
    return parse_input({**small_input(**training), "optimizer": optimizer})


def numpy_values(parameters: Parameters) -> dict[str, np.ndarray]:
    """Copies of the parameters by name."""
    return {name: value.numpy().copy() for name, value in parameters.split(parameters.flats).items()}
