"""The fitting network in plain NumPy: energies, their derivatives by the inputs, and in training the gradient of both.

For a loss that holds energies and forces, the parameter gradient is that of S = Σ ē·E + Ė, where Ė is the
derivative of ΣE along a fixed direction of the inputs.  With x → z = x·W + b → y = a(z)·idt + skip(x) per layer:

    value     z = x·W + b                 tangent             ż = ẋ·W
    adjoint   p_z = p·a′·idt              adjoint of value    q_z = q·a′·idt + p·a″·idt·ż
              p ← p_z·Wᵀ + skipᵀ(p)                           q ← q_z·Wᵀ + skipᵀ(q)

p = ∂E/∂x from the ordinary reverse pass is also the adjoint of the tangent ẋ, so it is computed once, and
W̄ = xᵀ·q_z + ẋᵀ·p_z is one product of stacked rows: six products of the network's size in all.
"""

from __future__ import annotations

import numpy as np

from dphpc.core.arrays import Floats
from dphpc.model.activations import activation
from dphpc.model.networks import Layer, Network


def energy_and_adjoint(network: Network, inputs: Floats) -> tuple[Floats, Floats]:
    """See `contract.FittingOps.energy_and_adjoint`."""
    x, slopes = inputs, []
    for layer in network.layers:
        y, slope, _ = activation(layer.activation)(np, _before_activation(layer, x))
        slopes.append(slope if layer.idt is None else slope * layer.idt)
        x = _output(layer, y, x)
    adjoint = np.ones_like(x)
    for layer, slope in zip(reversed(network.layers), reversed(slopes), strict=True):
        adjoint = _input_adjoint(layer, adjoint, adjoint * slope)
    return x[:, 0], adjoint


def gradient(
    network: Network, inputs: Floats, tangents: Floats, energy_adjoint: Floats
) -> tuple[dict[str, Floats], Floats]:
    """Gradient of Σ ē·E + Ė, for inputs and tangents (n, n_in) and ē (n,).

    Returns
    -------
    By parameter, with the names of `Network.parameters`; and (n, n_in) by the inputs.  That by the tangents is ∂E/∂x.
    """
    x, x_dot, kept = inputs, tangents, []
    for layer in network.layers:
        y, slope, curvature = activation(layer.activation)(np, _before_activation(layer, x))
        z_dot = x_dot @ layer.w
        y_dot = slope * z_dot
        kept.append((x, x_dot, y, y_dot, slope, curvature * z_dot))
        x, x_dot = _output(layer, y, x), _output(layer, y_dot, x_dot)
    p, q = np.ones_like(x), energy_adjoint[:, None]
    gradients: dict[str, Floats] = {}
    for i, layer in reversed(list(enumerate(network.layers))):
        x, x_dot, y, y_dot, slope, bend = kept[i]
        idt = 1.0 if layer.idt is None else layer.idt
        p_z, q_z = p * slope * idt, (q * slope + p * bend) * idt
        own = {"w": x.T @ q_z + x_dot.T @ p_z, "b": q_z.sum(axis=0), "idt": (q * y + p * y_dot).sum(axis=0)}
        gradients |= {f"layers.{i}.{name}": own[name] for name, _ in layer.parameters()}
        p, q = _input_adjoint(layer, p, p_z), _input_adjoint(layer, q, q_z)
    return gradients, q


def _before_activation(layer: Layer, x: Floats) -> Floats:
    return x @ layer.w if layer.b is None else x @ layer.w + layer.b


def _output(layer: Layer, y: Floats, x: Floats) -> Floats:
    """y·idt + skip(x), for values and tangents alike."""
    y = y if layer.idt is None else y * layer.idt
    return y if layer.skip == 0 else y + np.concatenate([x] * layer.skip, axis=1)


def _input_adjoint(layer: Layer, output_adjoint: Floats, z_adjoint: Floats) -> Floats:
    """z_adjoint·Wᵀ + skipᵀ(output_adjoint)."""
    n_in, result = layer.w.shape[0], z_adjoint @ layer.w.T
    for k in range(layer.skip):
        result = result + output_adjoint[:, k * n_in : (k + 1) * n_in]
    return result
