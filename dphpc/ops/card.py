"""What back ends for cards share: sizes of blocks, and running sums of long arrays."""

from __future__ import annotations

import numpy as np

from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device

BLOCK = 128
"""Threads of a block."""

CHUNK = 16 * BLOCK
"""Numbers that a block adds up."""


def blocks(n: int) -> int:
    """How many of them have a thread for each of n."""
    return -(-n // BLOCK)


def running_sums(device: Device, buffers: Buffers, text: str, counts: Array, out: Array) -> None:
    """Add up counts (n,) int32, none negative, in `out` (n + 2,) int64.

    out[i] is the sum of counts[:i], out[n] that of all, and out[n + 1] the largest count.  `text` includes `scan.h`.
    """
    n = counts.size
    if n == 0:
        device.fill(out, 0)
        return
    if n <= CHUNK:
        device.launch(text, "scan_few", 1, BLOCK, counts, np.int64(n), out)
        return
    n_chunks = -(-n // CHUNK)
    sums = buffers.get("sums", (n_chunks,), np.int64)
    device.fill(out[n + 1 :], 0)
    size = np.int64(n), np.int64(CHUNK)
    device.launch(text, "sum_chunks", n_chunks, BLOCK, counts, *size, sums, out[n + 1 :])
    device.launch(text, "scan_sums", 1, BLOCK, sums, np.int64(n_chunks))
    device.launch(text, "scan_chunks", n_chunks, BLOCK, counts, *size, sums, out)
