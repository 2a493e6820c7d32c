"""Periodic images and the ways between atoms and their ghosts, in a GPU's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device
from dphpc.ops.card import BLOCK, ORDER_BYTES, blocks, running_sums, stable_order
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.structs import struct
from dphpc.ops.workspace import NULL

WHOLE = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
"""The faces of a brick that is the box."""

# The structs of kernels/cuda/ghosts.cu.
_BOX = struct("9f8 matrix", "9f8 inverse", "3f8 origin", "3i4 periodic")
_SHELL = struct("3f8 near_high", "3f8 near_low", "3i4 hops")
_FACES = struct("3f8 low", "3f8 high")
_BINS = struct("3f8 low", "3f8 scale", "3i8 n")


@dataclass(frozen=True)
class Images:
    """Ghosts of one rank that has the whole box, by owner; in the memory of `CudaGhosts`, which the next overwrite.

    Attributes
    ----------
    owners
        (n_rows,) int32, the local atom that each is an image of.
    displacements
        (n_rows, 3) float64 Å, whole box vectors: an image stands at its owner's position plus this.
    n_ghost
        (1,) int64, how many there are.  Rows beyond, which stand where atom 0 does and are nobody's neighbors, let the
        next list have as many, so that what is launched for all of them is the same; where there are more than rows,
        images are missing.
    """

    owners: Array
    displacements: Array
    n_ghost: Array


class CudaGhosts:
    """What is done with local atoms and ghosts on a GPU; all arrays are in its memory.

    Positions have the bits that `State.wrapped` and `Halo.build_ghosts` give them where whole multiples of the box's
    vectors are exact, as in a deterministic run.

    Attributes
    ----------
    buffers
        What it keeps on the GPU, the images included.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.buffers = Buffers(device.zeros)
        self._text = kernel_text("ghosts.cu", WARP=device.warp, BLOCK=BLOCK)

    def wrap_(self, box: Box, positions: Array, images: Array) -> None:
        """Move positions (n, 3) into the box along its periodic directions and count that in images (n, 3) int32."""
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
        """(n,) int32, the order that `sort_spatially` gives the atoms of a brick: `take` applies it; see `order`.

        Parameters
        ----------
        cell
            Å.
        intervals
            The brick's faces along each direction, as fractional coordinates.
        last
            (m,) int32, atoms that come behind all others.
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
        """(n,) int32, the atoms of key 0, then of key 1, …, as `stable_order`; the next order takes its memory."""
        return stable_order(self.device, self.buffers, keys, n_keys)

    def outside(self, box: Box, positions: Array, intervals: Sequence[tuple[float, float]]) -> Array:
        """(n,) int32, 1 for positions (n, 3) that are outside of the intervals as `Domain.outside` has it, else 0.

        The next takes its memory.
        """
        n = len(positions)
        marks = self.buffers.get("marks", (n,), np.int32)
        faces = np.array([tuple(np.transpose(intervals))], _FACES)
        self._launch("mark_outside", n, _struct(box), faces, np.int32(n), positions, marks)
        return marks

    def places(self, marks: Array) -> Array:
        """(m,) int32, ascending: where marks (n,) int32 are 1; the next take its memory.  Waits for the GPU."""
        n = len(marks)
        offsets = self.buffers.get("offsets", (n + 2,), np.int64)
        running_sums(self.device, self.buffers, self._text, marks, offsets)
        places = self.buffers.get("places", (int(self.device.download(offsets[n : n + 1])[0]),), np.int32)
        self._launch("list_marked", n, np.int32(n), marks, offsets, places)
        return places

    def parts(self, types: Array, marks: Array, n_types: int) -> tuple[Array, NDArray[np.int64]]:
        """The order of atoms by type and, of a type, by marks of 0 and 1; and how many there are.  Waits for the GPU.

        Parameters
        ----------
        types, marks
            (n,) int32.

        Returns
        -------
        (n,) int32, see `order`, and (n_types, 2) of the host.
        """
        n = len(types)
        keys, counts = (
            self.buffers.get("keys of parts", (n,), np.int32),
            self.buffers.get("parts", (2 * n_types,), np.int64),
        )
        self.device.fill(counts, 0)
        self._launch("form_parts", n, np.int32(n), np.int32(2 * n_types), types, marks, keys, counts)
        return self.order(keys, 2 * n_types), self.device.download(counts).reshape(n_types, 2)

    def room(self, n_local: int, n_rows: int) -> Images:
        """Room for images of so many atoms, which `find_images` is to find."""
        get = self.buffers.get
        owners, displacements = get("owners", (n_rows,), np.int32), get("displacements", (n_rows, 3), np.float64)
        return Images(owners, displacements, get("offsets", (n_local + 2,), np.int64)[n_local : n_local + 1])

    def find_images(self, box: Box, positions: Array, reach: float, images: Images) -> None:
        """The images within `reach` (Å) of the box, of positions (n_local, 3) in it: those of `Halo.build_ghosts`.

        Nothing is waited for; `images` is the last `room`.
        """
        n, get = len(positions), self.buffers.get
        width = reach / box.heights
        hops = [math.ceil(w) if periodic else 0 for w, periodic in zip(width, box.periodic, strict=True)]
        where = _struct(box), np.array([(1.0 - width, 0.0 + width, hops)], _SHELL), np.int32(n), positions
        counts, offsets = get("counts", (n,), np.int32), get("offsets", (n + 2,), np.int64)
        self._launch("count_images", n, *where, counts)
        running_sums(self.device, self.buffers, self._text, counts, offsets)
        rows = np.int32(len(images.owners)), images.owners, images.displacements
        self._launch("list_images", n, *where, offsets, *rows)

    def take(self, array: Array, index: Array, out: Array) -> None:
        """`out` (n, …) gets the rows of an array (…) at index (n,) int32; a row's bytes are a multiple of four."""
        n = len(index)
        words = math.prod(array.shape[1:]) * array.dtype.itemsize // 4
        self._launch("take", n * words, np.int64(n), np.int32(words), index, array, out)

    def displace(self, source: Array, index: Array | None, displacements: Array, ghosts: Array) -> None:
        """Ghosts (n, 3) get source[index] + displacements (n, 3); without an index the source's rows are theirs."""
        n = len(ghosts)
        self._launch("displace", 3 * n, np.int64(n), source, NULL if index is None else index, displacements, ghosts)

    def add(self, values: Array, index: Array, totals: Array) -> None:
        """Add values (n, 3) to totals (…, 3) at index (n,) int32, both int64: exact in any order."""
        n = len(values)
        self._launch("add_rows", 3 * n, np.int64(n), values, index, totals)

    def _launch(self, kernel: str, n: int, *arguments: object) -> None:
        """With a thread for each of n."""
        if n:
            self.device.launch(self._text, kernel, blocks(n), BLOCK, *arguments)


def rounded_up(n: int) -> int:
    """A multiple of a power of two that is at most an eighth of it, or of 64."""
    grain = max(1 << n.bit_length() >> 4, 64)
    return -(-n // grain) * grain


def _struct(box: Box) -> NDArray:
    return np.array([(box.matrix.ravel(), box.inverse.ravel(), box.origin, box.periodic)], _BOX)


def memory_per_atom(ghosts: float) -> float:
    """Bytes that images and orders take on the GPU for each local atom with so many `ghosts`, beside the state's."""
    return 9 / 8 * (4 + 8 + (4 + 24) * ghosts + 8 + ORDER_BYTES)
