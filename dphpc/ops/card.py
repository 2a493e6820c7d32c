"""What back ends for GPUs share: sizes of blocks, running sums and the order of long arrays."""

from __future__ import annotations

import numpy as np

from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.workspace import NULL

BLOCK = 128
"""Threads of a block."""

CHUNK = 16 * BLOCK
"""Numbers that a block adds up."""

DIGIT_BITS = 4
"""Of keys, by which they are ordered at a time: as in kernels/cuda/order.cu."""

ORDER_BYTES = 4 + 4 + (4 + 8) * 2**DIGIT_BITS / BLOCK
"""For each key: two orders, and the counts of its block."""

KEYS = {np.dtype(np.int32): "int", np.dtype(np.int64): "long long"}
"""C's names of the types."""


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


def stable_order(device: Device, buffers: Buffers, keys: Array, n_keys: int) -> Array:
    """The places of keys (n,), whole numbers from 0 to n_keys − 1, from the least to the greatest.

    Equal ones stay as they stand.

    Returns
    -------
    (n,) int32, in the memory of the buffers; nothing is waited for.
    """
    n, n_blocks = len(keys), blocks(len(keys))
    orders = [buffers.get(f"order {k}", (n,), np.int32) for k in range(2)]
    if n == 0:
        return orders[0]
    text = kernel_text("order.cu", Key=KEYS[keys.dtype], WARP=device.warp, BLOCK=BLOCK)
    counts = buffers.get("digits", (2**DIGIT_BITS * n_blocks,), np.int32)
    starts = buffers.get("starts of digits", (len(counts) + 2,), np.int64)
    order: Array | np.uint64 = NULL
    for shift in range(0, max((n_keys - 1).bit_length(), 1), DIGIT_BITS):
        given = np.int32(n), keys, order, np.int32(shift)
        device.launch(text, "count_digits", n_blocks, BLOCK, *given, counts)
        running_sums(device, buffers, text, counts, starts)
        order = orders[shift // DIGIT_BITS % 2]
        device.launch(text, "place_digits", n_blocks, BLOCK, *given, starts, order)
    return order
