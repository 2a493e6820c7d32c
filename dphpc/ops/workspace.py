"""Memory on a card that stays from call to call, and launches over elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device
from dphpc.ops.structs import ELEMENTWISE, layer_struct

NULL = np.uint64(0)
"""A pointer to nothing, as an argument of a kernel."""

REAL = {np.dtype(np.float64): "double", np.dtype(np.float32): "float"}
"""C's names of the types."""


class Workspace:
    """Arrays on a card, by name: each keeps its memory from call to call."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._buffers = Buffers(device.zeros)
        self._ones: dict[str, Array] = {}

    @property
    def nbytes(self) -> int:
        """Of the arrays that go by a name."""
        return self._buffers.nbytes

    @property
    def growths(self) -> int:
        """See `Buffers.growths`."""
        return self._buffers.growths

    def buffer(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """The array of that name; what it holds is left from the last time."""
        return self._buffers.get(f"{name} {np.dtype(dtype).str}", shape, dtype)

    def ones(self, n: int, dtype: DTypeLike) -> Array:
        """(n,) ones, for sums as matrix products."""
        kind = np.dtype(dtype).str
        if kind not in self._ones or self._ones[kind].size < n:
            self._ones[kind] = self.device.zeros(n + n // 8, dtype)
            self._ones[kind].fill(1.0)
        return self._ones[kind][:n]

    def up(self, name: str, values: NDArray, dtype: DTypeLike) -> Array:
        """The array of that name, with values from the host."""
        array = self.buffer(name, values.shape, dtype)
        self.device.upload(values, array)
        return array

    def new(self, values: NDArray) -> Array:
        """A new array with values from the host."""
        array = self.device.zeros(values.size, values.dtype).reshape(values.shape)
        self.device.upload(values, array)
        return array

    def address(self, array: Array | None) -> int:
        """Of the first element; 0 for None."""
        return 0 if array is None else self.device.address(array)

    def of_each(self, text: str, kernel: str, n: int, *arguments: Any) -> None:
        """Start a kernel with a thread for each of n elements; None stands for a pointer to nothing."""
        if n:
            given = (NULL if a is None else a for a in arguments)
            self.device.launch(text, kernel, -(-n // ELEMENTWISE), ELEMENTWISE, *given)

    def layer(self, layer: tuple[Any, ...], bias: Array | None, idt: Array | None) -> NDArray:
        """The struct of a layer, as `arguments.layers_of` gives it, with these vectors in its precision."""
        return layer_struct(layer, self.address(bias), self.address(idt))
