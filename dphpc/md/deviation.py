"""How far other models disagree with the one that drives a run, as LAMMPS' `pair_style deepmd` writes it.

The other models are evaluated on the run's own positions and neighbor list, so that a committee of four costs three
evaluations more, at the steps that are asked for only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DphpcError, InputError
from dphpc.core.exact_sum import PARTS, exact_sum, total
from dphpc.md.config import Deviation, Trajectory
from dphpc.md.engine import Engine
from dphpc.md.output import Output, TableFile, writing
from dphpc.md.trajectory import FrameWriter, open_trajectory, write_frame
from dphpc.md.trouble import kind_of
from dphpc.parallel.comm import Serial, agree, together
from dphpc.potential.committee import (
    COLUMNS,
    force_deviation,
    require_types,
    table_header,
    table_line,
    virial_deviation,
)
from dphpc.potential.contract import Outputs, Potential

LAMMPS_COLUMNS = COLUMNS[:6]


class DeviationMonitor:
    """The models beside the driving one, the table of their deviation, and what it decides.

    Parameters
    ----------
    models
        By the names of their files.
    driving
        The run's potential; `name` is what the run file calls it.

    Attributes
    ----------
    exceeded
        eV/Å: the largest force deviation, once it is above `stop_above`; the same on all ranks.

    Raises
    ------
    InputError
        A model has other types, or sees farther than the driving one, whose neighbor list it is given.
    """

    def __init__(self, settings: Deviation, models: dict[str, Potential], driving: Potential, name: str) -> None:
        self.settings, self.models = settings, models
        for path, model in models.items():
            require_types(model.type_map, path, driving.type_map, name)
            if model.cutoff > driving.cutoff:
                raise InputError(
                    f"the model sees as far as {model.cutoff:g} Å", where=f"{path}, in 'deviation'",
                    expected=f"at most {driving.cutoff:g} Å, the cutoff of {name}, which drives the run",
                    remedy="let the model with the largest cutoff be the run's 'model'",
                )  # fmt: skip
        self.exceeded: float | None = None
        self._table: TableFile | None = None
        self._candidates: FrameWriter | None = None
        self._frames = Trajectory(file=settings.candidates, format="extxyz")

    def memory_per_atom(self) -> float:
        """Bytes for each local atom while the models are compared: their forces, twice, and one evaluation."""
        return 2 * 24.0 * (1 + len(self.models)) + max(model.memory_per_atom() for model in self.models.values())

    def open(self, species: list[str], masses: NDArray[np.float64], kept: Mapping[str, int]) -> None:
        """Open the files, on rank 0; `kept` tells how far those of an earlier run are."""
        s = self.settings
        self._table = TableFile(s.file, table_header(LAMMPS_COLUMNS), kept.get(s.file))
        if s.mark_above is not None:
            self._candidates = open_trajectory(self._frames, species, masses, kept.get(s.candidates), Serial())

    def outputs(self) -> dict[str, Output | None]:
        """What writes each file, on rank 0."""
        return {self.settings.file: self._table, self.settings.candidates: self._candidates}

    def write(self, engine: Engine, energy: float) -> None:
        """Compare the models at the present positions; collective.

        Parameters
        ----------
        energy
            Potential energy in eV, for the candidate's frame.

        Raises
        ------
        RunError
            A model cannot be evaluated or a file not be written.
        """
        s, row = self.settings, self.measure(engine)
        worst = float(row[LAMMPS_COLUMNS.index("max_devi_f")])
        with engine.timers("output"):
            with together(engine.comm):
                if self._table is not None:
                    with writing(s.file, engine):
                        self._table.write(table_line(engine.step, row))
            if s.mark_above is not None and s.mark_above < worst < (s.mark_below or np.inf):
                info = dict(zip(LAMMPS_COLUMNS, row.tolist(), strict=True))
                write_frame(self._candidates, engine, self._frames, energy, info)
        # A NaN is above any limit.
        if s.stop_above is not None and not worst <= s.stop_above:
            self.exceeded = worst

    def measure(self, engine: Engine) -> NDArray[np.float64]:
        """(6,) `LAMMPS_COLUMNS` of all atoms; collective."""
        comm, n = engine.comm, engine.state.n_local
        forces, virials = [engine.state.forces[:n]], [engine.outputs.virial_parts]
        for path, model in self.models.items():
            outputs = _evaluate(model, path, engine)
            forces.append(outputs.forces[:n])
            virials.append(outputs.virial_parts)
        of_atom = force_deviation(np.array(forces))
        parts = [*(v.reshape(PARTS, 9) for v in virials), exact_sum(of_atom[:, None])]
        sums = total(comm.allreduce(np.concatenate(parts, axis=1)))
        low, high = comm.allreduce(np.array([of_atom.min(initial=np.inf), -of_atom.max(initial=0.0)]), "min") * [1, -1]
        v = virial_deviation(sums[:-1].reshape(-1, 9), engine.n_atoms)
        return np.array([*v, high, low, sums[-1] / engine.n_atoms])


def _evaluate(model: Potential, path: str, engine: Engine) -> Outputs:
    """Forces of this rank's atoms, those of its ghosts sent home, and its share of the virial; collective."""
    state = engine.state
    outputs = Outputs.zeros(state.n_local, state.n_all)
    outputs.force_spacing = engine.outputs.force_spacing
    error: Exception | None = None
    with engine.timers("force"):
        try:
            model.compute(state, engine.neighbors, engine.halo, outputs)
        except DphpcError as caught:
            where = f"step {engine.step}; model {path} of 'deviation'" + (f"; {caught.where}" if caught.where else "")
            error = kind_of(caught)(caught.what, where=where, expected=caught.expected, remedy=caught.remedy)
        except Exception as caught:
            error = caught
        agree(engine.comm, error)
    with engine.timers("halo"):
        engine.halo.reduce(outputs.forces)
    return outputs
