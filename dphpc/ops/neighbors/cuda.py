"""Neighbor search in linear time by cells, on a GPU: positions and list stay in its memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device
from dphpc.ops.gpu import BLOCK, blocks, running_sums
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.neighbors.contract import position_not_finite
from dphpc.ops.structs import struct

ROOM = 1024
"""Longest row of the list that is sorted in shared memory (16 bytes an entry); longer ones are sorted in place."""

MOST_BLOCKS = 1024
"""Most blocks that search for the extent of the system, so that few of them wait for one another."""

# The structs of kernels/cuda/neighbors.cu.
_ATOMS = struct("p positions", "p types", "p ids", "p n_ghost", "i4 n_rows", "i4 n_local")
_GRID = struct("3f8 low", "3f8 inverse_edge", "3i4 shape", "3i4 span")
_CELLS = struct("p count", "p start", "p cell_of", "p atom", "p x", "p y", "p z")
_ROWS = struct("p offsets", "p indices", "i8 capacity", "f8 limit")

Grid = tuple[NDArray, int]
"""Cells as the kernels take them, and their number."""


@dataclass(frozen=True)
class DeviceNeighbors:
    """A neighbor list in a GPU's memory; valid until the next one is built.

    Attributes
    ----------
    offsets, indices, reach
        As in `contract.Neighbors`, in the same order.
    n_pairs
        Length of the list.
    """

    offsets: Array
    indices: Array
    reach: float
    n_pairs: int


class CudaNeighbors:
    """Builds neighbor lists, in memory that it keeps from one to the next.

    The list depends neither on the order in which blocks run nor on the GPU; on the CPU the instruction set may decide
    about pairs whose distance is `reach` to the last digit.

    Attributes
    ----------
    buffers
        The memory that it keeps on the GPU, that of the list included.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.buffers = Buffers(device.zeros)
        self._text = kernel_text("neighbors.cu", WARP=device.warp, BLOCK=BLOCK, ROOM=ROOM)

    def build(
        self, positions: Array, types: Array, ids: Array, n_local: int, n_all: int, reach: float
    ) -> DeviceNeighbors:
        """The list of all pairs nearer than `reach` (Å); see `contract.BuildNeighbors`.

        The arrays (n_all, 3) float64, (n_all,) int32 and (n_all,) int64 on the GPU may be longer.  The host waits
        twice: for the system's extent, and for the length of the list.

        Raises
        ------
        RunError
            A position is not finite; the message names the atom's place in `positions`.
        """
        assert reach > 0.0 and 0 <= n_local <= n_all < 2**31
        places = positions, types, ids
        grid = self.grid(*places, n_local, n_all, reach)
        while True:
            n_pairs = self.start(*places, n_local, n_all, reach, grid)
            found = self.found(n_local, reach, int(self.device.download(n_pairs)[0]))
            if found:
                return found

    def start(
        self,
        positions: Array,
        types: Array,
        ids: Array,
        n_local: int,
        n_rows: int,
        reach: float,
        grid: Grid,
        n_ghost: Array | None = None,
    ) -> Array:
        """Launch the kernels that build the list, without waiting; returns its length, (1,) int64 on the GPU.

        With `n_ghost`, (1,) int64 on the GPU, rows after so many ghosts are no atoms.  Any grid gives the same list.
        """
        device, text, get, (cells_of, n_cells) = self.device, self._text, self.buffers.get, grid
        offsets, counts = get("offsets", (n_local + 1,), np.int64), get("counts", (n_local,), np.int32)
        atoms = self._atoms(positions, types, ids, n_local, n_rows, n_ghost)
        count, start = get("count", (n_cells,), np.int32), get("start", (n_cells + 1,), np.int64)
        cell_of, atom = get("cell_of", (n_rows,), np.int32), get("atom", (n_rows,), np.int32)
        x, y, z = get("places", (3, n_rows), np.float64)
        cells = np.array([tuple(map(device.address, (count, start, cell_of, atom, x, y, z)))], _CELLS)
        if n_local:
            device.fill(count, 0)
            device.launch(text, "count_cells", blocks(n_rows), BLOCK, atoms, cells_of, cells)
            running_sums(device, self.buffers, text, count, start)
            device.launch(text, "fill_cells", blocks(n_rows), BLOCK, atoms, cells)
            rows = np.array([(device.address(offsets), 0, 0, reach * reach)], _ROWS)
            device.launch(text, "count_rows", n_rows, BLOCK, atoms, cells_of, cells, rows, counts)
        running_sums(device, self.buffers, text, counts, offsets)
        # Fill the last list's memory before the new length is known on the host: it seldom is longer.
        kept = self.buffers.capacity("indices")
        if kept and n_local:
            rows["indices"], rows["capacity"] = device.address(self.make_room(kept)), kept
            device.launch(text, "fill_rows", n_rows, BLOCK, atoms, cells_of, cells, rows)
        return offsets[n_local:]

    def found(self, n_local: int, reach: float, n_pairs: int) -> DeviceNeighbors | None:
        """The list that was started last; None if its memory was too small, which is now enlarged for another start."""
        if n_pairs > self.buffers.capacity("indices"):
            self.make_room(n_pairs)
            return None
        indices = self.make_room(n_pairs)
        offsets = self.buffers.get("offsets", (n_local + 1,), np.int64)
        return DeviceNeighbors(offsets, indices, reach, n_pairs)

    def make_room(self, n_pairs: int) -> Array:
        """Memory for a list of this length."""
        return self.buffers.get("indices", (n_pairs,), np.int32)

    def grid(self, positions: Array, types: Array, ids: Array, n_local: int, n_all: int, reach: float) -> Grid:
        """The grid of cells over the atoms' extent, for which the host waits.

        Raises
        ------
        RunError
            See `build`.
        """
        if n_all == 0:
            return choose_grid(np.zeros(3), np.zeros(3), 0, reach)
        bounds = self.buffers.get("bounds", (7,), np.uint64)
        bounds.fill(np.uint64(2**64 - 1))
        atoms = self._atoms(positions, types, ids, n_local, n_all)
        self.device.launch(self._text, "find_bounds", min(blocks(n_all), MOST_BLOCKS), BLOCK, atoms, bounds)
        found = self.device.download(bounds)
        if found[6] < n_all:
            raise position_not_finite(int(found[6]), n_local)
        ends = np.concatenate((found[:3], ~found[3:6]))
        negative = ends < 2**63  # as `ordered` of neighbors.cu writes them
        ends = np.where(negative, ~ends, ends ^ np.uint64(2**63)).view(np.float64)
        return choose_grid(ends[:3], ends[3:], n_all, reach)

    def _atoms(
        self, positions: Array, types: Array, ids: Array, n_local: int, n_rows: int, n_ghost: Array | None = None
    ) -> NDArray:
        arrays = map(self.device.address, (positions, types, ids))
        counted = 0 if n_ghost is None else self.device.address(n_ghost)
        return np.array([(*arrays, counted, n_rows, n_local)], _ATOMS)


