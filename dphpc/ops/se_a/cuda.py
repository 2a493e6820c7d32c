"""The `se_e2_a` operations in training on a card; what they compute is in `contract.SeAOps`.

Results are arrays of the card and stay until the operation is called again.  Forces are whole multiples of a spacing,
gradients by the table are summed in an order that repeats: a step has the same bits whenever it is made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.core.errors import RunError
from dphpc.model.radial_table import Grid
from dphpc.ops.energy.cuda import BLOCK
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.se_a.contract import Environment, SeAParameters
from dphpc.ops.structs import EXERTED, SYSTEM, descriptor_struct, grid_structs, struct
from dphpc.ops.workspace import NULL, REAL, Workspace

Doubles = NDArray[np.float64]

SPACING = 2.0**-44
"""eV/Å (and eV, of virials) of which sums are whole multiples: 6e-14."""

PAIR_FORCE_LIMIT = 2.0**54 * SPACING
"""eV/Å (1,024): sums of hundreds of such forces are within 64 bits."""

MOST_SHARES = 32
"""Blocks that share an interval's pairs: of water's in a batch of 16, some 150 each where they are most."""

SHARED_BYTES = 2**28
"""Of their partial sums at most; with larger tables there are fewer."""

FRAMES_SHARE = 0.5
"""Of the card's free memory for frames that stay there."""

JOIN_BLOCKS = 16
"""That put a frame into its batch."""

# The structs of kernels/cuda/training.cu.
_MOTION = struct("p direction", "p strain", "p owners")
_FRAME = struct(
    "p positions", "p types", "p offsets", "p indices", "p owners", "i8 n_local", "i8 n_all", "i8 n_pairs",
    "i8 first_local", "i8 first_ghost", "i8 first_pair",
)  # fmt: skip
_SORTED = struct("p order", "p rows", "p starts", "i4 n_intervals", "i4 n_shares")


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
class CardEnvironment:
    """Where a batch's atoms are, on the card.

    Attributes
    ----------
    n, n_local, n_places
        Numbers of centers, of atoms and of entries of the neighbor list.
    place
        Positions, types, offsets and indices of the list, and owners (n_all,) int32: of local atoms themselves, of
        images the atoms that they are images of.
    first_rows
        (n_types + 1,) int64: where each type's centers begin.
    """

    n: int
    n_local: int
    n_places: int
    system: NDArray
    place: tuple[Array, ...]
    first_rows: Array

    @property
    def owners(self) -> Array:
        """See `place`."""
        return self.place[4]


@dataclass(frozen=True)
class Described:
    """A descriptor with its present table, on the card: `coefficients` and `empty` as those of `contract.Embedding`."""

    coefficients: Array
    empty: Array
    struct: NDArray
    kept: tuple[Array, ...]  # what else the struct points to

    @property
    def n_intervals(self) -> int:
        """Of all tables."""
        return int(self.coefficients.shape[0] * self.coefficients.shape[1])


