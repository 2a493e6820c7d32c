"""How atoms are divided among a GPU's matrix products: tiles of rows, and batches of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array
from dphpc.ops.workspace import REAL

TILE = 2048
"""Rows of a matrix product by default; up to so many atoms of a type are one tile."""

FEWEST_ROWS, MOST_ROWS = 64, 16384
"""Least and largest number of rows of a tile; the latter is also the limit for a batch."""

BLOCK, WIDE_BLOCK = 128, 256
"""Threads of an atom's block; the latter in runs of few atoms."""

FEW_ATOMS, WIDE_CHANNELS = 384, 256
"""Largest such run, in which narrow blocks would leave most of a GPU idle, and most channels, for shared memory."""

FEW_ROWS, FEW_TERMS = 256, 512
"""Up to so many rows, and inputs and outputs, a layer is one kernel of our own instead of product and activation."""

SHARES = 8
"""Least number of tiles of a type with many atoms, so that up to so many ranks have whole tiles."""

SPLIT_ATOMS = 8192
"""Number of atoms of a run from which float32 products are computed in pieces, if asked for."""

BATCH_BYTES = 2**29
"""Most bytes of a batch's features and layers: 16384 rows of 1,600 features and a net of 240³ in float64."""


@dataclass(frozen=True)
class Layer:
    """A layer of a net in a GPU's memory."""

    w: Array  # (n_in, n_out)
    ahead: Array  # (3·n_in, n_out), pieces to meet those of values; None where no product is done in pieces
    back: Array  # (n_in, 3·n_out), and those of adjoints
    n_in: int
    n_out: int
    skip: int
    struct: NDArray
    kept: tuple[Array | None, ...]  # what the struct points to


@dataclass(frozen=True)
class DeviceNet:
    """A fitting net in a GPU's memory, and the sizes of its launches.

    `rows` is the number of rows of its products, whose left factors have `parts` (1 or 3) parts; `block` is the number
    of threads for an atom's pairs.
    """

    layers: list[Layer]
    dtype: np.dtype
    channels: int
    axis: int
    rows: int
    parts: int = 1
    block: int = BLOCK

    @property
    def n_columns(self) -> int:
        """Number of inputs after the features."""
        return self.layers[0].n_in - self.channels * self.axis

    @property
    def real(self) -> str:
        """C's name for the precision."""
        return REAL[self.dtype]

    @property
    def widest(self) -> int:
        """Largest number of outputs of a layer."""
        return max(layer.n_out for layer in self.layers)

    def is_small(self, layer: Layer) -> bool:
        """Whether a layer is one kernel of our own."""
        return self.parts == 1 and self.rows <= FEW_ROWS and max(layer.n_in, layer.n_out) <= FEW_TERMS

    @property
    def row_bytes(self) -> int:
        """Bytes for each row in a batch's arrays."""
        inputs, n_layers = self.layers[0].n_in, len(self.layers)
        numbers = 4 * self.channels + inputs + (n_layers + 3) * self.widest  # hidden slopes, two values, two adjoints
        if self.parts > 1:  # of inputs, two layers' values and a factor
            numbers += self.parts * inputs + (3 * self.parts - 2) * self.widest
        return numbers * self.dtype.itemsize

    @property
    def most_rows(self) -> int:
        """Largest number of rows of a batch, a power of two."""
        fitting = BATCH_BYTES // self.row_bytes
        return max(min(1 << fitting.bit_length() >> 1, MOST_ROWS), FEWEST_ROWS)


@dataclass(frozen=True)
class Group:
    """Atoms of one type; in arrays their rows are filled up to whole tiles.

    Attributes
    ----------
    net
        The type's net; nets of groups that are evaluated together have the same number of inputs.
    n
        Number of atoms, at least one.
    shift
        eV, added to each atom's energy.
    """

    net: DeviceNet
    n: int
    shift: float = 0.0

    @property
    def n_rows(self) -> int:
        """Number of rows of all its tiles."""
        return -(-self.n // self.net.rows) * self.net.rows


@dataclass(frozen=True)
class Part:
    """Whole tiles of a group in a batch: rows first to last − 1, of which the first n are atoms."""

    net: DeviceNet
    first: int
    last: int
    n: int
    shift: float


def tile_rows(n: int) -> int:
    """Rows of a tile for n atoms of a type in the whole run, the same on all ranks.

    Large products are efficient, but rows without an atom cost as much as others.
    """
    share = n if n <= TILE else max(-(-n // SHARES), TILE)
    return min(max(1 << (share - 1).bit_length(), FEWEST_ROWS), MOST_ROWS)


def block_of(n_all: int, channels: int) -> int:
    """Threads of an atom's block with n_all atoms in the whole run; the same on all ranks, for the order of sums."""
    return WIDE_BLOCK if n_all <= FEW_ATOMS and channels <= WIDE_CHANNELS else BLOCK


def batches(groups: Sequence[Group]) -> Iterator[list[Part]]:
    """Divide the groups' tiles, one after the other, into batches as large as allowed."""
    batch: list[Part] = []
    first = 0
    for group in groups:
        n, rows = group.n, group.net.rows
        while n > 0:
            room = group.net.most_rows - (first - batch[0].first if batch else 0)
            if batch and room < rows:
                yield batch
                batch, room = [], group.net.most_rows
            n_rows = min(max(room // rows, 1), -(-n // rows)) * rows
            batch.append(Part(group.net, first, first + n_rows, min(n, n_rows), group.shift))
            first, n = first + n_rows, n - n_rows
    if batch:
        yield batch
