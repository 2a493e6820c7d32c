"""What back ends for cards share: buffers that keep their memory, and running sums of long arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from dphpc.core.device import Array, Device

BLOCK = 128
"""Threads of a block."""

CHUNK = 16 * BLOCK
"""Numbers that a block adds up."""


class Buffers:
    """Arrays by name in a card's memory; they keep it from call to call, and what they hold only while they fit."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._kept: dict[str, Array] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array of this shape; what stands in it is of no use."""
        size = int(np.prod(shape))
        if name not in self._kept or self.capacity(name) < size:
            self._kept.pop(name, None)  # gives its memory back before more is asked for
            # An eighth of head-room, as atoms come and go.
            self._kept[name] = self.device.zeros(size + size // 8 + 1, dtype)
        return self._kept[name][:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(int(array.nbytes) for array in self._kept.values())

    def capacity(self, name: str) -> int:
        """The size up to which an array keeps its memory."""
        return int(self._kept[name].size) if name in self._kept else 0


def running_sums(buffers: Buffers, text: str, counts: Array, out: Array) -> None:
    """Add up counts (n,) int32, none negative, in `out` (n + 2,) int64.

    out[i] is the sum of counts[:i], out[n] that of all, and out[n + 1] the largest count.  `text` includes `scan.h`.
    """
    n, device = counts.size, buffers.device
    if n == 0:
        out.fill(0)
        return
    n_chunks = -(-n // CHUNK)
    sums = buffers.get("sums", (n_chunks,), np.int64)
    out[n + 1 :].fill(0)
    size = np.int64(n), np.int64(CHUNK)
    device.launch(text, "sum_chunks", n_chunks, BLOCK, counts, *size, sums, out[n + 1 :])
    device.launch(text, "scan_sums", 1, BLOCK, sums, np.int64(n_chunks))
    device.launch(text, "scan_chunks", n_chunks, BLOCK, counts, *size, sums, out)


def blocks(n: int) -> int:
    """How many of them have a thread for each of n."""
    return -(-n // BLOCK)
