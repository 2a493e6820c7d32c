"""Arrays that keep their memory from call to call, as atoms come and go."""

from __future__ import annotations

import math
from collections.abc import Callable

from numpy.typing import DTypeLike

from dphpc.core.device import Array


class Buffers:
    """Arrays by name; one that grows loses its contents.

    Parameters
    ----------
    make
        Makes an array (size,) of a type: `Device.zeros` or `Device.pinned`.

    Attributes
    ----------
    growths
        How many arrays were made so far; while this does not change, neither do the arrays' addresses.
    """

    def __init__(self, make: Callable[[int, DTypeLike], Array]) -> None:
        self._make = make
        self._kept: dict[str, Array] = {}
        self.growths = 0

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """The array of this name in this shape; its contents are undefined."""
        size = math.prod(shape)
        if name not in self._kept or self.capacity(name) < size:
            self._kept.pop(name, None)  # gives its memory back before more is asked for
            self.growths += 1
            # An eighth of head-room.
            self._kept[name] = self._make(size + size // 8 + 1, dtype)
        return self._kept[name][:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(array.nbytes) for array in self._kept.values())

    def capacity(self, name: str) -> int:
        """Number of elements up to which an array keeps its memory."""
        return int(self._kept[name].size) if name in self._kept else 0
