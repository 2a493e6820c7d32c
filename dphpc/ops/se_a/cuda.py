"""The `se_e2_a` operations in training on a GPU; what they compute is in `contract.SeAOps`.

Results are GPU arrays, valid until the operation is called again.  Forces are integer multiples of a spacing, and
gradients by the table are summed in a fixed order, so that a step has the same bits whenever it is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.model.radial_table import Grid
from dphpc.ops.gpu import BLOCK, running_sums
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.se_a.cuda_frames import PAIR_FORCE_LIMIT, SPACING, GpuEnvironment, GpuFrames
from dphpc.ops.structs import EXERTED, descriptor_struct, grid_structs, struct
from dphpc.ops.workspace import REAL, Workspace

MOST_SHARES = 32
"""Most blocks that share an interval's pairs; for 16 frames of water each then has some 150 pairs at most."""

SHARED_BYTES = 2**28
"""Most bytes of their partial sums; with larger tables there are fewer shares."""

MOST_COUNTS = 2**20
"""Most counters of pairs, by interval and group of centers, for sorting the pairs."""

# The structs of kernels/cuda/training.cu.
_MOTION = struct("p direction", "p strain", "p frames", "p owners")
_SORTED = struct("p order", "p rows", "p starts", "i4 n_intervals", "i4 n_shares")


@dataclass(frozen=True)
class Described:
    """A descriptor with its present table, on the GPU: `coefficients` and `empty` as those of `contract.Embedding`."""

    coefficients: Array
    empty: Array
    struct: NDArray
    kept: tuple[Array, ...]  # what else the struct points to

    @property
    def n_intervals(self) -> int:
        """Number of intervals of all tables."""
        return int(self.coefficients.shape[0] * self.coefficients.shape[1])


