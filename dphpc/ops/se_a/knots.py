"""The radial table as a function of the embedding weights: forward to its coefficients, back to the weights' gradients.

Networks are evaluated with their first two derivatives at the knots only (Taylor mode, as `Network.jet`), and the
reverse pass through that is written out.  With x → z = x·W + b and (a, a′, a″, a‴) the activation's derivatives at z:

    y  = a                   z̄  = ȳ·a′ + ȳ′·a″·z′ + ȳ″·(a‴·z′² + a″·z″)
    y′ = a′·z′               z̄′ = ȳ′·a′ + 2·ȳ″·a″·z′
    y″ = a″·z′² + a′·z″      z̄″ = ȳ″·a′

All networks go through a layer together, and the three rows of a jet share one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.model.activations import activation, third_derivative
from dphpc.model.networks import Layer, Network
from dphpc.model.radial_table import Grid, hermite_adjoint, hermite_coefficients
from dphpc.ops.se_a.contract import SeAParameters

Doubles = NDArray[np.float64]
Gradients = Mapping[str, NDArray[np.floating]]


class KnotTable:
    """Table and missing slots of networks as they are now, and the way back from their gradients to the weights.

    Parameters
    ----------
    networks
        Of equal shapes and of any one precision; everything is formed in float64.

    Attributes
    ----------
    coefficients
        (n_networks, n_intervals, 6, M), as in `RadialTable`.
    empty
        (ntypes, ntypes, M), `SeE2A.empty_slots` of that table.
    """

    def __init__(self, networks: Sequence[Network], p: SeAParameters, grid: Grid) -> None:
        self._grid, self._jets = grid, _Jets(networks, grid.knots)
        self.coefficients = hermite_coefficients(grid, self._jets.values.transpose(1, 0, 2, 3))
        s0 = -p.davg / p.dstd[:, 0]
        index, t = grid.locate(s0)
        self._slots = p.network, index[:, None]
        self._powers = t[:, None] ** np.arange(6) * s0[:, None]
        self._taken = (p.sel > 0)[None, :, None]
        self.empty = np.einsum("ctkm,ck->ctm", self.coefficients[self._slots], self._powers) * self._taken

    def backward(self, coefficients: Doubles, empty: Doubles, gradients: Sequence[Gradients]) -> None:
        """Set each network's `gradients`, given those of `coefficients` (changed in place) and `empty`.

        `gradients` holds arrays by the names of `Network.parameters`; names that are left out are not set.
        """
        np.add.at(coefficients, self._slots, np.einsum("ctm,ck->ctkm", empty * self._taken, self._powers))
        self._jets.backward(hermite_adjoint(self._grid, coefficients).transpose(1, 0, 2, 3), gradients)


@dataclass(frozen=True)
class _Kept:
    """One layer of k networks at n arguments: arrays (k, 3, n, …) hold value and first two derivatives."""

    layer: Layer
    x: Doubles  # input
    z: Doubles  # x·W + b
    derivatives: tuple[Doubles, ...]  # a, a′, a″ at z's value, each (k, n, n_out)
    activated: Doubles  # y before idt and skip
    w: Doubles
    idt: Doubles | None


class _Jets:
    """Values and first two derivatives (k, 3, n, M) of k networks at arguments (n,)."""

    def __init__(self, networks: Sequence[Network], arguments: Doubles) -> None:
        k, n = len(networks), len(arguments)
        row = np.stack((arguments, np.ones(n), np.zeros(n)))
        x = np.ascontiguousarray(np.broadcast_to(row[None, :, :, None], (k, 3, n, 1)))
        self._kept: list[_Kept] = []
        for layers in zip(*(net.layers for net in networks), strict=True):
            w, b, idt = (_stacked([getattr(layer, name) for layer in layers]) for name in ("w", "b", "idt"))
            assert w is not None
            z = np.matmul(x.reshape(k, 3 * n, -1), w).reshape(k, 3, n, -1)
            if b is not None:
                z[:, 0] += b[:, None]
            z1, z2 = z[:, 1], z[:, 2]
            a, a1, a2 = activation(layers[0].activation)(np, z[:, 0])
            activated = np.stack((a, a1 * z1, a2 * z1 * z1 + a1 * z2), axis=1)
            self._kept.append(_Kept(layers[0], x, z, (a, a1, a2), activated, w, idt))
            y = activated if idt is None else activated * idt[:, None, None]
            x = y + np.concatenate([x] * layers[0].skip, axis=3) if layers[0].skip else y
        self.values = x

    def backward(self, adjoint: Doubles, gradients: Sequence[Gradients]) -> None:
        """Set the networks' gradients, given that of `values`."""
        for i, kept in reversed(list(enumerate(self._kept))):
            z1, z2, (a, a1, a2) = kept.z[:, 1], kept.z[:, 2], kept.derivatives
            found: dict[str, Doubles] = {}
            y = adjoint
            if kept.idt is not None:
                found["idt"] = np.einsum("krno,krno->ko", y, kept.activated)
                y = y * kept.idt[:, None, None]
            a3 = third_derivative(kept.layer.activation)(np, kept.z[:, 0], a, a1, a2)
            z = np.empty_like(kept.z)
            z[:, 0] = y[:, 0] * a1 + y[:, 1] * a2 * z1 + y[:, 2] * (a3 * z1 * z1 + a2 * z2)
            z[:, 1] = y[:, 1] * a1 + 2.0 * y[:, 2] * a2 * z1
            z[:, 2] = y[:, 2] * a1
            k, _, n, n_in = kept.x.shape
            rows = z.reshape(k, 3 * n, -1)
            found["w"] = np.matmul(kept.x.reshape(k, 3 * n, n_in).transpose(0, 2, 1), rows)
            found["b"] = z[:, 0].sum(axis=1)
            for which, arrays in enumerate(gradients):
                for name, value in found.items():
                    if (out := arrays.get(f"layers.{i}.{name}")) is not None:
                        out[...] = value[which]
            if i == 0:
                return
            before = np.matmul(rows, kept.w.transpose(0, 2, 1)).reshape(kept.x.shape)
            for copy in range(kept.layer.skip):
                before += adjoint[..., copy * n_in : (copy + 1) * n_in]
            adjoint = before


def _stacked(arrays: list[NDArray[np.floating] | None]) -> Doubles | None:
    present = [a for a in arrays if a is not None]
    return np.stack(present).astype(np.float64) if present else None
