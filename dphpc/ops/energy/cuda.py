"""Energies and forces on a card, tile by tile: descriptor, fitting net and the way back stay in its memory.

Tables and nets go up once, a neighbor list when it is new.  For a caller on the host positions go up and forces come
down at every call; where atoms live on the card, `launch` leaves all results there and waits for nothing.  Forces and
virials are whole multiples of a spacing, added as integers: they do not depend on the order in which blocks run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.core.errors import InputError, RunError
from dphpc.core.exact_sum import FORCE_SPACING
from dphpc.model.networks import Network
from dphpc.ops.arguments import layers_of
from dphpc.ops.energy.card import VIRIAL_SLOTS, CardSums, CardSystem, add_found
from dphpc.ops.energy.contract import Accumulators
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.se_a.contract import Embedding, Environment, Floats, SeAParameters
from dphpc.ops.structs import EXERTED, SYSTEM, descriptor_struct, grid_structs, struct
from dphpc.ops.workspace import REAL, Workspace

TILE = 2048
"""Atoms whose features are in the card's memory at a time: 60 MB in float64 for 1,600 features and a net of 240³."""

BLOCK = 128
"""Threads for an atom."""

MOST_CHANNELS = 640
"""Whose moments fit into a block's shared memory, in float64."""

MOST_BLOCKS = 1024
"""That add up energies, so that few of them wait for one another."""

PAIR_FORCE_LIMIT = 2.0**54
"""Multiples of the spacing (65,536 eV/Å of the usual one): sums of hundreds of such forces are within 64 bits."""

# The struct of kernels/cuda/descriptor.cu that no other text takes.
_DESCRIBED = struct("p moments", "p inputs", "p largest", "p columns", "i4 n_columns")


@dataclass(frozen=True)
class _Layer:
    w: Array  # (n_in, n_out)
    n_in: int
    n_out: int
    skip: int
    struct: NDArray
    kept: tuple[Array, ...]  # what the struct points to


@dataclass(frozen=True)
class DeviceNet:
    """A fitting net in a card's memory."""

    layers: list[_Layer]
    dtype: np.dtype
    channels: int
    axis: int

    @property
    def n_columns(self) -> int:
        """Inputs beside the features."""
        return self.layers[0].n_in - self.channels * self.axis

    @property
    def real(self) -> str:
        """C's name of the type."""
        return REAL[self.dtype]


@dataclass(frozen=True)
class _Work:
    """One call: what its tiles read, and where their results go."""

    net: DeviceNet
    text: str
    system: NDArray
    descriptor: NDArray
    columns: Array | None
    energies: Array
    largest: Array
    sums: CardSums
    fixed: bool  # whether products are to have the same shape always


