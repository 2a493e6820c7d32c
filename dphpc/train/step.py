"""One training step's physics: energies, forces and virials of a batch, and the loss's gradient by a tangent pass.

The loss's derivatives with respect to atomic energies, forces and virials are ē, F̄ and V̄.  Its parameter
gradient is that of S = Σ ē·E + dE/dε along x + ε·d with d = −F̄ (on images: their owner's) and every r_ij strained
by −ε·V̄: one forward and reverse pass for E, F and V, one tangent forward pass and one ordinary reverse pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import RunError
from dphpc.model.dp_model import DPModel
from dphpc.model.radial_table import Grid, RadialTable
from dphpc.model.tabulation import tabulation_of
from dphpc.ops.fitting.native import FittingTape
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters
from dphpc.ops.se_a.knots import KnotTable
from dphpc.ops.se_a.native import SeATape
from dphpc.parallel.comm import Communicator
from dphpc.train.data import Batch, Centers

MAX_INTERVALS = 4096
"""Most intervals that `check_table` asks for."""

ROUNDING = 1e-12
"""Relative rounding of a grid's end that is divided by a scale."""

ROOM = 10.0
"""Factor by which `check_table` aims below the tolerance, as the weights go on changing."""

MAX_EXTENDED = 4 * MAX_INTERVALS
"""Most intervals by which `TableStep` extends the grid for atoms that are ever nearer."""


@dataclass(frozen=True)
class Prediction:
    """Results for a batch.

    Attributes
    ----------
    atom_energy
        (n_local,) eV; 0 for types without energy.
    energy
        (n_frames,) eV.
    forces
        (n_local, 3) eV/Å.
    virial
        (n_frames, 3, 3) eV.
    """

    atom_energy: Doubles
    energy: Doubles
    forces: Doubles
    virial: Doubles

    @classmethod
    def nothing(cls, batch: Batch) -> Prediction:
        """Zeros."""
        n, n_frames = batch.n_local, batch.n_frames
        return cls(np.zeros(n), np.zeros(n_frames), np.zeros((n, 3)), np.zeros((n_frames, 3, 3)))


@dataclass(frozen=True)
class LossGradient:
    """Derivatives of the loss by a prediction's arrays; None where it does not depend on one."""

    energy: Doubles
    atom_energy: Doubles | None
    forces: Doubles | None
    virial: Doubles | None

    def atom_seeds(self, batch: Batch) -> Doubles:
        """(n_local,) derivative by each atomic energy."""
        seeds = self.energy[batch.frame]
        return seeds if self.atom_energy is None else seeds + self.atom_energy

    def direction(self, n_local: int) -> Doubles:
        """(n_local, 3) direction d = −F̄."""
        return np.zeros((n_local, 3)) if self.forces is None else -self.forces

    def strains(self, frames: NDArray[np.integer]) -> Doubles:
        """(n, 3, 3) strain −V̄ of each of n centers in the given frames."""
        if self.virial is None:
            return np.zeros((len(frames), 3, 3))
        return -self.virial[frames]


class GradientArrays(Protocol):
    """Where gradients go: `Parameters`, or arrays from which those of shared networks are made."""

    def gradients_of(self, prefix: str) -> Mapping[str, Any]:
        """Arrays of the names that begin with `prefix.`, by the rest of the name."""


