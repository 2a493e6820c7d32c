"""The same physics as `step.TableStep`, with atoms, weights and all intermediate results on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.model.networks import Network
from dphpc.model.radial_table import Grid
from dphpc.ops.energy.cuda import MOST_CHANNELS
from dphpc.ops.fitting.cuda import CudaFittingTape
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.se_a.cuda import CudaSeA, Described
from dphpc.ops.se_a.cuda_frames import GpuEnvironment
from dphpc.ops.se_a.cuda_knots import CudaKnotTable
from dphpc.ops.workspace import Kind, Parcel, Workspace
from dphpc.train.data import Batch, Centers
from dphpc.train.step import (
    GradientArrays,
    LossGradient,
    Prediction,
    Table,
    TableStep,
    parameter_columns,
    sum_by_frame,
)


@dataclass(frozen=True)
class _Kept:
    batch: Batch
    centers: Centers
    env: GpuEnvironment
    table: Table
    described: Described
    columns: Array | None


def require_for_gpu(model: DPModel) -> None:
    """Refuse models that cannot be trained on a GPU.

    Raises
    ------
    InputError
        The network has kinks, is too wide, or the two kinds of nets have different precisions.
    """
    networks = model.descriptor.networks
    dtypes = {layer.w.dtype for net in (*networks, *model.fitting.networks) for layer in net.layers}
    problem = None
    if any(net.has_kinks for net in networks):
        name = model.descriptor.activation_function
        problem = (
            f"the embedding net's activation '{name}' has kinks, for which there is no table",
            "a smooth one: tanh",
        )
    elif networks[0].n_out > MOST_CHANNELS:
        problem = f"the embedding net has {networks[0].n_out} outputs", f"at most {MOST_CHANNELS} on a GPU"
    elif len(dtypes) > 1:
        problem = "descriptor and fitting_net have different precisions", "one for both on a GPU"
    if problem is not None:
        raise InputError(problem[0], where="model", expected=problem[1], remedy="or --device cpu")


class GpuNetworks(GradientArrays, Protocol):
    """The networks that a step evaluates, on a GPU: `Parameters`, or those that follow from shared ones."""

    descriptor_networks: list[Network]
    fitting_networks: list[Network]

    @property
    def device(self) -> Device | None:
        """The GPU."""
        ...

    def fetch(self) -> None:
        """Copy their arrays to the model's."""
        ...


