"""Networks and their gradients as the compiled kernels take them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.model.networks import Network

_SILUT_THRESHOLD = 3.0


def layers_of(network: Network) -> list[tuple[Any, ...]]:
    """Each layer's w, b, idt, activation and its threshold, and how many copies of the input are added."""
    layers = []
    for layer in network.layers:
        name, _, threshold = layer.activation.lower().partition(":")
        layers.append((layer.w, layer.b, layer.idt, name, float(threshold or _SILUT_THRESHOLD), layer.skip))
    return layers


def gradients_of(network: Network, gradients: Mapping[str, NDArray[np.floating]]) -> list[tuple[Any, ...]]:
    """Each layer's arrays for w, b and idt from those by the names of `Network.parameters`; None if left out."""
    return [tuple(gradients.get(name) for name in names) for names in _names(len(network.layers))]


@lru_cache
def _names(n_layers: int) -> list[tuple[str, ...]]:
    """Of each layer's w, b and idt."""
    return [tuple(f"layers.{i}.{name}" for name in ("w", "b", "idt")) for i in range(n_layers)]
