"""Energies and forces on a GPU, batch by batch: descriptor, fitting net and backward pass, all in its memory.

A batch holds atoms of any types, each type in tiles with as many rows as a matrix product has.  The descriptor and its
backward pass, which do not depend on the net, are one launch for the whole batch.  Tables and nets are uploaded once, a
neighbor list when it is new.  For a caller on the host, positions are uploaded and forces downloaded at every call; if
the atoms are in GPU memory, `launch` leaves all results there and does not wait.  Forces and virials are multiples of a
spacing, summed as integers, so that they do not depend on the order in which blocks run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Floats
from dphpc.core.device import Array, Device
from dphpc.core.errors import InputError, RunError
from dphpc.core.exact_sum import FORCE_SPACING
from dphpc.model.networks import Network
from dphpc.ops.arguments import KernelLayer, layers_of
from dphpc.ops.energy.contract import Accumulators
from dphpc.ops.energy.gpu import VIRIAL_SLOTS, GpuSums, GpuSystem, add_found
from dphpc.ops.energy.tiles import SPLIT_ATOMS, TILE, DeviceNet, Group, Layer, Part, batches, block_of, tile_rows
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters
from dphpc.ops.structs import EXERTED, SYSTEM, descriptor_struct, grid_structs, struct
from dphpc.ops.workspace import ELEMENTWISE, Workspace

FEW_ROWS_SHAPE = {"ROWS": 8, "COLUMNS": 16, "DEPTH": 64, "BLOCK": 256}
"""Definitions for kernels/cuda/few_rows.cu."""

MOST_CHANNELS = 512
"""Most channels whose moments fit into a block's shared memory, in float64."""

MOST_BLOCKS = 1024
"""Most blocks that sum energies, so that few of them wait for one another."""

PAIR_FORCE_LIMIT = 2.0**54
"""Greatest force of a pair, in multiples of the spacing (65,536 eV/Å usually): sums of hundreds fit into 64 bits."""

TF32_BITS = np.uint32(0xFFFFE000)
"""Mask of the bits of float32 that TF32 has, too."""

# The structs of kernels/cuda/descriptor.cu and fitting.cu that no other kernels take.
_DESCRIBED = struct("p moments", "p inputs", "p largest", "p columns", "i4 n_columns")
_ROWS = struct("p w", "p x", "p slope", "p energies", "p adjoint", "p factor")
_TALLY = struct("p sum", "p largest", "p trouble", "f8 shift", "f8 upper")


@dataclass(frozen=True)
class _Work:
    """The arguments that all batches of one call share: what they read, and where their results go."""

    text: str
    system: NDArray
    descriptor: NDArray
    columns: Array | None
    energies: Array
    largest: Array
    upper: float  # the table's end: `largest` above it is reported as trouble
    sums: GpuSums


