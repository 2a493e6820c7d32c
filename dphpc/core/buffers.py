"""Arrays that keep their memory from call to call, as atoms come and go."""

from __future__ import annotations

import math
from collections.abc import Callable

from numpy.typing import DTypeLike

from dphpc.core.device import Array


class Buffers:
    """Arrays by name; what they hold is kept only while they fit.

    Parameters
    ----------
    make
        A new array (size,) of a type: a GPU's `zeros` or `pinned`.

    Attributes
    ----------
    growths
        How many arrays were made: as long as it is the same, so are their addresses.
    """

    def __init__(self, make: Callable[[int, DTypeLike], Array]) -> None:
        self._make = make
        self._kept: dict[str, Array] = {}
        self.growths = 0

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array of this shape; what stands in it is of no use."""
        size = math.prod(shape)
        if name not in self._kept or self.capacity(name) < size:
            self._kept.pop(name, None)  # gives its memory back before more is asked for
            self.growths += 1
            # An eighth of head-room.
            self._kept[name] = self._make(size + size // 8 + 1, dtype)
        return self._kept[name][:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(int(array.nbytes) for array in self._kept.values())

    def capacity(self, name: str) -> int:
        """The size up to which an array keeps its memory."""
        return int(self._kept[name].size) if name in self._kept else 0
