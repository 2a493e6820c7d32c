"""Arrays that keep their memory."""

from __future__ import annotations

import numpy as np

from dphpc.core.buffers import Buffers


def test_memory_is_kept_while_it_suffices():
    made = []

    def make(size, dtype):
        made.append(size)
        return np.zeros(size, dtype)

    buffers = Buffers(make)
    assert buffers.capacity("a") == 0
    first = buffers.get("a", (8, 3), np.float64)
    assert first.shape == (8, 3)
    assert np.shares_memory(buffers.get("a", (9, 3), np.float64), first)  # an eighth more
    assert buffers.get("b", (0, 3), np.int32).shape == (0, 3)
    assert made == [28, 1]
    assert buffers.capacity("a") == 28
    assert buffers.nbytes == 28 * 8 + 4
    assert not np.shares_memory(buffers.get("a", (29,), np.float64), first)
    assert len(made) == 3