class TableStep:
    """Energies and loss gradients of batches through the radial table.

    Parameters
    ----------
    model
        Its weights change with training; `parameters` was made from it.
    grid
        Knots of the table, common to all embedding networks, which read it as `tabulation_of` says.
    tolerance
        Largest error that `check_table` lets pass, `Tabulation.training_error`.
    """

    def __init__(self, model: DPModel, parameters: GradientArrays, grid: Grid, tolerance: float) -> None:
        self.model, self.parameters, self.grid, self.tolerance = model, parameters, grid, tolerance
        self.se_a = SeAParameters.of(model)
        types = range(len(model.fitting.networks))
        self._gradients = {t: parameters.gradients_of(f"fitting.networks.{t}") for t in types}
        self._embedding_gradients = [
            parameters.gradients_of(f"descriptor.networks.{i}") for i in range(len(model.descriptor.networks))
        ]
        self._passes = SeATape(model.descriptor.precision)
        self._tapes = {t: self._tape(t) for t in types}
        self._vacuum = {t: self._tape(t) for t in types if model.fitting.subtracts_vacuum(t)}
        self._scales = tabulation_of(model.descriptor).scales
        self._fresh = False
        self._n_shared = grid.n_intervals  # which all ranks know of one another
        self._table: Table | None = None
        self._used: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, ...]] = {}

    def _tape(self, t: int) -> Any:
        """A tape of a type's fitting net."""
        descriptor = self.model.descriptor
        return FittingTape(self.model.fitting.networks[t], descriptor.n_channels, descriptor.axis_neuron)

    def _knots(self, used: tuple[int, ...], p: SeAParameters) -> Any:
        """The table of the networks `used`, on the present grid."""
        return KnotTable([self.model.descriptor.networks[i] for i in used], p, self.grid)

    def _grids(self, used: tuple[int, ...]) -> tuple[Grid, ...]:
        """The present grid over the own argument of each network."""
        return tuple(self.grid.in_units_of(self._scales[i]) for i in used)

    @staticmethod
    def fitting_grid(model: DPModel, r_min: float, tolerance: float) -> Grid:
        """Knots that reach `tolerance` for the model's present weights and distances from `r_min` Å."""
        how = tabulation_of(model.descriptor)
        return how.training_grid(*how.x_range(r_min), tolerance, MAX_INTERVALS)

    # -- the table -----------------------------------------------------------------------------------------------

    def pays(self, batch: Batch, n_pairs: int) -> bool:
        """Whether a batch of so many pairs, on all ranks, pays for tables: a knot costs as much as some two pairs."""
        types = tuple(t for t in batch.present if t not in self.model.atom_exclude_types)
        return n_pairs >= 2 * (self._n_shared + 1) * len(self._networks_of(batch.present, types))

    @property
    def grown(self) -> bool:
        """Whether batches reached beyond the knots that all ranks have."""
        return self.grid.n_intervals > self._n_shared

    def share_grid(self, comm: Communicator) -> None:
        """Give all ranks the knots of all, where batches reached beyond those of some; collective."""
        # Counts, not lengths: rounding would let ranks have one more or less.  Only the last part ever grows.
        counts = comm.allreduce(np.array(self.grid.counts), "max").tolist()
        self.grid = replace(self.grid, counts=tuple(counts))
        self._n_shared = self.grid.n_intervals

    def weights_changed(self) -> None:
        """To be called when the weights have changed: they are read anew before the next pass."""
        self._fresh = False

    def table_error(self) -> float:
        """The error of the present table against the present networks."""
        return tabulation_of(self.model.descriptor).training_error(self.grid)

    def check_table(self) -> float:
        """Choose knots anew where the table misses the tolerance; returns its error then."""
        if (error := self.table_error()) > self.tolerance and self.grid.n_intervals < MAX_INTERVALS:
            # With some room, or weights that go on changing would soon have it miss the tolerance again.
            how, goal = tabulation_of(self.model.descriptor), self.tolerance / ROOM
            self.grid = how.training_grid(self.grid.lower, self.grid.upper, goal, MAX_INTERVALS)
            error = self.table_error()
        self._n_shared = self.grid.n_intervals
        return error

    def _networks_of(self, present: tuple[int, ...], center_types: tuple[int, ...]) -> tuple[int, ...]:
        """Indices of the embedding networks that centers ask for, by their pairs and their missing slots."""
        p, key = self.se_a, (present, center_types)
        if key not in self._used:
            neighbors = np.isin(np.arange(len(p.sel)), present)
            wanted = {
                int(p.network[c, t])
                for c in center_types
                for t in np.flatnonzero(((p.sel > 0) | (p.flags[c] > 0)) & (neighbors | bool(p.davg[c])))
            }
            self._used[key] = tuple(sorted(wanted)) or (0,)
        return self._used[key]

    def _table_for(self, used: tuple[int, ...]) -> Table:
        """The table of the networks `used`; it and the fitting nets' products are of the present weights."""
        if not self._fresh:
            for tape in (*self._tapes.values(), *self._vacuum.values()):
                tape.repack()
        table = self._table
        if table is None or (table.used, table.grid) != (used, self.grid):
            place = np.zeros(len(self.model.descriptor.networks), np.int32)
            place[list(used)] = np.arange(len(used))
            p = replace(self.se_a, network=place[self.se_a.network])
            self._table = table = Table(used, self.grid, self._grids(used), p, self._knots(used, p))
        elif not self._fresh:
            self._update(table)
        self._fresh = True
        return table

    def _update(self, table: Table) -> None:
        """Take the present weights."""
        table.knots.update()

    def _moments(
        self, env: Environment, owners: NDArray[np.int32], used: tuple[int, ...]
    ) -> tuple[Table, NDArray[np.floating]]:
        while True:
            table = self._table_for(used)
            moments, largest = self._passes.moments(env, table.p, table.embedding, owners)
            if largest <= table.upper:
                return table, moments
            self.grid = self._reaching(largest)

    def _reaching(self, largest: float) -> Grid:
        """The grid extended to an s̃ that a batch has, for whatever network."""
        largest *= max(self._scales) * (1.0 + ROUNDING)
        if (largest - self.grid.upper) / self.grid.steps[-1] > MAX_EXTENDED:
            raise RunError(
                "two atoms are so close that the radial table cannot reach them",
                remedy='remove the frame, or train with dphpc: {embedding: "network"}',
            )
        return self.grid.extended(largest)

    # -- the passes ----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Prediction:
        """Energies, forces and virials; what `backward` needs is kept until the next call.

        Raises
        ------
        RunError
            Two atoms are too close for the table.
        """
        centers = batch.centers.without(self.model.atom_exclude_types)
        env = Environment(batch.positions, batch.types, batch.neighbors, centers.atoms)
        table, moments = self._moments(env, batch.owners, self._networks_of(batch.present, centers.types))
        columns = parameter_columns(self.model, batch)
        center_energy = np.empty(len(centers.atoms))
        moments_adjoint = np.empty(moments.shape, self.model.fitting.precision)
        for t, rows in centers.blocks:
            extra = None if columns is None else columns[centers.atoms[rows]]
            energy, _ = self._tapes[t].energy_and_adjoint(moments[rows], extra, moments_adjoint[rows])
            center_energy[rows] = energy
            center_energy[rows] += self.model.energy_bias[t]
        atom_energy = np.zeros(batch.n_local)
        atom_energy[centers.atoms] = center_energy
        self._subtract_vacuum(centers, columns, atom_energy)
        forces, center_virial = np.zeros((batch.n_local, 3)), np.empty((len(centers.atoms), 3, 3))
        self._passes.forces_into(moments_adjoint, forces, center_virial)
        self._kept = _Kept(batch, centers, table, moments_adjoint, columns is not None)
        return Prediction(
            atom_energy,
            sum_by_frame(atom_energy, batch.frame, batch.n_frames),
            forces,
            sum_by_frame(center_virial, batch.frame[centers.atoms], batch.n_frames),
        )

    def _subtract_vacuum(self, centers: Centers, columns: Doubles | None, atom_energy: Doubles) -> None:
        """Subtract the net at zero features where `atom_ener` is given: a lone atom has its bias as its energy."""
        for t, rows in centers.blocks:
            if t not in self._vacuum:
                continue
            atoms = centers.atoms[rows]
            extra = None if columns is None else columns[atoms]
            moments = self._no_moments(1 if columns is None else len(atoms))
            atom_energy[atoms] -= self._vacuum[t].energy_and_adjoint(moments, extra)[0]

    def _no_moments(self, n: int) -> NDArray[np.floating]:
        """Moments (n, 4, M) of atoms without neighbors."""
        return np.zeros((n, 4, self.model.descriptor.networks[0].n_out), self.model.descriptor.precision)

    def backward(self, loss: LossGradient, done: Callable[[str], None] = lambda _: None) -> None:
        """Set the parameters' gradients to the loss's, for the batch of the last `forward`.

        `done` is called with the prefix of each group of names (`Parameters.gradient_parts`) whose gradients are
        finished: the fitting networks one by one, then the descriptor, whatever the batch.
        """
        k = self._kept
        direction = loss.direction(k.batch.n_local)
        strain = loss.strains(k.batch.frame[k.centers.atoms])
        tangent = self._passes.tangent(direction, strain)
        moments_adjoint = np.empty(tangent.shape, self.model.fitting.precision)
        seeds = loss.atom_seeds(k.batch)[k.centers.atoms]
        blocks = dict(k.centers.blocks)
        for t in self._tapes:
            if t in blocks:
                rows = blocks[t]
                seed = seeds[rows]
                self._tapes[t].gradient(seed, tangent[rows], self._gradients[t], out=moments_adjoint[rows])
                if t in self._vacuum:
                    still = self._no_moments(len(seed) if k.has_columns else 1)
                    minus = -seed if len(still) == len(seed) else -seed.sum(keepdims=True)
                    self._vacuum[t].gradient(minus, still, self._gradients[t], add=True)
            else:
                self._clear(self._gradients[t])
            done(f"fitting.networks.{t}")
        if not self.model.descriptor.trainable:
            return
        self._table_backward(k.table, *self._passes.tangent_adjoint(moments_adjoint, k.moments_adjoint))
        done("descriptor")
        self._fresh = False

    def _table_backward(self, table: Table, coefficients: Any, empty: Any) -> None:
        """Set the embedding networks' gradients, given those by the table's coefficients and missing slots."""
        for i, gradients in enumerate(self._embedding_gradients):
            if i not in table.used:  # first, as networks may share arrays
                self._clear(gradients)
        table.knots.backward(coefficients, empty, [self._embedding_gradients[i] for i in table.used])

    def _clear(self, gradients: Mapping[str, Any]) -> None:
        """Set the gradients of a network that the batch does not use to zero."""
        for gradient in gradients.values():
            gradient[...] = 0.0