class GpuStep(TableStep):
    """Energies and loss gradients of batches on the GPU that holds the parameters; used like `TableStep`.

    Predictions are copied to the host and derivatives of the loss to the GPU; gradients stay on the GPU.
    """

    parameters: GpuNetworks

    def __init__(self, model: DPModel, parameters: GpuNetworks, grid: Grid, tolerance: float) -> None:
        assert parameters.device is not None
        d = model.descriptor
        dtype = d.networks[0].layers[0].w.dtype
        self._work = Workspace(parameters.device)
        self._ops = CudaSeA(parameters.device, d.n_channels, d.axis_neuron, model.n_types, dtype)
        self._described: tuple[Table, Described] | None = None
        self._kept_on_gpu: _Kept | None = None
        super().__init__(model, parameters, grid, tolerance)

    def _tape(self, t: int) -> CudaFittingTape:
        return CudaFittingTape(self.parameters.fitting_networks[t], self._ops)

    def _knots(self, used: tuple[int, ...], p: SeAParameters) -> Any:
        networks = [self.parameters.descriptor_networks[i] for i in used]
        return CudaKnotTable(self._ops.device, networks, p, self.grid)

    def _described_by(self, table: Table) -> Described:
        if self._described is None or self._described[0] is not table:
            grids, knots = table.grids, table.knots
            self._described = table, self._ops.described(table.p, grids, knots.coefficients, knots.empty)
        return self._described[1]

    def table_error(self) -> float:
        """See `TableStep.table_error`."""
        self.parameters.fetch()
        return super().table_error()

    def forward(self, batch: Batch) -> Prediction:
        """See `TableStep.forward`.

        Raises
        ------
        RunError
            Two atoms are too close for the table, or the force of a pair is too large for the sums.
        """
        centers = batch.centers.without(self.model.atom_exclude_types)
        env = self._ops.frames.joined(batch.geometries, centers.atoms)
        used = self._networks_of(batch.present, centers.types)
        columns = parameter_columns(self.model, batch)
        on_gpu = None if columns is None else self._work.up("columns", columns[centers.atoms], self._ops.dtype)
        while True:
            table = self._table_for(used)
            self._kept_on_gpu = k = _Kept(batch, centers, env, table, self._described_by(table), on_gpu)
            self._replay("forward", k, partial(self._evaluate, k))
            found = env.download()
            if found.largest <= table.upper:
                break
            self.grid = self._reaching(found.largest)
        forces, virial = found.exerted()
        atom_energy = self._atom_energy(k, found.energies.astype(np.float64))
        return Prediction(
            atom_energy,
            sum_by_frame(atom_energy, batch.frame, batch.n_frames),
            forces,
            virial,
        )

    def _replay(self, name: str, k: _Kept, work: Callable[[], None]) -> None:
        """Do a part of a pass through `Device.replay`: its launches are the same for all batches of one shape."""
        makers = self._work, self._ops, k.table.knots, *self._tapes.values(), *self._vacuum.values()
        growths = sum(maker.growths for maker in makers)
        self._ops.device.replay((self, name, k.table.knots, growths, k.env.shape), work)

    def _update(self, table: Table) -> None:
        self._ops.device.replay((table.knots, table.knots.growths), table.knots.update)

    def _evaluate(self, k: _Kept) -> None:
        """Compute energies, their derivatives with respect to the moments, and forces."""
        self._ops.moments(k.env, k.described)
        moments, adjoint = self._ops.moments_of(k.env), self._like_moments("adjoint", k)
        self._ops.device.fill(k.env.energies, 0.0)  # row 1 is that of atoms without neighbors
        self._ops.device.beside([partial(self._fit, k, moments, adjoint, t, rows) for t, rows in k.centers.blocks])
        self._ops.forces(k.env, k.described, adjoint)

    def _fit(self, k: _Kept, moments: Array, adjoint: Array, t: int, rows: slice) -> None:
        """Energies of a type's centers and derivatives with respect to moments; types share no memory, see `beside`."""
        extra = None if k.columns is None else k.columns[rows]
        self._tapes[t].energy_and_adjoint(moments[rows], extra, k.env.energies[0, rows], adjoint[rows])
        if t in self._vacuum:
            still, scratch = self._without_neighbors(k, t, rows)
            first = slice(rows.start, rows.start + len(still))
            self._vacuum[t].energy_and_adjoint(still, extra, k.env.energies[1, first], scratch)

    def _atom_energy(self, k: _Kept, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_local,) eV, from the nets' outputs (2, n) for the centers, and for centers without neighbors."""
        atom_energy = np.zeros(k.batch.n_local)
        for t, rows in k.centers.blocks:
            vacuum = found[1, rows] if k.columns is not None else found[1, rows.start]
            atom_energy[k.centers.atoms[rows]] = found[0, rows] + self.model.energy_bias[t] - vacuum
        return atom_energy

    def _like_moments(self, name: str, k: _Kept) -> Array:
        """A buffer of the moments' shape (n, 4, M)."""
        return self._work.buffer(name, (k.env.n, 4, self._ops.channels), self._ops.dtype)

    def _without_neighbors(self, k: _Kept, t: int, rows: slice) -> tuple[Array, Array]:
        """Moments of centers without neighbors, which are zero, and as much scratch memory.

        If the net has no other inputs, one row stands for all centers.
        """
        shape = 1 if k.columns is None else rows.stop - rows.start, 4, self._ops.channels
        still, scratch = (self._work.buffer(f"{name}{t}", shape, self._ops.dtype) for name in ("no_moments", "scratch"))
        return still, scratch

    def backward(self, loss: LossGradient, done: Callable[[str], None] | None = None) -> None:
        """See `TableStep.backward`."""
        k, ops = self._kept_on_gpu, self._ops
        assert k is not None, "forward comes first"
        seeds = loss.atom_seeds(k.batch)[k.centers.atoms]
        direction, strain = loss.direction(k.batch.n_local), loss.strains(np.arange(k.batch.n_frames))
        kinds: list[Kind] = [(a.shape, np.float64) for a in (direction, strain)]
        given = Parcel(self._work, "loss", [*kinds, *[(seeds.shape, ops.dtype)] * 2])
        given.upload(direction, strain, seeds, self._minus(k, seeds))
        motion = ops.motion(k.env, *given.arrays[:2])
        fitting = {f"fitting.networks.{t}": partial(self._fitting_backward, k, t, given) for t in self._tapes}
        parts = {"tangent": partial(ops.tangent, k.env, k.described, motion), **fitting}
        if self.model.descriptor.trainable:
            parts["descriptor"] = partial(self._descriptor_backward, k, motion)
            self._fresh = False
        if done is None:
            self._replay("backward", k, partial(self._together, parts))
            return
        for name, work in parts.items():
            self._replay(name, k, work)
            if name != "tangent":
                done(name)

    def _together(self, parts: Mapping[str, Callable[[], None]]) -> None:
        """All parts of the backward pass, with the types side by side."""
        parts["tangent"]()
        self._ops.device.beside([parts[f"fitting.networks.{t}"] for t in self._tapes])
        if "descriptor" in parts:
            parts["descriptor"]()

    def _minus(self, k: _Kept, seeds: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) derivatives by energies of centers without neighbors; a type's sum where one row stands for it."""
        minus = -seeds
        for _, rows in k.centers.blocks:
            if k.columns is None:
                minus[rows.start] = -seeds[rows].sum()
        return minus

    def _fitting_backward(self, k: _Kept, t: int, given: Parcel) -> None:
        """Gradients of a type's net, after the tangent of the moments; types share no memory, see `beside`."""
        ops, gradients = self._ops, self._gradients[t]
        rows = dict(k.centers.blocks).get(t)
        if rows is None:
            self._clear(gradients)
            return
        _, _, seeds, minus = given.arrays
        tangent, moments_bar = ops.tangent_of(k.env), self._like_moments("moments_bar", k)[rows]
        self._tapes[t].gradient(ops.moments_of(k.env)[rows], seeds[rows], tangent[rows], gradients, moments_bar)
        if t in self._vacuum:
            still, scratch = self._without_neighbors(k, t, rows)
            own = minus[rows.start : rows.start + len(still)]
            self._vacuum[t].gradient(still, own, still, gradients, scratch, add=True)

    def _descriptor_backward(self, k: _Kept, motion: NDArray) -> None:
        adjoints = self._like_moments("moments_bar", k), self._like_moments("adjoint", k)
        self._table_backward(k.table, *self._ops.tangent_adjoint(k.env, k.described, motion, *adjoints))

    def _clear(self, gradients: Mapping[str, Array]) -> None:
        """See `TableStep._clear`."""
        for gradient in gradients.values():
            self._ops.device.fill(gradient, 0.0)
