"""Frames that are kept on a GPU, and batches that are joined from them there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.device import Array, Device
from dphpc.core.errors import RunError
from dphpc.ops.gpu import BLOCK
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.structs import SYSTEM, struct
from dphpc.ops.workspace import Parcel, Workspace

SPACING = 2.0**-44
"""Spacing of forces (eV/Å) and virials (eV), 6e-14; sums reach up to 524,288."""

PAIR_FORCE_LIMIT = 2.0**54 * SPACING
"""Greatest force of a pair, 1,024 eV/Å: sums of hundreds fit into 64 bits."""

FRAMES_SHARE = 0.5
"""Fraction of the GPU's free memory for frames that are kept there."""

JOIN_BLOCKS = 16
"""Number of blocks that copy a frame into a batch."""

# The struct of kernels/cuda/training.cu.
_FRAME = struct(
    "p positions", "p types", "p offsets", "p indices", "p owners", "i8 n_local", "i8 n_all", "i8 n_pairs",
    "i8 first_local", "i8 first_ghost", "i8 first_pair",
)  # fmt: skip


class OwnedAtoms(Protocol):
    """A frame: local atoms, then images of the atoms `owners`, and the local atoms' neighbors."""

    @property
    def positions(self) -> NDArray[np.float64]:
        """(n_all, 3) Å."""

    @property
    def types(self) -> NDArray[np.int32]:
        """(n_all,) int32."""

    @property
    def owners(self) -> NDArray[np.int32]:
        """(n_ghost,) int32, the local atom of which each ghost is an image."""

    @property
    def neighbors(self) -> Neighbors:
        """Rows of the local atoms."""


@dataclass(frozen=True)
class Results:
    """The results of a forward pass, on the host.

    Attributes
    ----------
    largest
        The largest s̃, −∞ without pairs.
    energies
        (2, n), as `GpuEnvironment.energies`.
    """

    largest: float
    energies: NDArray[np.floating]
    totals: NDArray[np.int64]
    n_local: int

    def exerted(self) -> tuple[Doubles, Doubles]:
        """Forces (n_local, 3), those on images included, and virials (n_frames, 3, 3).

        Raises
        ------
        RunError
            The force of a pair exceeds `PAIR_FORCE_LIMIT`.
        """
        if self.totals[-1]:
            raise RunError(f"the force of a pair of atoms is above {PAIR_FORCE_LIMIT:g} eV/Å or not a number")
        n_forces, numbers = 3 * self.n_local, self.totals[:-1] * np.float64(SPACING)
        forces: Doubles = numbers[:n_forces].reshape(-1, 3)
        virials: Doubles = numbers[n_forces:].reshape(-1, 3, 3)
        return forces, virials


@dataclass(frozen=True)
class GpuEnvironment:
    """A batch's atoms and results on the GPU; batches of one shape have the same addresses.

    Attributes
    ----------
    n, n_local, n_frames
        Numbers of centers, local atoms and frames.
    first
        (n_types + 1) where each type's centers begin; with `n_local` and `n_frames` the batch's shape.
    frames
        (n,) int32, the frame of each center.
    owners
        (n_all,) int32, the local atom itself, or the atom of which it is an image.
    pairs
        Scratch arrays (n_pairs,) int32 for the list's entries: interval, order and row.
    results
        The following arrays, side by side.
    totals, largest
        Forces, virials and a flag for too large forces, as int64; (n,) largest s̃ of each center.
    energies
        (2, n), to be set: energies of centers, and of centers without neighbors.
    """

    n: int
    n_local: int
    n_frames: int
    first: tuple[int, ...]
    system: NDArray
    frames: Array
    owners: Array
    first_rows: Array
    pairs: tuple[Array, Array, Array]
    results: Parcel
    totals: Array
    largest: Array
    energies: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Batches with equal shape have the same addresses."""
        return self.n_local, self.n_frames, *self.first

    def download(self) -> Results:
        """Wait for the results and copy them to the host."""
        totals, largest, energies = self.results.download()
        return Results(float(largest.max(initial=-np.inf)), energies, totals, self.n_local)


@dataclass(frozen=True)
class _Resident:
    """A frame on the GPU; it refers to the host's arrays, so that their ids are not reused."""

    frame: OwnedAtoms
    arrays: tuple[Array, ...]
    addresses: tuple[int, ...]
    sizes: tuple[int, int, int]  # local atoms, atoms, pairs

    @property
    def nbytes(self) -> int:
        """Bytes of GPU memory."""
        return sum(int(a.nbytes) for a in self.arrays)


