"""Frames that stay on a GPU, and the batches that are put together from them there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.core.errors import RunError
from dphpc.ops.card import BLOCK
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.structs import SYSTEM, struct
from dphpc.ops.workspace import Kind, Parcel, Workspace

Doubles = NDArray[np.float64]

SPACING = 2.0**-44
"""eV/Å (and eV, of virials) of which sums are whole multiples: 6e-14; they reach up to 524,288."""

PAIR_FORCE_LIMIT = 2.0**54 * SPACING
"""eV/Å (1,024): sums of hundreds of such forces are within 64 bits."""

FRAMES_SHARE = 0.5
"""Of the GPU's free memory for frames that stay there."""

JOIN_BLOCKS = 16
"""That put a frame into its batch."""

# The struct of kernels/cuda/training.cu.
_FRAME = struct(
    "p positions", "p types", "p offsets", "p indices", "p owners", "i8 n_local", "i8 n_all", "i8 n_pairs",
    "i8 first_local", "i8 first_ghost", "i8 first_pair",
)  # fmt: skip


class OwnedAtoms(Protocol):
    """A frame: local atoms, then images, whose owners are `owner` (n_ghost,); neighbors of the local atoms."""

    @property
    def positions(self) -> NDArray[np.float64]:
        """(n_all, 3) Å."""

    @property
    def types(self) -> NDArray[np.int32]:
        """(n_all,)."""

    @property
    def owner(self) -> NDArray[np.int32]:
        """(n_ghost,)."""

    @property
    def neighbors(self) -> Neighbors:
        """Rows of the local atoms."""


@dataclass(frozen=True)
class Results:
    """What a pass has for the host.

    Attributes
    ----------
    largest
        s̃ that the pass met, −∞ without pairs.
    energies
        (2, n) as `CardEnvironment.energies`.
    """

    largest: float
    energies: NDArray[np.floating]
    totals: NDArray[np.int64]
    n_local: int

    def exerted(self) -> tuple[Doubles, Doubles]:
        """Forces (n_local, 3) with those of images, and virials (n_frames, 3, 3).

        Raises
        ------
        RunError
            The force of a pair is beyond `PAIR_FORCE_LIMIT`.
        """
        if self.totals[-1]:
            raise RunError(f"the force of a pair of atoms is above {PAIR_FORCE_LIMIT:g} eV/Å or not a number")
        n_forces, numbers = 3 * self.n_local, self.totals[:-1] * np.float64(SPACING)
        forces: Doubles = numbers[:n_forces].reshape(-1, 3)
        virials: Doubles = numbers[n_forces:].reshape(-1, 3, 3)
        return forces, virials


@dataclass(frozen=True)
class CardEnvironment:
    """Where a batch's atoms are, on the GPU; batches of one shape have the same addresses.

    Attributes
    ----------
    n, n_local, n_frames
        Numbers of centers, of atoms and of frames.
    first
        (n_types + 1) where each type's centers begin; with `n_local` and `n_frames` the batch's shape.
    frames
        (n,) int32 that each center belongs to.
    owners
        (n_all,) int32: of local atoms themselves, of images the atoms that they are images of.
    pairs
        Room for whole numbers (n_pairs,) of the list's entries: interval, order and row.
    energies
        (2, n), to be set: of centers, and of centers without neighbors.
    largest, totals
        (n,) the largest s̃ of each center; forces, virials and whether one was too large, as whole numbers.
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

    @property
    def shape(self) -> tuple[int, ...]:
        """Batches of which have the same addresses."""
        return self.n_local, self.n_frames, *self.first

    @property
    def totals(self) -> Array:
        """See the class."""
        return self.results.arrays[0]

    @property
    def largest(self) -> Array:
        """See the class."""
        return self.results.arrays[1]

    @property
    def energies(self) -> Array:
        """See the class."""
        return self.results.arrays[2]

    def download(self) -> Results:
        """The results, when they are there."""
        totals, largest, energies = self.results.download()
        return Results(float(largest.max(initial=-np.inf)), energies, totals, self.n_local)


@dataclass(frozen=True)
class _Resident:
    """A frame on the GPU; with its arrays on the host, so that no others get their identities."""

    frame: OwnedAtoms
    arrays: tuple[Array, ...]
    addresses: tuple[int, ...]
    sizes: tuple[int, int, int]  # local atoms, atoms, pairs

    @property
    def nbytes(self) -> int:
        """Of the GPU's memory."""
        return sum(int(a.nbytes) for a in self.arrays)