class CudaSeA:
    """The operations for one model.

    Parameters
    ----------
    channels, axis, n_types, dtype
        Of the descriptor.
    """

    def __init__(self, device: Device, channels: int, axis: int, n_types: int, dtype: type) -> None:
        self.device, self.channels, self.axis = device, channels, axis
        self.n_types, self.dtype = n_types, np.dtype(dtype)
        self._work = Workspace(device)
        self._frames: OrderedDict[tuple[int, int, int], tuple[OwnedAtoms, tuple[Array, ...]]] = OrderedDict()
        self._frames_bytes, self._most_bytes = 0, int(FRAMES_SHARE * device.free_memory())
        self._text = kernel_text(
            "training.cu", Real=REAL[self.dtype], CHANNELS=channels, AXIS=axis, N_TYPES=n_types, WARP=device.warp,
            BLOCK=BLOCK,
        )  # fmt: skip

    def described(self, p: SeAParameters, grids: Sequence[Grid], coefficients: Array, empty: Array) -> Described:
        """The descriptor with tables on these grids; their arrays may change, and stay where they are."""
        kept = tuple(self._work.new(a) for a in (p.sel, p.davg, 1.0 / p.dstd, p.network, p.flags, grid_structs(grids)))
        pointers = [self._work.address(a) for a in (*kept, coefficients, empty)]
        return Described(coefficients, empty, descriptor_struct(p, pointers, coefficients.shape[1]), kept)

    def environment(self, env: Environment, frames: Sequence[OwnedAtoms]) -> CardEnvironment:
        """Atoms whose centers stand in the order of their types.

        They are those of the frames side by side.  Frames stay on the card, and are there when their arrays come again.
        """
        work, n_local, n_pairs = self._work, len(env.neighbors.offsets) - 1, len(env.neighbors.indices)
        first = np.searchsorted(env.types[env.centers], np.arange(self.n_types + 1))
        resident = [self._resident(frame) for frame in frames]
        place = resident[0] if len(frames) == 1 else self._joined(frames, resident, n_local, len(env.types), n_pairs)
        arrays = *place[:4], work.up("centers", env.centers, np.int32)
        system = np.array([tuple(map(work.address, arrays))], SYSTEM)
        first_rows = work.up("first_rows", first.astype(np.int64), np.int64)
        return CardEnvironment(len(env.centers), n_local, n_pairs, system, place, first_rows)

    def _resident(self, frame: OwnedAtoms) -> tuple[Array, ...]:
        """A frame's arrays, uploaded once; the least recently used give way where the memory would not do."""
        key = id(frame.positions), id(frame.neighbors), id(frame.owner)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key][1]
        n = frame.neighbors
        owners = np.concatenate((np.arange(len(n.offsets) - 1, dtype=np.int32), frame.owner))
        arrays = tuple(self._work.new(a) for a in (frame.positions, frame.types, n.offsets, n.indices, owners))
        if len(n.indices):  # others are made for one batch
            self._frames[key] = frame, arrays  # with the frame, so that no other gets its arrays' identities
            self._frames_bytes += _nbytes(arrays)
        while len(self._frames) > 1 and self._frames_bytes > self._most_bytes:
            self._frames_bytes -= _nbytes(self._frames.popitem(last=False)[1][1])
        return arrays

    def _joined(
        self, frames: Sequence[OwnedAtoms], resident: list[tuple[Array, ...]], n_local: int, n_all: int, n_pairs: int
    ) -> tuple[Array, ...]:
        """The frames' arrays side by side."""
        sizes = np.array([(len(f.neighbors.offsets) - 1, len(f.types), len(f.neighbors.indices)) for f in frames])
        before = np.cumsum(sizes, axis=0) - sizes
        rows = [
            (*map(self._work.address, arrays), *size, local, n_local + n_all_before - local, pair)
            for arrays, size, (local, n_all_before, pair) in zip(resident, sizes, before, strict=True)
        ]
        table = self._work.up("frames", np.array(rows, _FRAME).view(np.uint8), np.uint8)
        shapes = ((n_all, 3), np.float64), ((n_all,), np.int32), ((n_local + 1,), np.int64), ((n_pairs,), np.int32)
        names = "positions", "types", "offsets", "indices"
        joined = [self._work.buffer(name, *shape) for name, shape in zip(names, shapes, strict=True)]
        joined.append(self._work.buffer("owners", (n_all,), np.int32))
        self._launch("join_frames", len(frames) * JOIN_BLOCKS, table, np.int32(JOIN_BLOCKS), *joined)
        return tuple(joined)

    # -- moments -------------------------------------------------------------------------------------------------

    def moments(self, env: CardEnvironment, d: Described) -> Array:
        """A (n, 4, M); `largest` tells how far its arguments go."""
        result, self._largest = self._moments("moments", env.n), self._work.buffer("largest", (env.n,), np.float64)
        self._free = self._work.buffer("free", (env.n, self.n_types), np.int32)
        self._launch("moments", env.n, env.system, d.struct, result, self._largest, self._free)
        return result

    def largest(self) -> float:
        """The largest s̃ that the last `moments` met, −∞ without pairs."""
        return float(self.device.download(self._largest).max(initial=-np.inf))

    def motion(self, env: CardEnvironment, direction: Doubles, strain: Doubles) -> NDArray:
        """What `tangent` and `table_adjoint` follow: d of local atoms (n_local, 3), strains of centers (n, 3, 3)."""
        arrays = self._work.up("direction", direction, np.float64), self._work.up("strain", strain, np.float64)
        return np.array([tuple(map(self._work.address, (*arrays, env.owners)))], _MOTION)

    def tangent(self, env: CardEnvironment, d: Described, motion: NDArray) -> Array:
        """Ȧ (n, 4, M)."""
        result = self._moments("tangent", env.n)
        self._launch("tangent", env.n, env.system, d.struct, motion, result)
        return result

    def forces(self, env: CardEnvironment, d: Described, moments_adjoint: Array) -> tuple[Doubles, Doubles]:
        """Forces (n_local, 3) with those of images, and centers' virials (n, 3, 3), on the host.

        Raises
        ------
        RunError
            The force of a pair is beyond `PAIR_FORCE_LIMIT`.
        """
        n_forces, n_virials = 3 * env.n_local, 9 * env.n
        totals = self._work.buffer("totals", (n_forces + n_virials + 1,), np.int64)
        totals.fill(0)
        address = self._work.address
        parts = address(totals), address(totals[n_forces:]), 0, address(totals[-1:])
        exerted = np.array([(0, 0, *parts, 1.0 / SPACING, PAIR_FORCE_LIMIT, 0, env.n)], EXERTED)
        self._launch("forces", env.n, env.system, d.struct, env.owners, moments_adjoint, exerted)
        found = self.device.download(totals)
        if found[-1]:
            raise RunError(f"the force of a pair of atoms is above {PAIR_FORCE_LIMIT:g} eV/Å or not a number")
        numbers = found[:-1] * SPACING
        return numbers[:n_forces].reshape(-1, 3), numbers[n_forces:].reshape(-1, 3, 3)

    # -- features ------------------------------------------------------------------------------------------------

    def features_into(self, moments: Array, columns: Array | None, inputs: Array) -> None:
        """Set inputs (n, M·axis + n_columns): features, then columns."""
        self._launch("features", len(moments), moments, _or_null(columns), self._n_columns(inputs), inputs)

    def features_tangent_into(self, moments: Array, tangent: Array, inputs: Array) -> None:
        """Set their change along Ȧ; columns stay."""
        self._launch("features_tangent", len(moments), moments, tangent, self._n_columns(inputs), inputs)

    def features_adjoint_into(
        self, moments: Array, adjoint: Array, tangent: Array | None, tangent_adjoint: Array | None, result: Array
    ) -> None:
        """Set (n, 4, M) to the derivative of adjoint·D, and where given of tangent_adjoint·Ḋ, by A."""
        arrays = moments, adjoint, _or_null(tangent), _or_null(tangent_adjoint)
        self._launch("features_adjoint", len(moments), *arrays, self._n_columns(adjoint), result)

    def _n_columns(self, inputs: Array) -> np.int32:
        return np.int32(inputs.shape[1] - self.channels * self.axis)

    # -- the way back to the table -------------------------------------------------------------------------------

    def tangent_adjoint(
        self, env: CardEnvironment, d: Described, motion: NDArray, moments_adjoint: Array, tangent_adjoint: Array
    ) -> tuple[Array, Array]:
        """See `contract.SeAOps.tangent_adjoint`; for the centers of the last `moments`."""
        n_intervals, group = d.n_intervals, 6 * self.channels
        shares = max(1, min(MOST_SHARES, SHARED_BYTES // (8 * n_intervals * group)))
        pairs = self._sorted(env, d, shares)
        parts = self._work.buffer("shares", (shares, n_intervals * group), np.float64)
        arrays = moments_adjoint, tangent_adjoint, parts
        self._launch("table_adjoint", n_intervals * shares, env.system, d.struct, motion, pairs, *arrays)
        coefficients = self._work.buffer("by_table", d.coefficients.shape, np.float64)
        self._add_shares(parts, self._starts, group, coefficients)
        empty = self._work.buffer("by_empty", d.empty.shape, np.float64)
        parts = self._work.buffer("empty_shares", (MOST_SHARES, empty.size), np.float64)
        given = d.struct, env.first_rows, self._free, moments_adjoint, np.int32(MOST_SHARES), parts
        self._launch("empty_adjoint", self.n_types**2 * MOST_SHARES, *given)
        self._add_shares(parts, None, 1, empty)
        return coefficients, empty

    def _sorted(self, env: CardEnvironment, d: Described, shares: int) -> NDArray:
        """The struct of pairs in the order of their intervals."""
        n, n_intervals, work = env.n_places, d.n_intervals, self._work
        intervals, rows = work.buffer("intervals", (n,), np.int32), work.buffer("rows", (n,), np.int32)
        intervals.fill(n_intervals)  # behind all others, where it stays for what is no pair
        self._launch("places", env.n, env.system, d.struct, intervals, rows)
        self._order = self.device.order(intervals)
        self._starts = work.buffer("starts", (n_intervals + 1,), np.int64)
        numbers = np.int64(n), np.int64(n_intervals)
        work.of_each(self._text, "find_starts", n_intervals + 1, intervals, self._order, *numbers, self._starts)
        arrays = map(work.address, (self._order, rows, self._starts))
        return np.array([(*arrays, n_intervals, shares)], _SORTED)

    def _add_shares(self, parts: Array, starts: Array | None, group: int, result: Array) -> None:
        numbers = np.int32(group), np.int32(len(parts)), np.int64(result.size)
        self._work.of_each(self._text, "add_shares", result.size, parts, starts, *numbers, result)

    def _moments(self, name: str, n: int) -> Array:
        return self._work.buffer(name, (n, 4, self.channels), self.dtype)

    def _launch(self, kernel: str, grid: int, *arguments: object) -> None:
        if grid:
            self.device.launch(self._text, kernel, grid, BLOCK, *arguments)


def _nbytes(arrays: tuple[Array, ...]) -> int:
    return sum(int(a.nbytes) for a in arrays)


def _or_null(array: Array | None) -> Array:
    return NULL if array is None else array