class CudaSeA:
    """The operations for one model.

    Parameters
    ----------
    channels, axis, n_types, dtype
        Those of the descriptor.

    Attributes
    ----------
    frames
        The frames that are kept on the GPU, from which batches are joined.
    """

    def __init__(self, device: Device, channels: int, axis: int, n_types: int, dtype: type) -> None:
        self.device, self.channels, self.axis = device, channels, axis
        self.n_types, self.dtype = n_types, np.dtype(dtype)
        self._work = Workspace(device)
        self._text = kernel_text(
            "training.cu", Real=REAL[self.dtype], CHANNELS=channels, AXIS=axis, N_TYPES=n_types, WARP=device.warp,
            BLOCK=BLOCK,
        )  # fmt: skip
        self.frames = GpuFrames(device, self._work, self._text, n_types, self.dtype)

    def described(self, p: SeAParameters, grids: Sequence[Grid], coefficients: Array, empty: Array) -> Described:
        """The descriptor with tables on these grids, whose arrays may be overwritten in place."""
        kept = tuple(self._work.new(a) for a in (p.sel, p.davg, 1.0 / p.dstd, p.network, p.flags, grid_structs(grids)))
        pointers = [self._work.address(a) for a in (*kept, coefficients, empty)]
        return Described(coefficients, empty, descriptor_struct(p, pointers, coefficients.shape[1]), kept)

    @property
    def growths(self) -> int:
        """See `Buffers.growths`."""
        return self._work.growths

    # -- moments -------------------------------------------------------------------------------------------------

    def moments(self, env: GpuEnvironment, d: Described) -> None:
        """Set A (n, 4, M), see `moments_of`, and `env.largest`, the largest s̃ of each center."""
        arrays = self.moments_of(env), env.largest, self._free(env)
        self._launch("moments", env.n, env.system, d.struct, *arrays)

    def moments_of(self, env: GpuEnvironment) -> Array:
        """The array A (n, 4, M) that `moments` sets."""
        return self._moments("moments", env.n)

    def motion(self, env: GpuEnvironment, direction: Array, strain: Array) -> NDArray:
        """The struct of a direction d of local atoms (n_local, 3) and strains (n_frames, 3, 3), for the tangent."""
        return np.array([tuple(map(self._work.address, (direction, strain, env.frames, env.owners)))], _MOTION)

    def tangent(self, env: GpuEnvironment, d: Described, motion: NDArray) -> None:
        """Set Ȧ (n, 4, M), see `tangent_of`."""
        self._launch("tangent", env.n, env.system, d.struct, motion, self.tangent_of(env))

    def tangent_of(self, env: GpuEnvironment) -> Array:
        """The array Ȧ (n, 4, M) that `tangent` sets."""
        return self._moments("tangent", env.n)

    def forces(self, env: GpuEnvironment, d: Described, moments_adjoint: Array) -> None:
        """Set `env.totals`: forces on local atoms, those on images included, and the frames' virials."""
        totals, address = env.totals, self._work.address
        self.device.fill(totals, 0)
        parts = address(totals), address(totals[3 * env.n_local :]), 0, address(totals[-1:])
        exerted = np.array([(0, 0, *parts, 1.0 / SPACING, PAIR_FORCE_LIMIT, 0, env.n_frames)], EXERTED)
        self._launch("forces", env.n, env.system, d.struct, env.owners, env.frames, moments_adjoint, exerted)

    # -- features ------------------------------------------------------------------------------------------------

    def features_into(self, moments: Array, columns: Array | None, inputs: Array) -> None:
        """Set inputs (n, M·axis + n_columns): features, then columns."""
        self._launch("features", len(moments), moments, columns, self._n_columns(inputs), inputs)

    def features_tangent_into(self, moments: Array, tangent: Array, inputs: Array) -> None:
        """Set inputs (n, M·axis + n_columns) to the features' change along Ȧ; columns are left as they are."""
        self._launch("features_tangent", len(moments), moments, tangent, self._n_columns(inputs), inputs)

    def features_adjoint_into(
        self, moments: Array, adjoint: Array, tangent: Array | None, tangent_adjoint: Array | None, result: Array
    ) -> None:
        """Set `result` (n, 4, M) to the derivative of adjoint·D, plus tangent_adjoint·Ḋ if given, by A."""
        arrays = moments, adjoint, tangent, tangent_adjoint
        self._launch("features_adjoint", len(moments), *arrays, self._n_columns(adjoint), result)

    def _n_columns(self, inputs: Array) -> np.int32:
        return np.int32(inputs.shape[1] - self.channels * self.axis)

    # -- the way back to the table -------------------------------------------------------------------------------

    def tangent_adjoint(
        self, env: GpuEnvironment, d: Described, motion: NDArray, moments_adjoint: Array, tangent_adjoint: Array
    ) -> tuple[Array, Array]:
        """See `contract.SeAOps.tangent_adjoint`; for the centers of the last `moments`."""
        n_intervals, group = d.n_intervals, 6 * self.channels
        shares = max(1, min(MOST_SHARES, SHARED_BYTES // (8 * n_intervals * group)))
        pairs = self._sorted(env, d, shares)
        parts = self._work.buffer("shares", (shares, n_intervals * group), np.float64)
        arrays = moments_adjoint, tangent_adjoint, parts
        self._launch("table_adjoint", n_intervals * shares, env.system, d.struct, motion, pairs, *arrays)
        coefficients = self._work.buffer("by_table", d.coefficients.shape, np.float64)
        self._add_shares(parts, self._starts(n_intervals), group, coefficients)
        empty = self._work.buffer("by_empty", d.empty.shape, np.float64)
        parts = self._work.buffer("empty_shares", (MOST_SHARES, empty.size), np.float64)
        given = d.struct, env.first_rows, self._free(env), moments_adjoint, np.int32(MOST_SHARES), parts
        self._launch("empty_adjoint", self.n_types**2 * MOST_SHARES, *given)
        self._add_shares(parts, None, 1, empty)
        return coefficients, empty

    def _sorted(self, env: GpuEnvironment, d: Described, shares: int) -> NDArray:
        """The struct of pairs sorted by interval, and within one in their order in the list."""
        n, n_intervals, work = np.int32(env.n), np.int32(d.n_intervals), self._work
        groups = max(1, min(env.n, MOST_COUNTS // d.n_intervals))
        counts = work.buffer("counts", (d.n_intervals * groups,), np.int32)
        places = work.buffer("places", (counts.size + 1,), np.int64)
        intervals, order, rows = env.pairs
        self.device.fill(counts, 0)
        self._launch("count_pairs", groups, env.system, d.struct, n, intervals, counts)
        running_sums(self.device, work.buffers, self._text, counts, places)
        starts = self._starts(d.n_intervals)
        self._launch("sort_pairs", groups, env.system, n, n_intervals, intervals, places, starts, order, rows)
        return np.array([(*map(work.address, (order, rows, starts)), n_intervals, shares)], _SORTED)

    def _starts(self, n_intervals: int) -> Array:
        return self._work.buffer("starts", (n_intervals + 1,), np.int64)

    def _free(self, env: GpuEnvironment) -> Array:
        return self._work.buffer("free", (env.n, self.n_types), np.int32)

    def _add_shares(self, parts: Array, starts: Array | None, group: int, result: Array) -> None:
        numbers = np.int32(group), np.int32(len(parts)), np.int64(result.size)
        self._work.of_each(self._text, "add_shares", result.size, parts, starts, *numbers, result)

    def _moments(self, name: str, n: int) -> Array:
        return self._work.buffer(name, (n, 4, self.channels), self.dtype)

    def _launch(self, kernel: str, grid: int, *arguments: object) -> None:
        if grid:
            self.device.launch(self._text, kernel, grid, BLOCK, *arguments)
