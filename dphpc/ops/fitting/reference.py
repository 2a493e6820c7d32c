"""The fitting network and its input derivative in plain NumPy."""

from __future__ import annotations

import numpy as np

from dphpc.core.arrays import Floats
from dphpc.model.activations import activation
from dphpc.model.networks import Layer, Network


def energy_and_adjoint(network: Network, inputs: Floats) -> tuple[Floats, Floats]:
    """See `contract.FittingOps.energy_and_adjoint`."""
    x, slopes = inputs, []
    for layer in network.layers:
        z = x @ layer.w if layer.b is None else x @ layer.w + layer.b
        y, slope, _ = activation(layer.activation)(np, z)
        if layer.idt is not None:
            y, slope = y * layer.idt, slope * layer.idt
        slopes.append(slope)
        x = y if layer.skip == 0 else y + np.concatenate([x] * layer.skip, axis=1)
    adjoint = np.ones_like(x)
    for layer, slope in zip(reversed(network.layers), reversed(slopes), strict=True):
        adjoint = layer_input_adjoint(layer, adjoint, (adjoint * slope) @ layer.w.T)
    return x[:, 0], adjoint


def layer_input_adjoint(layer: Layer, output_adjoint: Floats, through_weights: Floats) -> Floats:
    """Add the skip connection's share of an output adjoint (n, n_out) to the input adjoint (n, n_in)."""
    n_in = layer.w.shape[0]
    for k in range(layer.skip):
        through_weights = through_weights + output_adjoint[:, k * n_in : (k + 1) * n_in]
    return through_weights
