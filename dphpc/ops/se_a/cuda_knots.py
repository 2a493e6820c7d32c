"""The radial table as a function of the embedding weights, on a GPU; the passes are those of `knots.KnotTable`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.model.networks import Layer, Network
from dphpc.model.radial_table import Grid
from dphpc.ops.arguments import layers_of
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.structs import struct
from dphpc.ops.workspace import REAL, Workspace

# The structs of kernels/cuda/knots.cu.
_TABLES = struct("p steps", "i4 n_tables", "i4 n_intervals", "i4 channels")
_SLOTS = struct("p intervals", "p powers", "i4 n", "i4 channels")

N_JET = 3
"""Rows of a jet: the value and two derivatives."""


@dataclass(frozen=True)
class _Kept:
    """One layer of one network at the n knots."""

    struct: NDArray
    w: Array  # (n_in, n_out)
    x: Array  # (3n, n_in)
    z: Array  # (3n, n_out)
    slopes: Array  # (3n, n_out): act′, act″, act‴
    activated: Array | None  # (3n, n_out), where idt asks for it


class CudaKnotTable:
    """Table and missing slots of networks as they are now, and the way back to the weights' gradients.

    Parameters
    ----------
    networks
        Networks of equal shapes and one precision, which is also the table's; their arrays are on the GPU and are read
        by each `update`.

    Attributes
    ----------
    coefficients, empty
        As in `knots.KnotTable`, on the GPU.
    """

    def __init__(self, device: Device, networks: Sequence[Network], p: SeAParameters, grid: Grid) -> None:
        self.grid, self._device, self._work = grid, device, Workspace(device)
        self._dtype, channels = networks[0].layers[0].w.dtype, networks[0].n_out
        self._text = kernel_text("knots.cu", Real="double", Table=REAL[self._dtype])
        self._sources = [[a for _, a in net.parameters()] for net in networks]
        twins = [self._wide(i, net) for i, net in enumerate(networks)]
        self._targets = [[a for _, a in net.parameters()] for net in twins]
        shape = len(networks), grid.n_intervals, 6, channels
        self.coefficients = device.zeros(int(np.prod(shape)), self._dtype).reshape(shape)
        n_types, self._n = len(p.sel), grid.n_intervals + 1
        self.empty = device.zeros(n_types**2 * channels, self._dtype).reshape(n_types, n_types, channels)
        self._jets = self._work.buffer("jets", (len(networks), N_JET * self._n, channels), np.float64)
        self._kept = [self._take_memory(i, net) for i, net in enumerate(twins)]
        self._widths = self._work.new(grid.widths)
        tables = self._work.address(self._widths), len(networks), grid.n_intervals, channels
        self._tables, self._slots = np.array([tables], _TABLES), self._slots_of(p, channels)
        self.update()

    @property
    def growths(self) -> int:
        """See `Buffers.growths`."""
        return self._work.growths

    def _wide(self, i: int, net: Network) -> Network:
        """The network with float64 arrays: its own, or copies that `update` sets."""
        if self._dtype == np.float64:
            return net

        def copy(name: str, array: Array | None) -> Array | None:
            return None if array is None else self._work.buffer(f"{name}{i}", array.shape, np.float64)

        layers = [
            Layer(copy(f"w{j}", y.w), copy(f"b{j}", y.b), copy(f"idt{j}", y.idt), y.activation, y.resnet)
            for j, y in enumerate(net.layers)
        ]
        return Network(layers)

    def _take_memory(self, i: int, net: Network) -> list[_Kept]:
        rows, kept = N_JET * self._n, []
        start = np.stack((self.grid.knots, np.ones(self._n), np.zeros(self._n))).reshape(rows, 1)
        for j, layer in enumerate(layers_of(net)):
            n_in, n_out = layer.w.shape

            def array(name: str, width: int, j: int = j) -> Array:
                return self._work.buffer(f"{name}{i}.{j}", (rows, width), np.float64)

            x = array("x", n_in) if j else self._work.new(start)
            activated = array("activated", n_out) if layer.idt is not None else None
            z, slopes = array("z", n_out), array("slopes", n_out)
            kept.append(_Kept(self._work.layer(layer), layer.w, x, z, slopes, activated))
        return kept

    def _slots_of(self, p: SeAParameters, channels: int) -> NDArray:
        """The struct of the missing slots of each (center, neighbor) type pair."""
        s0 = -p.davg / p.dstd[:, 0]
        index, t = self.grid.locate(s0)
        taken = np.broadcast_to(p.sel > 0, p.network.shape)
        intervals = np.where(taken, p.network * self.grid.n_intervals + index[:, None], -1).astype(np.int32)
        powers = np.repeat(t[:, None] ** np.arange(6) * s0[:, None], len(p.sel), axis=0)
        self._slot_arrays = self._work.new(intervals), self._work.new(powers)
        addresses = map(self._work.address, self._slot_arrays)
        return np.array([(*addresses, intervals.size, channels)], _SLOTS)

    def update(self) -> None:
        """Recompute table and missing slots from the networks' present weights."""
        work = self._work
        if self._dtype != np.float64:
            for sources, targets in zip(self._sources, self._targets, strict=True):
                for source, target in zip(sources, targets, strict=True):
                    work.of_each(self._text, "widen", source.size, np.int64(source.size), source, target)
        self._device.beside(
            [partial(self._network_forward, *kept) for kept in zip(self._kept, self._jets, strict=True)]
        )
        n_rows = self.coefficients.size // 6
        work.of_each(self._text, "coefficients", n_rows, self._tables, self._jets, self.coefficients)
        work.of_each(self._text, "empty_slots", self.empty.size, self._slots, self.coefficients, self.empty)

    def backward(self, coefficients: Array, empty: Array, gradients: Sequence[Mapping[str, Array]]) -> None:
        """See `knots.KnotTable.backward`."""
        channels, work = self.empty.shape[2], self._work
        work.of_each(self._text, "empty_slots_adjoint", 6 * channels, self._slots, empty, coefficients)
        jets = work.buffer("jets_adjoint", self._jets.shape, np.float64)
        work.of_each(self._text, "jets_adjoint", jets.size // N_JET, self._tables, coefficients, jets)
        given = enumerate(zip(self._kept, jets, gradients, strict=True))
        self._device.beside([partial(self._network_backward, i, *arrays) for i, arrays in given])

    def _network_forward(self, layers: list[_Kept], jets: Array) -> None:
        """Set a network's jets (3n, M) at the knots."""
        work, n = self._work, np.int64(self._n)
        for j, k in enumerate(layers):
            self._device.product(k.x, k.w, k.z)
            y = layers[j + 1].x if j + 1 < len(layers) else jets
            work.of_each(self._text, "jet", k.z.size // N_JET, k.struct, n, k.z, k.x, y, k.slopes, k.activated)

    def _network_backward(self, i: int, layers: list[_Kept], y: Array, gradients: Mapping[str, Array]) -> None:
        """Set the gradients of network i, whose jets have the adjoint `y` (3n, M); networks share no memory."""
        work, n = self._work, np.int64(self._n)
        for j, k in reversed(list(enumerate(layers))):
            z_adjoint = work.buffer(f"z_adjoint{i}", k.z.shape, np.float64)
            terms = None if k.activated is None else work.buffer(f"idt_terms{i}", k.z.shape, np.float64)
            arrays = y, k.z, k.slopes, k.activated, z_adjoint, terms
            work.of_each(self._text, "jet_adjoint", k.z.size // N_JET, k.struct, n, *arrays)
            wanted = [gradients.get(f"layers.{j}.{name}") for name in ("w", "b", "idt")]
            self._set(i, wanted[0], k.x, z_adjoint)
            self._set_sums(i, wanted[1], z_adjoint[: self._n])
            self._set_sums(i, wanted[2], terms)
            if j == 0:
                break
            below = work.buffer(f"below{i}.{j % 2}", k.x.shape, np.float64)
            self._device.product(z_adjoint, k.w, below, transposed=True)
            if k.struct["skip"][0]:
                work.of_each(self._text, "add_skip", below.size, k.struct, np.int64(len(below)), y, below)
            y = below

    def _set_sums(self, i: int, out: Array | None, rows: Array) -> None:
        """out = the sum of rows; nothing if it is None."""
        if out is not None:
            ones = self._work.ones(len(rows), np.float64).reshape(-1, 1)
            self._set(i, out.reshape(1, -1), ones, rows)

    def _set(self, i: int, out: Array | None, left: Array, right: Array) -> None:
        """out = leftᵀ·right, in its own precision; nothing if it is None."""
        if out is None:
            return
        wide = out if out.dtype == np.float64 else self._work.buffer(f"wide{i}", out.shape, np.float64)
        self._device.product(left, right, wide, left_transposed=True)
        if wide is not out:
            self._work.of_each(self._text, "narrow", out.size, np.int64(out.size), wide, out)
