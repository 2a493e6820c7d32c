"""Adam on a GPU: one launch for all arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dphpc.core.device import Device
from dphpc.ops.adam.contract import AdamStep
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.structs import struct
from dphpc.ops.workspace import REAL, Workspace

# The structs of kernels/cuda/adam.cu.
_PIECE = struct("p gradient", "p value", "p first", "p second", "i8 n")
_NAMES = ("size", "keep", "added", "beta1", "beta2", "correction2", "epsilon")

PIECE = 1024
"""Values that a block changes."""

THREADS = 256


class CudaAdam:
    """Steps of arrays of one precision that stay where they are.

    Parameters
    ----------
    arrays
        GPU addresses of gradient, value and both moments of each array, and its number of values.
    """

    def __init__(self, device: Device, dtype: np.dtype, arrays: Sequence[tuple[int, int, int, int, int]]) -> None:
        self._device = device
        self._text = kernel_text("adam.cu", Real=REAL[dtype])
        self._step = struct(*(f"{dtype.str[1:]} {name}" for name in _NAMES))
        pieces = [
            (*(address + first * dtype.itemsize for address in addresses), min(PIECE, n - first))
            for *addresses, n in arrays
            for first in range(0, n, PIECE)
        ]
        self._n_pieces = len(pieces)
        self._pieces = Workspace(device).new(np.array(pieces, _PIECE).view(np.uint8))

    def step(self, s: AdamStep, norm: int = 0) -> None:
        """See `contract.AdamOps.adam_step`; rounded where `kernels/native/adam.h` rounds.

        Nothing changes if the float64 at the GPU address `norm` is not finite; 0 for no such check.
        """
        real = self._step[0].type
        correction1, correction2 = real(1.0 - s.beta1**s.count), real(np.sqrt(1.0 - s.beta2**s.count))
        keep, added = (1.0 - s.rate * s.decay, 0.0) if s.decoupled else (1.0, s.decay)
        numbers = real(s.rate) / correction1, keep, added, s.beta1, s.beta2, correction2, s.epsilon
        struct = np.array([numbers], self._step)
        self._device.launch(self._text, "adam", self._n_pieces, THREADS, struct, self._pieces, np.uint64(norm))