class CudaEnergy:
    """A back end of `contract.EnergyOps`, with its memory on the GPU.

    With a spacing of the forces all matrix products of a net have the same number of rows, as the library chooses its
    kernel, and so the order of its sums, by the shape.

    Parameters
    ----------
    tile
        Number of rows of matrix products for a net that is not `tiled`.
    in_pieces
        Whether float32 products of large systems are computed from TF32 pieces (kernels/cuda/parts.h).

    Attributes
    ----------
    workspace
        GPU memory that is kept from call to call.
    """

    def __init__(self, device: Device, tile: int = TILE, *, in_pieces: bool = False) -> None:
        self.device, self.tile, self._in_pieces = device, tile, in_pieces and device.has_tf32
        self.workspace = Workspace(device)
        self._neighbors: Neighbors | None = None
        self._described: tuple[SeAParameters, Embedding, NDArray, list[Array]] | None = None

    def prepare(self, network: Network, channels: int, axis: int) -> DeviceNet:
        """See `contract.EnergyOps.prepare`.

        Raises
        ------
        InputError
            The net has more channels than fit into a block's shared memory.
        """
        if channels > MOST_CHANNELS:
            raise InputError(
                f"the embedding net has {channels} outputs", where="model",
                expected=f"at most {MOST_CHANNELS} on a GPU", remedy="say device: cpu",
            )  # fmt: skip
        dtype = network.layers[0].w.dtype
        return DeviceNet([self._layer(layer) for layer in layers_of(network)], dtype, channels, axis, self.tile)

    def tiled(self, net: DeviceNet, n: int, n_all: int) -> DeviceNet:
        """The net with sizes of blocks and products for n atoms of its type, of n_all in the whole run."""
        parts = 3 if net.layers[0].ahead is not None and n_all >= SPLIT_ATOMS else 1
        net = replace(net, parts=parts, block=block_of(n_all, net.channels))
        return replace(net, rows=min(tile_rows(n), net.most_rows))

    def _layer(self, layer: KernelLayer) -> Layer:
        w, new = layer.w, self.workspace.new
        n_in, n_out = w.shape
        b, idt = (None if a is None else new(a) for a in (layer.b, layer.idt))
        given = self.workspace.layer(layer._replace(b=b, idt=idt))
        pieces = (None, None)
        if w.dtype == np.float32 and self._in_pieces:
            high = (np.ascontiguousarray(w).view(np.uint32) & TF32_BITS).view(np.float32)
            pieces = tuple(new(np.concatenate((high, w - high, high), axis)) for axis in (0, 1))
        return Layer(new(w), *pieces, n_in, n_out, layer.skip, given, (b, idt))

    def energy_and_forces(
        self,
        env: Environment,
        p: SeAParameters,
        e: Embedding,
        net: DeviceNet,
        columns: Floats | None,
        out: Accumulators,
    ) -> tuple[NDArray[np.float64], float]:
        """See `contract.EnergyOps.energy_and_forces`; the default spacing of forces is `FORCE_SPACING`.

        Raises
        ------
        RunError
            The force of a pair exceeds `PAIR_FORCE_LIMIT`.
        """
        n, n_all, atomic = len(env.centers), len(env.positions), out.atom_virial is not None
        array, spacing = self.workspace.buffer("totals", (GpuSums.size(n_all, atomic),), np.int64), out.force_spacing
        array.fill(0)
        extra = None if columns is None else self.workspace.up("columns", columns, net.dtype)
        sums = GpuSums.within(array, n_all, spacing or FORCE_SPACING)
        centers = self.workspace.up("centers", env.centers, np.int32)
        if not spacing and n:
            tiles = -(-n // net.most_rows)
            net = replace(net, rows=-(-n // tiles))
        groups = [Group(net, n)]
        work = self._work(self._uploaded(env), centers, p, e, groups, extra, sums)
        self._evaluate_all(work, groups)
        largest = float(self.device.download(work.largest[:n]).max(initial=-np.inf))
        energies = self.device.download(work.energies[:n]).astype(np.float64)
        found = GpuSums.within(self.device.download(array), n_all, sums.spacing)
        # Not if the table is too short, as the results are then dropped, or for NaN, as the caller can name the atom.
        if found.trouble[0] and largest <= e.table.upper and np.isfinite(energies).all():
            limit = PAIR_FORCE_LIMIT * sums.spacing
            raise RunError(f"the force of a pair of atoms is above {limit:g} eV/Å", remedy="check the structure")
        add_found(found, out)
        return energies, largest

    def launch(
        self,
        system: GpuSystem,
        centers: Array,
        p: SeAParameters,
        e: Embedding,
        groups: Sequence[Group],
        columns: Array | None,
        sums: GpuSums,
    ) -> None:
        """As `energy_and_forces`, from and to GPU memory, without waiting.

        The launches are determined by the arguments' addresses and numbers, and by `workspace.growths`.

        Parameters
        ----------
        centers
            (n_rows,) int32, the centers of all groups one after the other; −1 in rows without an atom.
        groups
            At least one group.
        columns
            (n_rows, n_columns) parameters, in the nets' precision.
        """
        self._evaluate_all(self._work(system, centers, p, e, groups, columns, sums), groups)

    def list_of(self, neighbors: Neighbors) -> tuple[Array, Array]:
        """Offsets and indices on the GPU of the host's neighbor list; uploaded only if it is not the last one."""
        give = self.workspace.buffer
        offsets = give("offsets", neighbors.offsets.shape, np.int64)
        indices = give("indices", neighbors.indices.shape, np.int32)
        if neighbors is not self._neighbors:
            self.device.upload(neighbors.offsets, offsets)
            self.device.upload(neighbors.indices, indices)
            self._neighbors = neighbors
        return offsets, indices

    def _work(
        self,
        system: GpuSystem,
        centers: Array,
        p: SeAParameters,
        e: Embedding,
        groups: Sequence[Group],
        columns: Array | None,
        sums: GpuSums,
    ) -> _Work:
        arrays = system.positions, system.types, system.offsets, system.indices, centers
        net, n_rows = groups[0].net, sum(group.n_rows for group in groups)
        text = kernel_text(
            "descriptor.cu", Real=net.real, CHANNELS=net.channels, AXIS=net.axis, N_TYPES=len(p.sel),
            PARTS=net.parts, WARP=self.device.warp, BLOCK=net.block,
        )  # fmt: skip
        struct = np.array([tuple(map(self.workspace.address, arrays))], SYSTEM)
        energies = self.workspace.buffer("energies", (n_rows,), net.dtype)
        largest = self.workspace.buffer("largest", (n_rows,), np.float64)
        return _Work(text, struct, self._descriptor(p, e), columns, energies, largest, e.table.upper, sums)

    def _evaluate_all(self, work: _Work, groups: Sequence[Group]) -> None:
        for batch in batches(groups):
            self._evaluate(work, batch)

    def _evaluate(self, work: _Work, batch: list[Part]) -> None:
        net, first, address = batch[0].net, batch[0].first, self.workspace.address
        rows, last_atom = batch[-1].last - first, batch[-1].first + batch[-1].n
        moments = self.workspace.buffer("moments", (rows, 4, net.channels), net.dtype)
        inputs = self.workspace.buffer("inputs", (rows, net.parts * net.layers[0].n_in), net.dtype)
        by_inputs = inputs
        if net.parts > 1:
            by_inputs = self.workspace.buffer("by_inputs", (rows, net.layers[0].n_in), net.dtype)
        columns = None if work.columns is None else work.columns[first:]
        system = work.system.copy()
        system["centers"] += 4 * first
        given, grid = (system, work.descriptor), last_atom - first
        described = (address(moments), address(inputs), address(work.largest[first:]), address(columns), net.n_columns)
        self.device.launch(work.text, "describe", grid, net.block, *given, np.array([described], _DESCRIBED))
        widest, t = max(part.net.widest for part in batch), work.sums

        def fit(part: Part) -> None:
            start, end = part.first - first, part.last - first

            def array(name: str, n: int, parts: int) -> Array:
                most, width = parts * widest, parts * n
                whole = self.workspace.buffer(name, (rows * most,), net.dtype)[start * most : end * most]
                return whole[: (end - start) * width].reshape(end - start, width)

            found, energies = (a[part.first : part.last] for a in (work.largest, work.energies))
            tally = address(t.energy), address(found), address(t.trouble), part.shift, work.upper
            self._fit(part, inputs[start:end], by_inputs[start:end], energies, np.array([tally], _TALLY), array)

        self.device.beside([partial(fit, part) for part in batch])
        exerted = (
            address(moments), address(by_inputs), address(t.forces), address(t.virial), address(t.atom_virial),
            address(t.trouble), 1.0 / t.spacing, PAIR_FORCE_LIMIT * t.spacing, net.n_columns, VIRIAL_SLOTS,
        )  # fmt: skip
        self.device.launch(work.text, "exert", grid, net.block, *given, np.array([exerted], EXERTED))

    def _fit(
        self,
        part: Part,
        inputs: Array,
        by_inputs: Array,
        energies: Array,
        tally: NDArray,
        array: Callable[[str, int, int], Array],
    ) -> None:
        """Energies (rows,) of inputs (rows, parts·n_in), and their derivatives by the inputs (rows, n_in).

        `tally` tells where the energies are summed; `array` returns an array (rows, parts·n) for a name, n and parts.
        """
        net, n, of_each = part.net, np.int64(part.n), self.workspace.of_each
        text = kernel_text("fitting.cu", Real=net.real, PARTS=net.parts, WARP=self.device.warp, BLOCK=ELEMENTWISE)
        x, slopes, parts = inputs, [], net.parts
        *hidden, last = net.layers
        for k, layer in enumerate(hidden):
            z, y = array(f"slope{k}", layer.n_out, 1), array(f"value{k % 2}", layer.n_out, parts)
            if net.is_small(layer):
                self._launch_few(part, "layer_ahead", layer, layer.n_out, x, z, y)
            else:
                self._product(net, x, layer.w if parts == 1 else layer.ahead, z)
                of_each(text, "activate", part.n * layer.n_out, layer.struct, n, z, x, y)
            slopes.append(z)
            x = y

        def back(k: int) -> tuple[Array, Array | None, Array | None]:
            """For layer k: array for its input's adjoint, slope of the layer before, array for their product."""
            if k == 0:
                return by_inputs, None, None
            n_in, slope = net.layers[k].n_in, slopes[k - 1]
            return array(f"adjoint{k % 2}", n_in, 1), slope, slope if parts == 1 else array("factor", n_in, parts)

        above, below, factor = back(len(hidden))
        kept = above if not hidden or hidden[-1].skip else None
        arrays = last.w, x, below, energies, kept, factor
        rows = np.array([tuple(map(self.workspace.address, arrays))], _ROWS)
        grid = min(-(-part.n * self.device.warp // ELEMENTWISE), MOST_BLOCKS)
        self.device.launch(text, "last_layer", grid, ELEMENTWISE, last.struct, n, rows, tally)
        for k, layer in reversed(list(enumerate(hidden))):
            adjoint, below, product = back(k)
            if net.is_small(layer):
                self._launch_few(part, "layer_back", layer, layer.n_in, factor, above, adjoint, below, product)
            else:
                self._product(net, factor, layer.w if parts == 1 else layer.back, adjoint, transposed=True)
                if layer.skip or below is not None:
                    of_each(text, "pass_back", part.n * layer.n_in, layer.struct, n, above, adjoint, below, product)
            above, factor = adjoint, product

    def _launch_few(self, part: Part, kernel: str, layer: Layer, width: int, *arrays: Array | None) -> None:
        """Launch a kernel of few_rows.cu whose result is (n, width)."""
        shape = FEW_ROWS_SHAPE
        text = kernel_text("few_rows.cu", Real=part.net.real, PARTS=1, **shape)
        grid = -(-part.n // shape["ROWS"]) * -(-width // shape["COLUMNS"])
        self.device.launch(text, kernel, grid, shape["BLOCK"], layer.struct, layer.w, np.int64(part.n), *arrays)

    def _product(self, net: DeviceNet, x: Array, w: Array, out: Array, *, transposed: bool = False) -> None:
        """`out` = x·w or x·wᵀ, a tile of rows at a time."""
        for first in range(0, len(x), net.rows):
            rows = slice(first, first + net.rows)
            self.device.product(x[rows], w, out[rows], transposed=transposed, tf32=net.parts > 1)

    def _uploaded(self, env: Environment) -> GpuSystem:
        up = self.workspace.up
        positions, types = up("positions", env.positions, np.float64), up("types", env.types, np.int32)
        return GpuSystem(positions, types, *self.list_of(env.neighbors))

    def _descriptor(self, p: SeAParameters, e: Embedding) -> NDArray:
        kept = self._described
        if kept is None or kept[0] is not p or kept[1] is not e:
            work, coefficients = self.workspace, e.table.coefficients
            tables = grid_structs(e.table.grids), coefficients, e.empty
            arrays = [work.new(a) for a in (p.sel, p.davg, 1.0 / p.dstd, p.network, p.flags, *tables)]
            struct = descriptor_struct(p, map(work.address, arrays), coefficients.shape[1])
            kept = self._described = p, e, struct, arrays
        return kept[2]
