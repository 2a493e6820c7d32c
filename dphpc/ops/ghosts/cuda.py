"""Local atoms and ghosts in a GPU's memory: wrapping, sorting, periodic images, and moving data between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device
from dphpc.ops.gpu import BLOCK, ORDER_BYTES, blocks, running_sums, stable_order
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.structs import struct

WHOLE = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
"""The intervals of a brick that is the whole box."""

# The structs of kernels/cuda/ghosts.cu.
_BOX = struct("9f8 matrix", "9f8 inverse", "3f8 origin", "3i4 periodic")
_SHELL = struct("3f8 near_high", "3f8 near_low", "3i4 hops")
_FACES = struct("3f8 low", "3f8 high")
_BINS = struct("3f8 low", "3f8 scale", "3i8 n")


@dataclass(frozen=True)
class Images:
    """Ghosts of a rank that has the whole box, ordered by owner; valid until the next are found.

    Attributes
    ----------
    owners
        (n_rows,) int32, the local atom of which each is an image.
    displacements
        (n_rows, 3) float64 Å, whole box vectors: an image stands at its owner's position plus this.
    n_ghost
        (1,) int64, how many there are.  Rows beyond are at the place of atom 0 and nobody's neighbors; they keep the
        number of rows, and so the launches, the same from list to list.  If there are more ghosts than rows, images are
        missing.
    """

    owners: Array
    displacements: Array
    n_ghost: Array


class CudaGhosts:
    """Operations on local atoms and ghosts on a GPU; all arrays are in its memory.

    Positions have the same bits as those of `State.wrapped` and `Halo.build_ghosts` if multiples of the box vectors are
    exact, as in a deterministic run.

    Attributes
    ----------
    buffers
        The memory that it keeps on the GPU, that of images included.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.buffers = Buffers(device.zeros)
        self._text = kernel_text("ghosts.cu", WARP=device.warp, BLOCK=BLOCK)

    def wrap_(self, box: Box, positions: Array, images: Array) -> None:
        """Wrap positions (n, 3) into the box along its periodic directions, and count that in images (n, 3) int32."""
        n = len(positions)
        self._launch("wrap", n, _struct(box), np.int32(n), positions, images)

    def spatial_order(
        self,
        box: Box,
        positions: Array,
        cell: float,
        intervals: Sequence[tuple[float, float]] = WHOLE,
        last: Array | None = None,
    ) -> Array:
        """(n,) int32, the order of `sort_spatially` for the atoms of a brick, to be applied by `take`; see `order`.

        Parameters
        ----------
        cell
            Å, size of the cells.
        intervals
            The brick's faces along each direction, as fractional coordinates.
        last
            (m,) int32, atoms to be placed after all others.
        """
        low, high = np.array(intervals).T
        n_cells = np.maximum(1, ((high - low) * box.heights / cell).astype(np.int64))
        bins = np.array([(low, n_cells / (high - low), n_cells)], _BINS)
        n = len(positions)
        keys = self.buffers.get("keys", (n,), np.int64)
        self._launch("form_keys", n, _struct(box), bins, np.int32(n), positions, keys)
        n_keys = math.prod(n_cells.tolist())
        if last is not None:
            self._launch("set_keys", len(last), np.int32(len(last)), last, np.int64(n_keys), keys)
            n_keys += 1
        return self.order(keys, n_keys)

    def order(self, keys: Array, n_keys: int) -> Array:
        """(n,) int32, see `stable_order`; valid until the next order."""
        return stable_order(self.device, self.buffers, keys, n_keys)

    def outside(self, box: Box, positions: Array, intervals: Sequence[tuple[float, float]]) -> Array:
        """(n,) int32, 1 for positions (n, 3) outside of the intervals, else 0; see `Domain.outside`.

        Valid until the next call.
        """
        n = len(positions)
        marks = self.buffers.get("marks", (n,), np.int32)
        faces = np.array([tuple(np.transpose(intervals))], _FACES)
        self._launch("mark_outside", n, _struct(box), faces, np.int32(n), positions, marks)
        return marks

    def places(self, marks: Array) -> Array:
        """(m,) int32, the indices where marks (n,) int32 are 1; valid until the next call.  Waits for the GPU."""
        n = len(marks)
        offsets = self.buffers.get("offsets", (n + 1,), np.int64)
        running_sums(self.device, self.buffers, self._text, marks, offsets)
        places = self.buffers.get("places", (int(self.device.download(offsets[n:])[0]),), np.int32)
        self._launch("list_marked", n, np.int32(n), marks, offsets, places)
        return places

    def parts(self, types: Array, marks: Array, n_types: int) -> tuple[Array, NDArray[np.int64]]:
        """The order of atoms by type and then by mark (0 or 1), and their numbers.  Waits for the GPU.

        Parameters
        ----------
        types, marks
            (n,) int32.

        Returns
        -------
        (n,) int32, see `order`, and (n_types, 2) on the host.
        """
        n, get = len(types), self.buffers.get
        keys, counts = get("keys of parts", (n,), np.int32), get("parts", (2 * n_types,), np.int64)
        self.device.fill(counts, 0)
        self._launch("form_parts", n, np.int32(n), np.int32(2 * n_types), types, marks, keys, counts)
        return self.order(keys, 2 * n_types), self.device.download(counts).reshape(n_types, 2)

    def room(self, n_local: int, n_rows: int) -> Images:
        """Arrays for n_rows images of n_local atoms, to be set by `find_images`."""
        get = self.buffers.get
        owners, displacements = get("owners", (n_rows,), np.int32), get("displacements", (n_rows, 3), np.float64)
        return Images(owners, displacements, get("offsets", (n_local + 1,), np.int64)[n_local:])

    def find_images(self, box: Box, positions: Array, reach: float, images: Images) -> None:
        """Find the images within `reach` (Å) of the box of wrapped positions (n_local, 3), as `Halo.build_ghosts`.

        Does not wait; `images` must be the last result of `room`.
        """
        n, get = len(positions), self.buffers.get
        width = reach / box.heights
        hops = [math.ceil(w) if periodic else 0 for w, periodic in zip(width, box.periodic, strict=True)]
        where = _struct(box), np.array([(1.0 - width, 0.0 + width, hops)], _SHELL), np.int32(n), positions
        counts, offsets = get("counts", (n,), np.int32), get("offsets", (n + 1,), np.int64)
        self._launch("count_images", n, *where, counts)
        running_sums(self.device, self.buffers, self._text, counts, offsets)
        rows = np.int32(len(images.owners)), images.owners, images.displacements
        self._launch("list_images", n, *where, offsets, *rows)

    def take(self, array: Array, index: Array, out: Array) -> None:
        """Set `out` (n, …) to the rows of an array at index (n,) int32; a row's bytes must be a multiple of four."""
        n = len(index)
        words = math.prod(array.shape[1:]) * array.dtype.itemsize // 4
        self._launch("take", n * words, np.int64(n), np.int32(words), index, array, out)

    def displace(self, source: Array, index: Array | None, displacements: Array, ghosts: Array) -> None:
        """Set ghosts (n, 3) to source[index] + displacements (n, 3); without an index to source + displacements."""
        n = len(ghosts)
        self._launch("displace", 3 * n, np.int64(n), source, index, displacements, ghosts)

    def add(self, values: Array, index: Array, totals: Array) -> None:
        """Add values (n, 3) to totals (…, 3) at index (n,) int32, both int64: exact in any order."""
        n = len(values)
        self._launch("add_rows", 3 * n, np.int64(n), values, index, totals)

    def _launch(self, kernel: str, n: int, *arguments: object) -> None:
        """Launch a kernel with a thread for each of n elements."""
        if n:
            self.device.launch(self._text, kernel, blocks(n), BLOCK, *arguments)


def rounded_up(n: int) -> int:
    """n rounded up to a multiple of 64, or of a power of two that is at most an eighth of it."""
    grain = max(1 << n.bit_length() >> 4, 64)
    return -(-n // grain) * grain


def _struct(box: Box) -> NDArray:
    return np.array([(box.matrix.ravel(), box.inverse.ravel(), box.origin, box.periodic)], _BOX)


def memory_per_atom(ghosts: float) -> float:
    """Bytes of images and orders on the GPU for each local atom, with `ghosts` ghosts for each."""
    return 9 / 8 * (4 + 8 + (4 + 24) * ghosts + 8 + ORDER_BYTES)
