"""What the GPU back ends share: the size of blocks, prefix sums and sorting."""

from __future__ import annotations

import numpy as np

from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device
from dphpc.ops.kernel_text import kernel_text

BLOCK = 128
"""Threads of a block."""

CHUNK = 16 * BLOCK
"""Numbers that a block adds up in a prefix sum."""

DIGIT_BITS = 4
"""Bits of the keys that one pass of the radix sort looks at, as in kernels/cuda/order.cu."""

ORDER_BYTES = 4 + 4 + (4 + 8) * 2**DIGIT_BITS / BLOCK
"""Memory for each key of a sort: two orders, and its share of its block's counts."""

KEYS = {np.dtype(np.int32): "int", np.dtype(np.int64): "long long"}
"""C's names for the types of keys."""


def blocks(n: int) -> int:
    """Number of blocks that together have a thread for each of n elements."""
    return -(-n // BLOCK)


def running_sums(device: Device, buffers: Buffers, text: str, counts: Array, out: Array) -> None:
    """Exclusive prefix sums of counts (n,) int32, none negative, into `out` (n + 1,) int64.

    out[i] is the sum of counts[:i], and out[n] that of all.  The source `text` must include `scan.h`.
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
    size = np.int64(n), np.int64(CHUNK)
    device.launch(text, "sum_chunks", n_chunks, BLOCK, counts, *size, sums)
    device.launch(text, "scan_sums", 1, BLOCK, sums, np.int64(n_chunks))
    device.launch(text, "scan_chunks", n_chunks, BLOCK, counts, *size, sums, out)


def stable_order(device: Device, buffers: Buffers, keys: Array, n_keys: int) -> Array:
    """Stable argsort of integer keys (n,), from 0 to n_keys − 1, by radix sort.

    Returns
    -------
    (n,) int32, in the memory of the buffers; the host does not wait.
    """
    n, n_blocks = len(keys), blocks(len(keys))
    orders = [buffers.get(f"order {k}", (n,), np.int32) for k in range(2)]
    if n == 0:
        return orders[0]
    text = kernel_text("order.cu", Key=KEYS[keys.dtype], WARP=device.warp, BLOCK=BLOCK)
    counts = buffers.get("digits", (2**DIGIT_BITS * n_blocks,), np.int32)
    starts = buffers.get("starts of digits", (len(counts) + 1,), np.int64)
    order: Array | None = None
    for shift in range(0, max((n_keys - 1).bit_length(), 1), DIGIT_BITS):
        given = np.int32(n), keys, order, np.int32(shift)
        device.launch(text, "count_digits", n_blocks, BLOCK, *given, counts)
        running_sums(device, buffers, text, counts, starts)
        order = orders[shift // DIGIT_BITS % 2]
        device.launch(text, "place_digits", n_blocks, BLOCK, *given, starts, order)
    return order
