"""GPU arrays that keep their memory from call to call, and launches with one thread for each element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device, Event
from dphpc.ops.arguments import KernelLayer
from dphpc.ops.structs import layer_struct

REAL = {np.dtype(np.float64): "double", np.dtype(np.float32): "float"}
"""C's names for the precisions."""

ELEMENTWISE = 256
"""Threads of a block in kernels with one element for each thread."""

ALIGNMENT = 64
"""Bytes; the alignment of the arrays in a `Parcel`."""

Kind = tuple[tuple[int, ...], DTypeLike]
"""Shape and type of an array."""


class Workspace:
    """GPU arrays by name; each keeps its memory from call to call."""

    def __init__(self, device: Device) -> None:
        self.device, self.buffers, self.pinned = device, Buffers(device.zeros), Buffers(device.pinned)
        self.sent: dict[str, Event] = {}
        self._n_ones: dict[str, int] = {}

    @property
    def growths(self) -> int:
        """See `Buffers.growths`."""
        return self.buffers.growths

    def buffer(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """The array of that name; its contents are undefined."""
        return self.buffers.get(f"{name} {np.dtype(dtype).str}", shape, dtype)

    def ones(self, n: int, dtype: DTypeLike) -> Array:
        """(n,) ones, for sums as matrix products."""
        kind, growths, array = np.dtype(dtype).str, self.growths, self.buffer("ones", (n,), dtype)
        if self.growths != growths or self._n_ones.get(kind, 0) < n:
            self.device.fill(array, 1.0)
            self._n_ones[kind] = n
        return array

    def up(self, name: str, values: NDArray, dtype: DTypeLike) -> Array:
        """The array of that name, set to values from the host."""
        array = self.buffer(name, values.shape, dtype)
        self.device.upload(values, array)
        return array

    def new(self, values: NDArray) -> Array:
        """A new array with values from the host."""
        array = self.device.zeros(values.size, values.dtype).reshape(values.shape)
        self.device.upload(values, array)
        return array

    def address(self, array: Array | None) -> int:
        """Address of the first element; 0 for None."""
        return 0 if array is None else self.device.address(array)

    def of_each(self, text: str, kernel: str, n: int, *arguments: Any) -> None:
        """Launch a kernel with a thread for each of n elements."""
        assert n < 2**32, "elements are counted in 32 bits"
        if n:
            self.device.launch(text, kernel, -(-n // ELEMENTWISE), ELEMENTWISE, *arguments)

    def layer(self, layer: KernelLayer) -> NDArray:
        """The struct of a layer whose vectors are in GPU memory."""
        return layer_struct(layer, self.address(layer.b), self.address(layer.idt))


class Parcel:
    """Arrays side by side in GPU memory, uploaded or downloaded in one copy."""

    def __init__(self, work: Workspace, name: str, kinds: Sequence[Kind]) -> None:
        self._work, self._name, end = work, name, 0
        self._places: list[tuple[slice, Kind]] = []
        for shape, dtype in kinds:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            self._places.append((slice(end, end + size), (shape, dtype)))
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._bytes = work.buffer(name, (end,), np.uint8)
        self.arrays = self._cut(self._bytes)

    def _cut(self, whole: Any) -> list[Any]:
        return [whole[place].view(dtype).reshape(shape) for place, (shape, dtype) in self._places]

    def upload(self, *values: NDArray) -> None:
        """Begin to copy values to the arrays; does not wait."""
        device, sent = self._work.device, self._work.sent
        if self._name in sent:
            sent[self._name].synchronize()  # the last upload, before its pinned memory is overwritten
        whole = self._work.pinned.get(self._name, self._bytes.shape, np.uint8)
        for array, value in zip(self._cut(whole), values, strict=True):
            array[...] = value
        device.start_upload(whole, self._bytes)
        sent[self._name] = device.mark()

    def download(self) -> list[NDArray]:
        """Copies of the arrays on the host."""
        return self._cut(self._work.device.download(self._bytes))
