"""A Deep Potential as a term of the energy: descriptor, fitting nets and forces, tile by tile."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.core.errors import InputError, RunError
from dphpc.core.exact_sum import exact_sum
from dphpc.core.state import State
from dphpc.model.compress import compress
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model
from dphpc.model.radial_table import NetworkEmbedding, RadialTable, ScalarEmbedding
from dphpc.model.tabulation import tabulation_of
from dphpc.ops.energy import native as native_energy
from dphpc.ops.energy import reference as reference_energy
from dphpc.ops.energy.contract import Accumulators, EnergyOps
from dphpc.ops.energy.cuda import CudaEnergy
from dphpc.ops.energy.gpu import GpuSums, GpuSystem
from dphpc.ops.energy.tiles import Group
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.se_a import native, reference
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters
from dphpc.potential.contract import SAMPLE, Halo, Outputs
from dphpc.potential.surroundings import nearest_pair

log = logging.getLogger(__name__)

PRECISIONS = {"float64": np.float64, "mixed": np.float32, "tf32": np.float32, "float32": np.float32}
"""Name of a precision, and the type of table, moments and fitting net; sums are float64 in each."""

R_TABLE = 0.5
"""Å; a network without a table is tabulated for distances from here on, and nearer pairs extend the table."""

R_OVERLAP = 0.05
"""Å; atoms nearer than this overlap, and the run stops."""

TABLE_TOLERANCE = 1e-11
"""Error allowed in G and G′ when a network is tabulated on loading; forces change by about as much, in eV/Å.  Networks
with a gate have one of forces, as `gated_table` measures it."""

MAX_INTERVALS = 8192
"""Most intervals of such a table; the steepest trained nets so far took a quarter of them."""

FLOAT32_TABLE_TOLERANCE = 1e-6
"""Error allowed in dG/dr, as `compress` measures it, for a table in float32, whose rounding alone changes forces by
4e-7 to 8e-7 eV/Å."""

SEL_BLOCK = 512
"""Atoms whose neighbors are counted at a time."""


class DeepPotential:
    """Evaluates a model on a rank's atoms; see `contract.Potential`.

    Parameters
    ----------
    precision
        `float64`; `mixed`: float32 table, moments and fitting net, float64 displacements, energies and sums; `tf32`:
        `mixed`, but large products in pieces of TF32 on a GPU that has it; `float32`: displacements rounded too.
    fparam
        (numb_fparam,) frame parameters of the run, where the model wants them and has no default.
    device
        The GPU that evaluates it; None for the CPU.

    Raises
    ------
    InputError
        Unknown precision, or frame parameters that are missing or do not fit; on a GPU also a network whose activation
        has kinks, without a table.
    """

    def __init__(
        self, model: DPModel, precision: str = "float64", fparam: Any = None, device: Device | None = None
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"unknown precision '{precision}'", expected=", ".join(PRECISIONS))
        self.model, self.precision = model, precision
        self.cutoff, self.type_map = model.descriptor.rcut, list(model.type_map)
        self.dtype = PRECISIONS[precision]
        self.parameters = replace(SeAParameters.of(model), round_displacements=precision == "float32")
        kinked = bool(model.descriptor.kinks)
        by_reference = kinked and model.table is None
        self._ops: ModuleType = reference if by_reference else native
        self._energy_ops: EnergyOps = reference_energy if by_reference else native_energy
        self.device, self._gpu = device, None if device is None else CudaEnergy(device, in_pieces=precision == "tf32")
        self._placed: list[list[Group]] = []  # the groups of each part
        self._counts = b""  # numbers of local atoms by part and type, see `version`
        self._extra: Array | None = None  # frame parameters on the GPU, repeated for each row
        if self._gpu is not None:
            if by_reference:
                raise InputError(
                    "a network with kinks and without a table cannot be evaluated on a GPU",
                    where="model",
                    remedy=f"say device: cpu, or {model.descriptor.without_kinks}",
                )
            self._energy_ops = self._gpu
        self._set_table(self._coarse_table() if self.dtype == np.float32 and not kinked else self._exact_table())
        self._networks = [net.astype(self.dtype) for net in model.fitting.networks]
        shape = model.descriptor.networks[0].n_out, model.descriptor.axis_neuron
        self._nets = [self._energy_ops.prepare(net, *shape) for net in self._networks]
        self.fparam = self._checked_fparam(fparam)
        self._compared_with_sel = False

    @classmethod
    def from_file(
        cls, path: str | Path, precision: str = "float64", fparam: Any = None, device: Device | None = None
    ) -> DeepPotential:
        """The potential of a model file."""
        return cls(read_model(path), precision, fparam, device)

    def _exact_table(self) -> ScalarEmbedding:
        """The model's table, or one as accurate as float64 allows; the networks themselves if they have kinks."""
        d = self.model.descriptor
        if self.model.table is not None:
            return self.model.table
        if self._ops is reference:
            return NetworkEmbedding(d.networks)
        return tabulation_of(d).exact(R_TABLE, TABLE_TOLERANCE, MAX_INTERVALS)

    def _coarse_table(self) -> RadialTable:
        """A table as accurate as float32 allows: fewer intervals are cached better, and more pairs share one."""
        table = compress(self.model, tolerance=FLOAT32_TABLE_TOLERANCE)[0].table
        assert table is not None
        return table

    @property
    def table(self) -> ScalarEmbedding:
        """The embedding that is evaluated, in float64: the model's table, or the one made on loading."""
        return self._table

    def _set_table(self, table: ScalarEmbedding) -> None:
        self._table = table
        empty = self.model.descriptor.empty_slots(table)
        if isinstance(table, RadialTable):
            table = table.astype(self.dtype)
        self._embedding = Embedding(table, empty.astype(self.dtype))
        self._edition = object()

    def _checked_fparam(self, fparam: Any) -> NDArray[np.float64] | None:
        wanted = self.model.fitting.numb_fparam
        fparam = self.model.fitting.default_fparam if fparam is None else fparam
        if fparam is None:
            return None
        values = np.asarray(fparam, np.float64).ravel()
        if len(values) != wanted:
            raise InputError(f"{len(values)} frame parameters given", expected=f"{wanted}, as the model was trained")
        return values

    def require_ready(self, *, deterministic: bool) -> None:
        """Raise before a run what `compute` would raise at its first step.

        Raises
        ------
        InputError
            The model needs parameters that are not given, or cannot be evaluated reproducibly.
        """
        self._columns(1)
        if deterministic and self._ops is reference:
            raise reference_energy.not_reproducible()

    def memory_per_atom(self) -> float:
        """Bytes for each local atom, in addition to state and neighbor list.

        A copy of the forces, ghosts included, an energy and an index for each center; features exist for a tile only.
        """
        return 96.0

    def compute(
        self,
        state: State,
        neighbors: Neighbors,
        halo: Halo | None,
        outputs: Outputs,
        centers: NDArray[np.int32] | None = None,
    ) -> None:
        """See `contract.Potential.compute`."""
        self.look_over(state, neighbors)
        self.evaluate(state, neighbors, outputs, self._columns(state.n_local), centers)

    def look_over(self, state: State, neighbors: Neighbors) -> None:
        """Warn once if an atom has more neighbors than `sel`: DeePMD-kit would drop the farthest."""
        if self._compared_with_sel:
            return
        self._compared_with_sel = True
        sel, mixed = np.array(self.model.descriptor.sel), self.model.descriptor.mixed
        for start in range(0, min(state.n_local, SAMPLE), SEL_BLOCK):
            rows = neighbors.offsets[start : min(start + SEL_BLOCK, state.n_local) + 1]
            second = neighbors.indices[rows[0] : rows[-1]]
            first = np.repeat(np.arange(start, start + len(rows) - 1), np.diff(rows))
            near = np.linalg.norm(state.positions[second] - state.positions[first], axis=1) < self.cutoff
            counts = np.zeros((len(rows) - 1, len(sel)), np.int64)
            of = np.zeros(len(near), np.int64) if mixed else state.types[second]
            np.add.at(counts, (first[near] - start, of[near]), 1)
            over = np.argwhere((counts > sel) & (sel > 0))
            if len(over):
                i, t = (int(k) for k in over[0])
                log.warning(
                    f"atom {state.ids[start + i]} has {counts[i, t]} neighbors"
                    f"{'' if mixed else f' of type {self.type_map[t]}'}, sel is "
                    f"{sel[t]}: all of them count here, while DeePMD-kit drops the farthest"
                )
                return

    def _columns(self, n_local: int) -> NDArray[np.float64] | None:
        fitting = self.model.fitting
        if fitting.numb_fparam and self.fparam is None:
            raise InputError(
                f"the model takes {fitting.numb_fparam} frame parameters and none are given",
                where="model", remedy="give them, in a run file as model_inputs: {fparam: [...]}",
            )  # fmt: skip
        if fitting.numb_aparam:
            raise InputError(
                f"the model takes {fitting.numb_aparam} parameters of each atom, which a run does not give",
                where="model", expected="a model without numb_aparam",
            )  # fmt: skip
        fparam = None if self.fparam is None else np.tile(self.fparam, (n_local, 1))
        return fitting.parameter_columns(fparam, None)

    def evaluate(
        self,
        state: State,
        neighbors: Neighbors,
        outputs: Outputs,
        columns: NDArray[np.float64] | None = None,
        centers: NDArray[np.int32] | None = None,
    ) -> None:
        """As `compute`, with the fitting net's extra input columns (n_local, numb_fparam + numb_aparam) given.

        Raises
        ------
        InputError
            They are missing, or of another shape.
        """
        given = (state.n_local, 0) if columns is None else columns.shape
        wanted = (state.n_local, self.model.fitting.numb_fparam + self.model.fitting.numb_aparam)
        if given != wanted:
            raise InputError(
                f"parameters of shape {given} for {state.n_local} atoms", expected=f"{wanted}, of frame and atoms",
                remedy="make them by DeepPot.parameter_columns",
            )  # fmt: skip
        sums = (outputs.forces, outputs.energy_parts, outputs.virial_parts, outputs.atom_energy, outputs.atom_virial)
        kept = [(array, array.copy()) for array in sums if array is not None]
        all_centers = np.arange(state.n_local, dtype=np.int32) if centers is None else centers
        types = state.types[all_centers]
        for t in range(self.model.n_types):
            of_type = all_centers[types == t]
            if t in self.model.atom_exclude_types or not len(of_type):
                continue
            env = Environment(state.positions, state.types, neighbors, of_type)
            s_max = self._add_type(state, env, t, columns, outputs)
            if s_max > self._table.upper:
                # Some pair is nearer than the table reaches: undo what was added, and start again.
                for array, before in kept:
                    array[...] = before
                self._extend(s_max, state.positions, state.ids, neighbors)
                return self.evaluate(state, neighbors, outputs, columns, centers)

    def _add_type(
        self, state: State, env: Environment, t: int, columns: NDArray[np.float64] | None, outputs: Outputs
    ) -> float:
        """Add the results of the environment's centers, all of type t; returns the largest s̃."""
        centers = env.centers
        extra = None if columns is None else np.ascontiguousarray(columns[centers], self.dtype)
        out = Accumulators(outputs.forces, outputs.virial_parts, outputs.atom_virial, outputs.force_spacing)
        energies, s_max = self._energy_ops.energy_and_forces(
            env, self.parameters, self._embedding, self._nets[t], extra, out
        )
        if s_max > self._table.upper:
            return s_max
        energies += self.model.energy_bias[t] - self._vacuum(t, columns, centers)
        if not np.isfinite(energies).all():
            bad = int(state.ids[centers][~np.isfinite(energies)][0])
            raise RunError(f"the energy of atom {bad} is not finite", remedy="check the structure near it")
        if outputs.atom_energy is not None:
            outputs.atom_energy[centers] += energies
        outputs.energy_parts += exact_sum(energies)
        return s_max

    def expect(self, counts: NDArray[np.int64]) -> None:
        """See `contract.GpuPotential.expect`."""
        if self._gpu is not None:
            gpu, n_all = self._gpu, int(counts.sum())
            self._nets = [gpu.tiled(net, n, n_all) for net, n in zip(self._nets, counts.tolist(), strict=True)]
            self._edition = object()

    @property
    def rows(self) -> NDArray[np.int64]:
        """See `contract.GpuPotential.rows`."""
        return np.array([net.rows for net in self._nets], np.int64)

    def place(self, parts: NDArray[np.int64], by_type: Array) -> None:
        """See `contract.GpuPotential.place`."""
        assert self._gpu is not None
        device, row = self._gpu.device, 0
        columns = self._columns(1)
        ends = np.cumsum(parts.T.ravel()).reshape(parts.T.shape).T  # in `by_type`
        groups: list[list[tuple[Group, Array]]] = [[] for _ in parts]
        for t in range(self.model.n_types):
            if t in self.model.atom_exclude_types:
                continue
            # Frame parameters are the same for all atoms.
            shift = self.model.energy_bias[t] - self._vacuum(t, columns, np.zeros(1, np.int32))
            for part, n, end in zip(groups, parts[:, t].tolist(), ends[:, t].tolist(), strict=True):
                if n:
                    part.append((Group(self._nets[t], n, float(np.ravel(shift)[0])), by_type[end - n : end]))
        self._placed, self._counts = [[group for group, _ in part] for part in groups], parts.tobytes()
        n_rows = sum(group.n_rows for part in self._placed for group in part)
        self._centers = self._gpu.workspace.buffer("placed", (n_rows,), np.int32)
        for group, atoms in itertools.chain(*groups):
            end = row + group.n_rows
            device.copy(atoms, self._centers[row : row + group.n])
            if row + group.n < end:
                device.fill(self._centers[row + group.n : end], -1)
            row = end
        if columns is not None and (self._extra is None or len(self._extra) < n_rows):
            self._extra = self._gpu.workspace.new(np.repeat(columns.astype(self.dtype), n_rows, axis=0))

    def version(self) -> Hashable:
        """See `contract.GpuPotential.version`."""
        assert self._gpu is not None
        kept = self._gpu.workspace
        return self._edition, self._counts, kept.growths, kept.address(self._extra)

    def list_on_gpu(self, neighbors: Neighbors) -> tuple[Array, Array]:
        """See `contract.GpuPotential.list_on_gpu`."""
        assert self._gpu is not None
        return self._gpu.list_of(neighbors)

    def launch(self, system: GpuSystem, sums: GpuSums, part: int = 0) -> None:
        """See `contract.GpuPotential.launch`."""
        assert self._gpu is not None
        if groups := self._placed[part]:
            first = sum(group.n_rows for group in itertools.chain(*self._placed[:part]))
            given = self._centers[first:], self.parameters, self._embedding, groups, self._extra
            self._gpu.launch(system, *given, sums)

    def _vacuum(self, t: int, columns: NDArray[np.float64] | None, centers: NDArray[np.int32]) -> Any:
        """The net's energy of an atom without neighbors, subtracted if `atom_ener` gives the type's energy; else 0."""
        if not self.model.fitting.subtracts_vacuum(t):
            return 0.0
        inputs = np.zeros((1, self._networks[t].n_in), self.dtype)
        if columns is None:
            return float(self._networks[t](inputs)[0, 0])
        # Each distinct row once: BLAS may round a row differently with the number of rows.
        rows, which = np.unique(columns[centers], axis=0, return_inverse=True)
        inputs = np.repeat(inputs, len(rows), axis=0)
        inputs[:, self.model.descriptor.n_features :] = rows
        return self._networks[t](inputs)[:, 0].astype(np.float64)[which.ravel()]

    def descriptors(self, env: Environment, ids: NDArray[np.int64]) -> NDArray[np.floating]:
        """Features (n_centers, M·axis) of the environment's centers; `ids` (n_all,) are for messages."""
        moments, s_max = self._ops.moments(env, self.parameters, self._embedding)
        if s_max > self._table.upper:
            self._extend(s_max, env.positions, ids, env.neighbors)
            moments, _ = self._ops.moments(env, self.parameters, self._embedding)
        return self._ops.features(moments, self.parameters.axis_neuron)

    def _extend(
        self, s_max: float, positions: NDArray[np.float64], ids: NDArray[np.int64], neighbors: Neighbors
    ) -> None:
        """Extend the table from the networks to `s_max`: a pair is nearer than any before."""
        assert isinstance(self._table, RadialTable)
        d = self.model.descriptor
        if not s_max <= d.s_range(R_OVERLAP)[1]:
            i, j = nearest_pair(positions, neighbors)
            raise RunError(
                f"atoms {ids[i]} and {ids[j]} are nearer than {R_OVERLAP} Å",
                remedy="check the structure and the time step",
            )
        # A few percent more, so that a slowly approaching pair does not extend the table at every step.
        self._set_table(self._table.extended(d.networks, s_max + 0.05 * abs(s_max)))