class CardFrames:
    """Frames by their arrays' identity; those that were not used for long give way where the memory would not do.

    Parameters
    ----------
    text
        Of the kernels of training.cu.
    """

    def __init__(self, device: Device, work: Workspace, text: str, n_types: int, dtype: np.dtype) -> None:
        self._device, self._work, self._text, self._n_types, self._dtype = device, work, text, n_types, dtype
        self._frames: OrderedDict[tuple[int, int, int], _Resident] = OrderedDict()
        self.nbytes, self.most_bytes = 0, int(FRAMES_SHARE * device.free_memory())

    def joined(self, frames: Sequence[OwnedAtoms], centers: NDArray[np.int32]) -> CardEnvironment:
        """The frames side by side, as `dphpc.train.data.batch.join` has them, with centers ordered by type."""
        work, resident = self._work, [self._resident(frame) for frame in frames]
        sizes = np.array([frame.sizes for frame in resident])
        n_local, n_all, n_pairs = (int(n) for n in sizes.sum(axis=0))
        types = np.concatenate([f.types[:n] for f, n in zip(frames, sizes[:, 0], strict=True)])
        first = np.searchsorted(types[centers], np.arange(self._n_types + 1))
        table = self._table(resident, sizes, n_local)
        local = np.arange(len(frames), dtype=np.int32).repeat(sizes[:, 0])
        values = first, centers, local[centers], table  # whose sizes are the shape's
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
        n = len(centers)
        kinds: list[Kind] = [
            ((3 * n_local + 9 * len(frames) + 1,), np.int64),
            ((n,), np.float64),
            ((2, n), self._dtype),
        ]
        results, pairs = Parcel(work, "results", kinds), (intervals, order, rows)
        rows_of = tuple(first.tolist())
        return CardEnvironment(
            n, n_local, len(frames), rows_of, system, frames_of, place[4], first_rows, pairs, results
        )

    def _table(self, resident: list[_Resident], sizes: NDArray[np.int64], n_local: int) -> NDArray[np.uint8]:
        """The structs of frames of these numbers of local atoms, atoms and pairs, as bytes."""
        before = np.cumsum(sizes, axis=0) - sizes
        before[:, 1] += n_local - before[:, 0]  # images come behind all local atoms
        rows = [(*frame.addresses, *frame.sizes, *to) for frame, to in zip(resident, before.tolist(), strict=True)]
        return np.array(rows, _FRAME).view(np.uint8)

    def _resident(self, frame: OwnedAtoms) -> _Resident:
        """A frame whose arrays are uploaded once."""
        key = id(frame.positions), id(frame.neighbors), id(frame.owner)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        n = frame.neighbors
        sizes = len(n.offsets) - 1, len(frame.types), len(n.indices)
        owners = np.concatenate((np.arange(sizes[0], dtype=np.int32), frame.owner))
        arrays = tuple(self._work.new(a) for a in (frame.positions, frame.types, n.offsets, n.indices, owners))
        there = _Resident(frame, arrays, tuple(map(self._work.address, arrays)), sizes)
        if sizes[2]:  # others are made for one batch
            self._frames[key] = there
            self.nbytes += there.nbytes
        while len(self._frames) > 1 and self.nbytes > self.most_bytes:
            self.nbytes -= self._frames.popitem(last=False)[1].nbytes
        return there
