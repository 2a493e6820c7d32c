"""The fitting network in training on a GPU: matrix products by its library, one kernel between each two of them.

The passes are those of `reference.gradient`, with the descriptor's features in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array
from dphpc.model.networks import Network
from dphpc.ops.arguments import layers_of
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.se_a.cuda import CudaSeA
from dphpc.ops.workspace import REAL, Workspace


@dataclass(frozen=True)
class _Kept:
    """One layer over n atoms; the halves of a stacked array are (value, tangent)."""

    struct: NDArray
    w: Array
    x: Array  # (2n, n_in): x, ẋ
    z_adjoint: Array  # (2n, n_out): q_z, p_z
    slope: Array  # (n, n_out): act′(z)
    curvature: Array  # (n, n_out): act″(z), then p·act″·ż
    tangent: Array  # (n, n_out): ẋ·w, then act′·ż
    activated: Array | None  # (n, n_out), where idt asks for it
    adjoint: Array | None  # (n, n_out): p; None for 1


class CudaFittingTape:
    """One network in training; used like `native.FittingTape`, with GPU arrays.

    Parameters
    ----------
    network
        Its arrays are on the GPU, and may change between a `gradient` and the next `energy_and_adjoint`.
    """

    def __init__(self, network: Network, se_a: CudaSeA) -> None:
        self.network, self._se_a = network, se_a
        self._work = Workspace(se_a.device)
        self._text = kernel_text("fitting_tape.cu", Real=REAL[se_a.dtype])
        self._layers = layers_of(network)
        self._n, self._kept = -1, list[_Kept]()
        self._structs = [self._work.layer(layer) for layer in self._layers]

    @property
    def growths(self) -> int:
        """See `Buffers.growths`."""
        return self._work.growths

    def repack(self) -> None:
        """The weights are read where they are."""

    def _take_memory(self, n: int) -> None:
        if n == self._n:
            return
        work, dtype, last = self._work, self._se_a.dtype, len(self._layers) - 1
        self._n, self._kept = n, []
        for i, (layer, struct) in enumerate(zip(self._layers, self._structs, strict=True)):
            n_in, n_out = layer.w.shape

            def array(name: str, rows: int, width: int, i: int = i) -> Array:
                return work.buffer(f"{name}{i}", (rows, width), dtype)

            slope, curvature, tangent = (array(name, n, n_out) for name in ("slope", "curvature", "tangent"))
            activated = array("activated", n, n_out) if layer.idt is not None else None
            adjoint = None if i == last else array("adjoint", n, n_out)
            x, z_adjoint = array("x", 2 * n, n_in), array("z_adjoint", 2 * n, n_out)
            kept = _Kept(struct, layer.w, x, z_adjoint, slope, curvature, tangent, activated, adjoint)
            self._kept.append(kept)
        self._output = work.buffer("output", (2 * n, self.network.n_out), dtype)
        self._inputs_adjoint = work.buffer("inputs_adjoint", (n, self.network.n_in), dtype)

    def _next(self, i: int) -> Array:
        return self._kept[i + 1].x if i < len(self._kept) - 1 else self._output

    def energy_and_adjoint(self, moments: Array, columns: Array | None, energies: Array, adjoint: Array) -> None:
        """Set E (n,) and ∂E/∂A (n, 4, M) for moments A (n, 4, M) and inputs beside the features (n, n_columns).

        The moments must stay until `gradient` has been called.
        """
        n, device, work = len(moments), self._work.device, self._work
        self._take_memory(n)
        self._se_a.features_into(moments, columns, self._kept[0].x[:n])
        for i, k in enumerate(self._kept):
            last = i == len(self._kept) - 1
            y = energies.reshape(n, 1) if last else self._next(i)[:n]
            device.product(k.x[:n], k.w, k.slope)
            arrays = k.slope, k.x[:n], y, k.curvature, k.activated
            work.of_each(self._text, "layer_forward", k.slope.size, k.struct, np.int64(n), *arrays)
        for i, k in reversed(list(enumerate(self._kept))):
            p_z = k.z_adjoint[n:]
            work.of_each(self._text, "layer_adjoint", k.slope.size, k.struct, np.int64(n), k.adjoint, k.slope, p_z)
            below = self._kept[i - 1].adjoint if i else self._inputs_adjoint
            self._pass_back(k, k.adjoint, p_z, below)
        self._se_a.features_adjoint_into(moments, below, None, None, adjoint)

    def _pass_back(self, k: _Kept, output_adjoint: Array | None, z_adjoint: Array, out: Array) -> None:
        """The adjoint of a layer's input."""
        self._work.device.product(z_adjoint, k.w, out, transposed=True)
        if k.struct["skip"][0]:
            self._work.of_each(self._text, "add_skip", out.size, k.struct, np.int64(len(out)), output_adjoint, out)

    def gradient(
        self,
        moments: Array,
        seeds: Array,
        tangent: Array,
        gradients: Mapping[str, Array],
        moments_bar: Array,
        *,
        add: bool = False,
    ) -> None:
        """Set the gradients of Σ ē·E + Ė, see `native.FittingTape.gradient`, and `moments_bar` (n, 4, M)."""
        n, device, work = len(moments), self._work.device, self._work
        self._take_memory(n)
        self._se_a.features_tangent_into(moments, tangent, self._kept[0].x[n:])
        for i, k in enumerate(self._kept):
            device.product(k.x[n:], k.w, k.tangent)
            arrays = k.tangent, k.x[n:], k.adjoint, k.slope, k.curvature, self._next(i)[n:]
            work.of_each(self._text, "layer_tangent", k.slope.size, k.struct, np.int64(n), *arrays)
        q = seeds.reshape(n, 1)
        for i, k in reversed(list(enumerate(self._kept))):
            q_z = k.z_adjoint[:n]
            terms = None if k.activated is None else work.buffer("idt_terms", k.slope.shape, self._se_a.dtype)
            given = q, k.slope, k.curvature, q_z, k.activated, k.adjoint, k.tangent, terms
            work.of_each(self._text, "layer_value_adjoint", k.slope.size, k.struct, np.int64(n), *given)
            self._set_gradients(i, terms, gradients, add)
            below = work.buffer(f"q{i % 2}", k.x[:n].shape, self._se_a.dtype)
            self._pass_back(k, q, q_z, below)
            q = below
        self._se_a.features_adjoint_into(moments, q, tangent, self._inputs_adjoint, moments_bar)

    def _set_gradients(self, i: int, idt_terms: Array | None, gradients: Mapping[str, Array], add: bool) -> None:
        k, n, product = self._kept[i], self._n, self._work.device.product
        w, b, idt = (gradients.get(f"layers.{i}.{name}") for name in ("w", "b", "idt"))
        ones = _row(self._work.ones(n, self._se_a.dtype))
        if w is not None:
            product(k.x, k.z_adjoint, w, left_transposed=True, add=add)
        for out, terms in ((b, k.z_adjoint[:n]), (idt, idt_terms)):
            if out is not None:
                product(ones, terms, _row(out), add=add)


def _row(vector: Array) -> Any:
    """(n,) as (1, n)."""
    return vector.reshape(1, -1)