class GpuFrames:
    """Frames on the GPU, identified by their arrays' ids; the least recently used are dropped if memory runs short.

    Parameters
    ----------
    text
        Source of the kernels in training.cu.
    """

    def __init__(self, device: Device, work: Workspace, text: str, n_types: int, dtype: np.dtype) -> None:
        self._device, self._work, self._text, self._n_types, self._dtype = device, work, text, n_types, dtype
        self._frames: OrderedDict[tuple[int, int, int], _Resident] = OrderedDict()
        self.nbytes, self.most_bytes = 0, int(FRAMES_SHARE * device.free_memory())

    def joined(self, frames: Sequence[OwnedAtoms], centers: NDArray[np.int32]) -> GpuEnvironment:
        """The batch of these frames, in the order of `dphpc.train.data.batch.join`, with centers ordered by type."""
        work, resident = self._work, [self._resident(frame) for frame in frames]
        sizes = np.array([frame.sizes for frame in resident])
        n_local, n_all, n_pairs = (int(n) for n in sizes.sum(axis=0))
        types = np.concatenate([f.types[:n] for f, n in zip(frames, sizes[:, 0], strict=True)])
        first = np.searchsorted(types[centers], np.arange(self._n_types + 1))
        table = self._table(resident, sizes, n_local)
        local = np.arange(len(frames), dtype=np.int32).repeat(sizes[:, 0])
        values = first, centers, local[centers], table  # their sizes follow from the shape
        given = Parcel(work, "batch", [(a.shape, a.dtype) for a in values])
        given.upload(*values)
        first_rows, atoms, frames_of, table_there = given.arrays
        shapes = ((n_all, 3), np.float64), ((n_all,), np.int32), ((n_local + 1,), np.int64), ((n_pairs,), np.int32)
        names = "positions", "types", "offsets", "indices"
        place = [work.buffer(name, *shape) for name, shape in zip(names, shapes, strict=True)]
        place.append(work.buffer("owners", (n_all,), np.int32))
        grid = len(frames) * JOIN_BLOCKS
        self._device.launch(self._text, "join_frames", grid, BLOCK, table_there, np.int32(JOIN_BLOCKS), *place)
        system = np.array([tuple(map(work.address, (*place[:4], atoms)))], SYSTEM)
        intervals, order, rows = (work.buffer(name, (n_pairs,), np.int32) for name in ("intervals", "order", "rows"))
        n, n_frames = len(centers), len(frames)
        totals = (3 * n_local + 9 * n_frames + 1,), np.int64
        results = Parcel(work, "results", [totals, ((n,), np.float64), ((2, n), self._dtype)])
        return GpuEnvironment(
            n, n_local, n_frames, tuple(first.tolist()), system, frames_of, place[4], first_rows,
            (intervals, order, rows), results, *results.arrays,
        )  # fmt: skip

    def _table(self, resident: list[_Resident], sizes: NDArray[np.int64], n_local: int) -> NDArray[np.uint8]:
        """Structs `_FRAME` of frames with these numbers of local atoms, atoms and pairs, as bytes."""
        before = np.cumsum(sizes, axis=0) - sizes
        before[:, 1] += n_local - before[:, 0]  # images come behind all local atoms
        rows = [(*frame.addresses, *frame.sizes, *to) for frame, to in zip(resident, before.tolist(), strict=True)]
        return np.array(rows, _FRAME).view(np.uint8)

    def _resident(self, frame: OwnedAtoms) -> _Resident:
        """A frame whose arrays are uploaded once."""
        key = id(frame.positions), id(frame.neighbors), id(frame.owners)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        n = frame.neighbors
        sizes = len(n.offsets) - 1, len(frame.types), len(n.indices)
        owners = np.concatenate((np.arange(sizes[0], dtype=np.int32), frame.owners))
        arrays = tuple(self._work.new(a) for a in (frame.positions, frame.types, n.offsets, n.indices, owners))
        there = _Resident(frame, arrays, tuple(map(self._work.address, arrays)), sizes)
        if sizes[2]:  # a frame without pairs is made for one batch only
            self._frames[key] = there
            self.nbytes += there.nbytes
        while len(self._frames) > 1 and self.nbytes > self.most_bytes:
            self.nbytes -= self._frames.popitem(last=False)[1].nbytes
        return there
