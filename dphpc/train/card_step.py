"""The same physics as `step.TableStep` with atoms, weights and all that lies between them on a card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array
from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.model.radial_table import Grid
from dphpc.ops.energy.cuda import MOST_CHANNELS
from dphpc.ops.fitting.cuda import CudaFittingTape
from dphpc.ops.se_a.contract import Environment, SeAParameters
from dphpc.ops.se_a.cuda import CardEnvironment, CudaSeA, Described
from dphpc.ops.se_a.cuda_knots import CudaKnotTable
from dphpc.ops.workspace import Workspace
from dphpc.train.data import Batch
from dphpc.train.parameters import Parameters
from dphpc.train.step import (
    Centers,
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
    env: CardEnvironment
    table: Table
    described: Described
    moments_adjoint: Array
    columns: Array | None


def require_for_card(model: DPModel) -> None:
    """Refuse models that are not trained on a card.

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
        problem = f"the embedding net has {networks[0].n_out} outputs", f"at most {MOST_CHANNELS} on a card"
    elif len(dtypes) > 1:
        problem = "descriptor and fitting_net have different precisions", "one for both on a card"
    if problem is not None:
        raise InputError(problem[0], where="model", expected=problem[1], remedy="or --device cpu")


class CardStep(TableStep):
    """Energies and loss gradients of batches on the card that holds the parameters; used like `TableStep`.

    Predictions come down, derivatives of the loss go up; gradients stay where the optimizer takes them.
    """

    def __init__(self, model: DPModel, parameters: Parameters, grid: Grid, tolerance: float) -> None:
        assert parameters.device is not None
        d = model.descriptor
        dtype = d.networks[0].layers[0].w.dtype
        self._work = Workspace(parameters.device)
        self._ops = CudaSeA(parameters.device, d.n_channels, d.axis_neuron, model.n_types, dtype)
        self._described: tuple[Table, Described] | None = None
        self._kept_on_card: _Kept | None = None
        super().__init__(model, parameters, grid, tolerance)

    def _tape(self, t: int) -> CudaFittingTape:
        return CudaFittingTape(self.parameters.fitting_networks[t], self._ops)

    def _knots(self, used: tuple[int, ...], p: SeAParameters) -> CudaKnotTable:
        networks = [self.parameters.descriptor_networks[i] for i in used]
        return CudaKnotTable(self._ops.device, networks, p, self.grid)

    def _described_by(self, table: Table) -> Described:
        if self._described is None or self._described[0] is not table:
            grids, knots = [table.grid] * len(table.used), table.knots
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
            Two atoms are too close for the table, or the force of a pair is beyond what is summed.
        """
        centers, ops = Centers.of(batch, self.model), self._ops
        place = Environment(batch.positions, batch.types, batch.neighbors, centers.atoms)
        env = ops.environment(place, batch.geometries or [batch])
        used = self._networks_of(batch, [t for t, _ in centers.blocks])
        columns = parameter_columns(self.model, batch)
        on_card = None if columns is None else self._work.up("columns", columns[centers.atoms], ops.dtype)
        while True:
            table = self._table_for(used)
            described = self._described_by(table)
            moments = ops.moments(env, described)
            atom_energy, moments_adjoint = self._fit(batch, centers, moments, on_card)
            if (largest := ops.largest()) <= self.grid.upper:
                break
            self.grid = self._reaching(largest)
        forces, center_virial = ops.forces(env, described, moments_adjoint)
        self._kept_on_card = _Kept(batch, centers, env, table, described, moments_adjoint, on_card)
        return Prediction(
            atom_energy,
            sum_by_frame(atom_energy, batch.frame, batch.n_frames),
            forces,
            sum_by_frame(center_virial, batch.frame[centers.atoms], batch.n_frames),
        )

    def _fit(
        self, batch: Batch, centers: Centers, moments: Array, columns: Array | None
    ) -> tuple[NDArray[np.float64], Array]:
        """Atomic energies (n_local,), on the host, and their derivative by the moments."""
        n, work, dtype = len(centers.atoms), self._work, self._ops.dtype
        energies, adjoint = work.buffer("energies", (2, n), dtype), work.buffer("adjoint", moments.shape, dtype)
        energies.fill(0.0)  # the second are of atoms without neighbors
        for t, rows in centers.blocks:
            extra = None if columns is None else columns[rows]
            self._tapes[t].energy_and_adjoint(moments[rows], extra, energies[0, rows], adjoint[rows])
            if t in self._vacuum:
                still = self._no_moments_like(1 if columns is None else rows.stop - rows.start)
                first = slice(rows.start, rows.start + len(still))
                scratch = work.buffer("scratch", still.shape, dtype)
                self._vacuum[t].energy_and_adjoint(still, extra, energies[1, first], scratch)
        found = self._ops.device.download(energies).astype(np.float64)
        atom_energy = np.zeros(batch.n_local)
        for t, rows in centers.blocks:
            vacuum = found[1, rows] if columns is not None else found[1, rows.start]
            atom_energy[centers.atoms[rows]] = found[0, rows] + self.model.energy_bias[t] - vacuum
        return atom_energy, adjoint

    def _no_moments_like(self, n: int) -> Array:
        """Moments (n, 4, M) of atoms without neighbors; nothing writes there."""
        return self._work.buffer("no_moments", (n, 4, self._ops.channels), self._ops.dtype)

    def backward(self, loss: LossGradient, done: Callable[[str], None] = lambda _: None) -> None:
        """See `TableStep.backward`."""
        k, work, ops = self._kept_on_card, self._work, self._ops
        assert k is not None, "forward comes first"
        self.parameters.zero_gradients()
        seeds = loss.atom_seeds(k.batch)[k.centers.atoms]
        seeds_on_card = work.up("seeds", seeds, ops.dtype)
        direction = np.zeros((k.batch.n_local, 3)) if loss.forces is None else -loss.forces
        motion = ops.motion(k.env, direction, loss.strains(k.batch.frame[k.centers.atoms]))
        tangent = ops.tangent(k.env, k.described, motion)
        moments_bar = work.buffer("moments_bar", tangent.shape, ops.dtype)
        blocks = dict(k.centers.blocks)
        for t, tape in self._tapes.items():
            if t in blocks:
                rows, gradients = blocks[t], self._gradients[t]
                tape.gradient(seeds_on_card[rows], tangent[rows], gradients, moments_bar[rows])
                if t in self._vacuum:
                    minus = -seeds[rows] if k.columns is not None else -seeds[rows].sum(keepdims=True)
                    still = self._no_moments_like(len(minus))
                    scratch = work.buffer("scratch", still.shape, ops.dtype)
                    on_card = work.up("minus", minus, ops.dtype)
                    self._vacuum[t].gradient(on_card, still, gradients, scratch, add=True)
            done(f"fitting.networks.{t}")
        if not self.model.descriptor.trainable:
            return
        found = ops.tangent_adjoint(k.env, k.described, motion, moments_bar, k.moments_adjoint)
        k.table.knots.backward(*found, [self._embedding_gradients[i] for i in k.table.used])
        done("descriptor")
        self._fresh = False