@dataclass(frozen=True)
class Table:
    """The radial table of the networks `used`, and the descriptor's parameters with its networks in their place.

    `grids` are the grid in units of each network's own argument s̃.
    """

    used: tuple[int, ...]
    grid: Grid
    grids: tuple[Grid, ...]
    p: SeAParameters
    knots: Any

    @property
    def upper(self) -> float:
        """The largest s̃ that all networks' grids cover."""
        return min(grid.upper for grid in self.grids)

    @cached_property
    def embedding(self) -> Embedding:
        """The embedding as the operations on the CPU take it."""
        return Embedding(RadialTable(self.grids, self.knots.coefficients), self.knots.empty)


@dataclass(frozen=True)
class _Kept:
    batch: Batch
    centers: Centers
    table: Table
    moments_adjoint: NDArray[np.floating]
    has_columns: bool


def parameter_columns(model: DPModel, batch: Batch) -> Doubles | None:
    """(n_local, n_fparam + n_aparam) normalized input columns of a batch, None if the model has none."""
    fparam = None if batch.fparam is None else batch.fparam[batch.frame]
    return model.fitting.parameter_columns(fparam, batch.aparam)


def sum_by_frame(values: Doubles, frames: NDArray[np.integer], n_frames: int) -> Doubles:
    """Sums (n_frames, …) of rows (n, …) that belong to the given frames."""
    if n_frames == 1:
        return values.sum(axis=0, keepdims=True)
    columns = values.reshape(len(values), math.prod(values.shape[1:])).T
    sums: Doubles = np.array([np.bincount(frames, column, n_frames) for column in columns], np.float64)
    return sums.T.reshape(n_frames, *values.shape[1:])
