"""Networks and their gradients in the form that the compiled kernels take."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dphpc.model.networks import Array, Network

_SILUT_THRESHOLD = 3.0


class KernelLayer(NamedTuple):
    """A layer's arrays, its activation with its threshold, and how many copies of the input are added."""

    w: Array
    b: Array | None
    idt: Array | None
    activation: str
    threshold: float
    skip: int


def layers_of(network: Network) -> list[KernelLayer]:
    """A network's layers."""
    layers = []
    for layer in network.layers:
        name, _, threshold = layer.activation.lower().partition(":")
        layers.append(KernelLayer(layer.w, layer.b, layer.idt, name, float(threshold or _SILUT_THRESHOLD), layer.skip))
    return layers


def gradients_of(network: Network, gradients: Mapping[str, NDArray[np.floating]]) -> list[tuple[Any, ...]]:
    """For each layer the arrays for w, b and idt, None where `gradients`, named as `Network.parameters`, has none."""
    return [tuple(gradients.get(name) for name in names) for names in _names(len(network.layers))]


@lru_cache
def _names(n_layers: int) -> list[tuple[str, ...]]:
    """Names of each layer's w, b and idt."""
    return [tuple(f"layers.{i}.{name}" for name in ("w", "b", "idt")) for i in range(n_layers)]
