"""The fitting network on the CPU: the compiled kernels, with weights packed once for many products."""

from __future__ import annotations

from typing import Any

import numpy as np

from dphpc._native import kernels
from dphpc.model.networks import Layer, Network
from dphpc.ops.fitting.contract import Floats

_SILUT_THRESHOLD = 3.0


def packed(network: Network, channels: int = 0, axis: int = 0) -> Any:
    """The network as the kernels hold it; its weights are copied.

    Parameters
    ----------
    channels, axis
        The first channels·axis inputs are features in the order of `se_a.contract.SeAOps.features`.
    """
    dtype = network.layers[0].w.dtype
    return precision_of(dtype).FittingNet([_arguments(layer) for layer in network.layers], channels, axis)


def _arguments(layer: Layer) -> tuple[Any, ...]:
    name, _, threshold = layer.activation.lower().partition(":")
    return layer.w, layer.b, layer.idt, name, float(threshold or _SILUT_THRESHOLD), layer.skip


def energy_and_adjoint(network: Network, inputs: Floats) -> tuple[Floats, Floats]:
    """See `contract.FittingOps.energy_and_adjoint`."""
    inputs = np.ascontiguousarray(inputs)
    energies, adjoint = np.empty(len(inputs), inputs.dtype), np.empty_like(inputs)
    packed(network).evaluate(inputs, energies, adjoint)
    return energies, adjoint


def precision_of(dtype: np.dtype) -> Any:
    """The kernels' submodule for a precision."""
    return kernels.float32 if dtype == np.float32 else kernels.float64
