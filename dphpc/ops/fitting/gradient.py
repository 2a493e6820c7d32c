"""The fitting network in training, in plain NumPy: energies, their input derivatives, and gradients of both by one
tangent pass.  `native.FittingTape`, which trains, is compared with it.

For a loss that holds energies and forces, the parameter gradient is that of S = Σ ē·E + Ė, where Ė is the
derivative of ΣE along a fixed direction of the inputs.  With x → z = x·W + b → y = a(z)·idt + skip(x) per layer:

    value     z = x·W + b                 tangent             ż = ẋ·W
    adjoint   p_z = p·a′·idt              adjoint of value    q_z = q·a′·idt + p·a″·idt·ż
              p ← p_z·Wᵀ + skipᵀ(p)                           q ← q_z·Wᵀ + skipᵀ(q)

p = ∂E/∂x from the ordinary reverse pass is also the adjoint of the tangent ẋ, so it is computed once, and
W̄ = xᵀ·q_z + ẋᵀ·p_z is one product of stacked rows: six products of the network's size in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dphpc.core.arrays import Floats
from dphpc.model.activations import activation
from dphpc.model.networks import Layer, Network


@dataclass
class _Kept:
    """What one layer keeps of a step over n atoms; the halves of a stacked array are (value, tangent)."""

    x: Floats  # (2n, n_in): x, ẋ
    z_adjoint: Floats  # (2n, n_out): q_z, p_z
    act: Floats = field(init=False)  # (n, n_out): a(z)
    slope: Floats = field(init=False)  # (n, n_out): a′(z)
    curvature: Floats = field(init=False)  # (n, n_out): a″(z)
    output_adjoint: Floats = field(init=False)  # (n, n_out): p
    z_tangent: Floats = field(init=False)  # (n, n_out): ż
    y_tangent: Floats = field(init=False)  # (n, n_out): a′·ż


class FittingTape:
    """One network over n atoms of a training step, with everything that its passes share.

    Use in this order: fill `inputs`, call `energy_and_adjoint`, fill `input_tangents`, call `gradient`.
    """

    def __init__(self, network: Network, n_atoms: int) -> None:
        self.network, self.n_atoms = network, n_atoms
        rows, dtype = 2 * n_atoms, network.layers[0].w.dtype
        self._kept = [_Kept(*(np.empty((rows, width), dtype) for width in layer.w.shape)) for layer in network.layers]
        self._output = np.empty((rows, network.n_out), dtype)

    @property
    def inputs(self) -> Floats:
        """(n, n_in), to be filled."""
        return self._kept[0].x[: self.n_atoms]

    @property
    def input_tangents(self) -> Floats:
        """(n, n_in) derivative of the inputs along the direction, to be filled."""
        return self._kept[0].x[self.n_atoms :]

    def _next(self, i: int) -> Floats:
        return self._kept[i + 1].x if i + 1 < len(self._kept) else self._output

    def energy_and_adjoint(self) -> tuple[Floats, Floats]:
        """E (n,) and ∂E/∂x (n, n_in)."""
        n = self.n_atoms
        for i, (layer, kept) in enumerate(zip(self.network.layers, self._kept, strict=True)):
            x = kept.x[:n]
            z = x @ layer.w
            if layer.b is not None:
                z += layer.b
            kept.act, kept.slope, kept.curvature = activation(layer.activation)(np, z)
            _advance(layer, x, kept.act, self._next(i)[:n])
        p = np.ones_like(self._output[:n])
        for layer, kept in zip(reversed(self.network.layers), reversed(self._kept), strict=True):
            kept.output_adjoint = p
            p_z = np.multiply(p, kept.slope, out=kept.z_adjoint[n:])
            if layer.idt is not None:
                p_z *= layer.idt
            p = _retreat(layer, p, p_z)
        return self._output[:n, 0], p

    def gradient(self, energy_adjoint: Floats, gradients: Mapping[str, Floats], *, add: bool = False) -> Floats:
        """Gradient of Σ ē·E + Ė.

        Parameters
        ----------
        energy_adjoint
            ē (n,).
        gradients
            Arrays to be set, by the names of `Network.parameters`; names that are left out are not computed.
        add
            Add to the arrays instead of setting them.

        Returns
        -------
        (n, n_in) gradient with respect to the inputs (the one with respect to their tangents is ∂E/∂x).
        """
        n = self.n_atoms
        for i, (layer, kept) in enumerate(zip(self.network.layers, self._kept, strict=True)):
            x_dot = kept.x[n:]
            kept.z_tangent = x_dot @ layer.w
            kept.y_tangent = kept.slope * kept.z_tangent
            _advance(layer, x_dot, kept.y_tangent, self._next(i)[n:])
        q = np.ascontiguousarray(energy_adjoint, self._output.dtype)[:, None]
        for i in reversed(range(len(self._kept))):
            layer, kept = self.network.layers[i], self._kept[i]
            # without idt: adjoint of a(z) by value, then times idt
            q_z = np.multiply(q, kept.slope, out=kept.z_adjoint[:n])
            bend = kept.curvature * kept.z_tangent
            bend *= kept.output_adjoint
            q_z += bend
            if layer.idt is not None:
                q_z *= layer.idt
            self._parameter_gradients(i, q, gradients, add)
            q = _retreat(layer, q, q_z)
        return q

    def _parameter_gradients(self, i: int, q: Floats, gradients: Mapping[str, Floats], add: bool) -> None:
        kept, n = self._kept[i], self.n_atoms
        w, b, idt = (gradients.get(f"layers.{i}.{name}") for name in ("w", "b", "idt"))
        if w is not None and add:
            w += kept.x.T @ kept.z_adjoint
        elif w is not None:
            np.matmul(kept.x.T, kept.z_adjoint, out=w)
        if b is not None:
            b[...] = (b if add else 0.0) + kept.z_adjoint[:n].sum(axis=0)
        if idt is not None:
            value = _column_dots(q, kept.act) + _column_dots(kept.output_adjoint, kept.y_tangent)
            idt[...] = (idt if add else 0.0) + value


def _column_dots(a: Floats, b: Floats) -> Floats:
    """Σ over rows of a·b, per column."""
    return np.einsum("ij,ij->j", a, b)


def _advance(layer: Layer, x: Floats, y: Floats, out: Floats) -> None:
    """out = y·idt + skip(x), for values and tangents alike."""
    if layer.idt is not None:
        np.multiply(y, layer.idt, out=out)
    else:
        out[...] = y
    for k in range(layer.skip):
        n_in = x.shape[1]
        out[:, k * n_in : (k + 1) * n_in] += x


def _retreat(layer: Layer, output_adjoint: Floats, z_adjoint: Floats) -> Floats:
    """Input adjoint of a layer: z_adjoint·Wᵀ + skipᵀ(output_adjoint)."""
    result = z_adjoint @ layer.w.T
    n_in = layer.w.shape[0]
    for k in range(layer.skip):
        result += output_adjoint[:, k * n_in : (k + 1) * n_in]
    return result