def choose_grid(low: NDArray[np.float64], high: NDArray[np.float64], n_all: int, reach: float) -> Grid:
    """The grid over the atoms' extent, chosen as in kernels/native/neighbors.cpp, and its number of cells."""
    length, edge = high - low, 0.5 * reach
    # In a huge box of thin gas, cells are enlarged so that they do not outnumber the atoms by far.
    while np.maximum(1.0, np.floor(length / edge)).prod() > min(4.0 * n_all + 64.0, 2.0**31 - 1.0):
        edge *= 1.25
    shape = np.maximum(1, (length / edge).astype(np.int64))
    inverse_edge = np.zeros(3)
    np.divide(shape, length, out=inverse_edge, where=shape > 1)
    span = np.minimum(np.ceil(reach * inverse_edge).astype(np.int64), shape)
    return np.array([(low, inverse_edge, shape, span)], _GRID), int(shape.prod())


def memory_per_atom(neighbors: float, ghosts: float) -> float:
    """Bytes that a search keeps on the GPU for each local atom, without positions, types and ids.

    Parameters
    ----------
    neighbors, ghosts
        Numbers of list entries and of ghosts for each local atom.
    """
    per_cell = neighbors / (4.0 / 3.0 * np.pi * 2.0**3)  # atoms in a cube of half the reach
    cells = min(4.0, 1.0 / max(per_cell, 1e-3))  # for each atom
    head_room = 9 / 8
    return head_room * ((1.0 + ghosts) * (24 + 4 + 4 + 12 * cells) + 8 + 4 + 4 * neighbors)