class CudaEnergy:
    """A back end of `contract.EnergyOps` with what it keeps on a card.

    With a spacing of the forces all matrix products have the rows of a whole tile: the library picks its kernel, and
    with it the order of a sum, by the shape.

    Parameters
    ----------
    tile
        Atoms evaluated at a time.

    Attributes
    ----------
    workspace
        The memory that stays from call to call.
    """

    def __init__(self, device: Device, tile: int = TILE) -> None:
        self.device, self.tile = device, tile
        self.workspace = Workspace(device)
        self._neighbors: Neighbors | None = None
        self._described: tuple[SeAParameters, Embedding, NDArray, list[Array]] | None = None

    def prepare(self, network: Network, channels: int, axis: int) -> DeviceNet:
        """See `contract.EnergyOps.prepare`.

        Raises
        ------
        InputError
            More channels than a block's shared memory holds.
        """
        if channels > MOST_CHANNELS:
            raise InputError(
                f"the embedding net has {channels} outputs", where="model",
                expected=f"at most {MOST_CHANNELS} on a card", remedy="say device: cpu",
            )  # fmt: skip
        dtype = network.layers[0].w.dtype
        return DeviceNet([self._layer(layer) for layer in layers_of(network)], dtype, channels, axis)

    def _layer(self, layer: tuple[Any, ...]) -> _Layer:
        w, bias, idt, *_, skip = layer
        n_in, n_out = w.shape
        new = self.workspace.new
        up = [None if a is None else new(a) for a in (bias, idt)]
        given = self.workspace.layer(layer, *up)
        return _Layer(new(w), n_in, n_out, skip, given, tuple(a for a in up if a is not None))

    def energy_and_forces(
        self,
        env: Environment,
        p: SeAParameters,
        e: Embedding,
        net: DeviceNet,
        columns: Floats | None,
        out: Accumulators,
    ) -> tuple[NDArray[np.float64], float]:
        """See `contract.EnergyOps.energy_and_forces`; without a spacing of the forces they have `FORCE_SPACING`.

        Raises
        ------
        RunError
            The force of a pair is beyond `PAIR_FORCE_LIMIT`.
        """
        n, n_all, atomic = len(env.centers), len(env.positions), out.atom_virial is not None
        array, spacing = self.workspace.buffer("totals", (CardSums.size(n_all, atomic),), np.int64), out.force_spacing
        array.fill(0)
        extra = None if columns is None else self.workspace.up("columns", columns, net.dtype)
        sums = CardSums.within(array, n_all, spacing or FORCE_SPACING)
        centers = self.workspace.up("centers", env.centers, np.int32)
        work = self._work(self._uploaded(env), centers, p, e, net, extra, sums, fixed=spacing != 0.0)
        self._evaluate_all(work, n)
        largest = float(self.device.download(work.largest).max(initial=-np.inf))
        energies = self.device.download(work.energies[:n]).astype(np.float64)
        found = CardSums.within(self.device.download(array), n_all, sums.spacing)
        # What comes from beyond the table is thrown away, and of what is not a number the caller can name the atom.
        if found.trouble[0] and largest <= e.table.upper and np.isfinite(energies).all():
            limit = PAIR_FORCE_LIMIT * sums.spacing
            raise RunError(f"the force of a pair of atoms is above {limit:g} eV/Å", remedy="check the structure")
        add_found(found, out)
        return energies, largest

    def launch(
        self,
        system: CardSystem,
        centers: Array,
        p: SeAParameters,
        e: Embedding,
        net: DeviceNet,
        columns: Array | None,
        shift: float,
        sums: CardSums,
    ) -> None:
        """As `energy_and_forces`, of what is on the card and in its sums, without waiting for it.

        Parameters
        ----------
        centers
            (n,) int32, of one type; the same array as long as they are the same.
        columns
            (n, n_columns) in the net's precision.
        shift
            eV, added to each atom's energy.
        """
        n, device = centers.size, self.device
        work = self._work(system, centers, p, e, net, columns, sums, fixed=True)
        self._evaluate_all(work, n)
        text = kernel_text("tally.cu", Real=net.real, WARP=device.warp, BLOCK=BLOCK)
        numbers = np.int64(n), np.float64(shift), np.float64(e.table.upper)
        grid = min(-(-n // BLOCK), MOST_BLOCKS)
        device.launch(text, "tally", grid, BLOCK, work.energies, work.largest, *numbers, sums.energy, sums.trouble)

    def list_of(self, neighbors: Neighbors) -> tuple[Array, Array]:
        """Offsets and indices of the host's list on the card, where they stay until another list is met."""
        if neighbors is not self._neighbors:
            self.workspace.up("offsets", neighbors.offsets, np.int64)
            self.workspace.up("indices", neighbors.indices, np.int32)
            self._neighbors = neighbors
        shapes = neighbors.offsets.shape, neighbors.indices.shape
        return self.workspace.buffer("offsets", shapes[0], np.int64), self.workspace.buffer(
            "indices", shapes[1], np.int32
        )

    def _work(
        self,
        system: CardSystem,
        centers: Array,
        p: SeAParameters,
        e: Embedding,
        net: DeviceNet,
        columns: Array | None,
        sums: CardSums,
        *,
        fixed: bool,
    ) -> _Work:
        n, arrays = centers.size, (system.positions, system.types, system.offsets, system.indices, centers)
        text = kernel_text(
            "descriptor.cu", Real=net.real, CHANNELS=net.channels, AXIS=net.axis, N_TYPES=len(p.sel),
            WARP=self.device.warp, BLOCK=BLOCK,
        )  # fmt: skip
        struct = np.array([tuple(map(self.workspace.address, arrays))], SYSTEM)
        energies = self.workspace.buffer("energies", (n + self.tile,), net.dtype)
        largest = self.workspace.buffer("largest", (n,), np.float64)
        return _Work(net, text, struct, self._descriptor(p, e), columns, energies, largest, sums, fixed)

    def _evaluate_all(self, work: _Work, n: int) -> None:
        for first in range(0, n, self.tile):
            self._evaluate(work, first, min(first + self.tile, n))

    def _evaluate(self, work: _Work, first: int, last: int) -> None:
        """The atoms of one tile."""
        net, n, address = work.net, last - first, self.workspace.address
        rows = self.tile if work.fixed else n
        moments = self.workspace.buffer("moments", (rows, 4, net.channels), net.dtype)
        inputs = self.workspace.buffer("inputs", (rows, net.layers[0].n_in), net.dtype)
        columns = None if work.columns is None else work.columns[first:last]
        system = work.system.copy()
        system["centers"] += 4 * first
        described = (address(moments), address(inputs), address(work.largest[first:]), address(columns), net.n_columns)
        self.device.launch(work.text, "describe", n, BLOCK, system, work.descriptor, np.array([described], _DESCRIBED))
        self._fit(net, n, inputs, work.energies[first : first + rows])
        t = work.sums
        exerted = (
            address(moments), address(inputs), address(t.forces), address(t.virial), address(t.atom_virial),
            address(t.trouble), 1.0 / t.spacing, PAIR_FORCE_LIMIT * t.spacing, net.n_columns, VIRIAL_SLOTS,
        )  # fmt: skip
        self.device.launch(work.text, "exert", n, BLOCK, system, work.descriptor, np.array([exerted], EXERTED))

    def _fit(self, net: DeviceNet, n: int, inputs: Array, energies: Array) -> None:
        """Energies (rows,) of inputs (rows, n_in), of which n are atoms; the inputs give way to their adjoint."""
        rows, dtype, product = len(inputs), net.dtype, self.device.product
        buffer, of_each = self.workspace.buffer, self.workspace.of_each
        text = kernel_text("fitting.cu", Real=net.real)
        x, slopes = inputs, []
        for k, layer in enumerate(net.layers):
            z = buffer(f"slope{k}", (rows, layer.n_out), dtype)
            is_last = k + 1 == len(net.layers)
            y = energies.reshape(rows, 1) if is_last else buffer(f"value{k % 2}", z.shape, dtype)
            product(x, layer.w, z)
            of_each(text, "activate", n * layer.n_out, layer.struct, np.int64(n), z, x, y)
            slopes.append(z)
            x = y
        above: Array | None = None  # the adjoint of a layer's output: 1 for the last
        for k, layer in reversed(list(enumerate(net.layers))):
            adjoint = buffer(f"adjoint{k % 2}", (rows, layer.n_in), dtype) if k else inputs
            below = slopes[k - 1] if k else None
            product(slopes[k], layer.w, adjoint, transposed=True)
            if layer.skip or below is not None:
                of_each(text, "pass_back", n * layer.n_in, layer.struct, np.int64(n), above, adjoint, below)
            above = adjoint

    def _uploaded(self, env: Environment) -> CardSystem:
        positions, types = (
            self.workspace.up("positions", env.positions, np.float64),
            self.workspace.up("types", env.types, np.int32),
        )
        return CardSystem(positions, types, *self.list_of(env.neighbors))

    def _descriptor(self, p: SeAParameters, e: Embedding) -> NDArray:
        kept = self._described
        if kept is None or kept[0] is not p or kept[1] is not e:
            work, coefficients = self.workspace, e.table.coefficients
            tables = grid_structs(e.table.grids), coefficients, e.empty
            arrays = [work.new(a) for a in (p.sel, p.davg, 1.0 / p.dstd, p.network, p.flags, *tables)]
            struct = descriptor_struct(p, map(work.address, arrays), coefficients.shape[1])
            kept = self._described = p, e, struct, arrays
        return kept[2]
