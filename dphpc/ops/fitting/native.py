"""The fitting network on the CPU: matrix products by NumPy's BLAS, the rest of a layer in one compiled pass."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from dphpc._native import kernels
from dphpc.model.networks import Layer, Network
from dphpc.ops.fitting.contract import Floats
from dphpc.ops.threads import get_threads

_SILUT_THRESHOLD = 3.0


class _Workspace(threading.local):
    """Arrays that live from call to call: fresh memory for each tile of atoms costs more than filling it."""

    def __init__(self) -> None:
        self._store: dict[tuple[str, int, str], Floats] = {}

    def array(self, name: str, n: int, width: int, dtype: np.dtype) -> Floats:
        """An uninitialized (n, width) array, valid until `name` is asked for again."""
        key = (name, width, dtype.str)
        kept = self._store.get(key)
        if kept is None or len(kept) < n:
            kept = self._store[key] = np.empty((n, width), dtype)
        return kept[:n]


_workspace = _Workspace()


def energy_and_adjoint(network: Network, inputs: Floats) -> tuple[Floats, Floats]:
    """See `contract.FittingOps.energy_and_adjoint`."""
    x, slopes = np.ascontiguousarray(inputs), []
    for i, layer in enumerate(network.layers):
        x, slope = _forward(layer, x, i)
        slopes.append(slope)
    energy = x[:, 0].copy()
    # Every output counts once: the net's own adjoint is 1, so the last layer's share is its slope.
    adjoint = np.ones_like(x)
    for i, layer in reversed(list(enumerate(network.layers))):
        slopes[i] *= adjoint
        adjoint = _backward(layer, adjoint, slopes[i], None if i == 0 else f"adjoint{i}")
    return energy, adjoint


def _forward(layer: Layer, x: Floats, i: int) -> tuple[Floats, Floats]:
    n, width, dtype = len(x), layer.w.shape[1], x.dtype
    z = _workspace.array(f"value{i}", n, width, dtype)
    slope = _workspace.array(f"slope{i}", n, width, dtype)
    np.matmul(x, layer.w, out=z)
    name, _, threshold = layer.activation.lower().partition(":")
    _kernels(dtype).activate(
        name,
        float(threshold or _SILUT_THRESHOLD),
        layer.b,
        layer.idt,
        x if layer.skip else None,
        get_threads(),
        z,
        slope,
    )
    return z, slope


def _backward(layer: Layer, output_adjoint: Floats, through: Floats, name: str | None) -> Floats:
    """Input adjoint (n, n_in); in the workspace array `name`, or fresh where the caller gets it."""
    n, n_in = len(through), layer.w.shape[0]
    result = np.empty((n, n_in), through.dtype) if name is None else _workspace.array(name, n, n_in, through.dtype)
    np.matmul(through, layer.w.T, out=result)
    for k in range(layer.skip):
        result += output_adjoint[:, k * n_in : (k + 1) * n_in]
    return result


def _kernels(dtype: np.dtype) -> Any:
    return kernels.float32 if dtype == np.float32 else kernels.float64
