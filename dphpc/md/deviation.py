"""The deviation of a committee of models, in the format of LAMMPS' `pair_style deepmd`.

The other models are evaluated with the positions and neighbor list of the run, so that a committee of four costs three
more evaluations, and only at the steps at which it is compared.
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
    """Evaluates the other models, writes the table of deviations and candidate frames, and tells when to stop.

    Parameters
    ----------
    models
        The other models by their files' names.
    driving
        The potential that drives the run; `name` is its name in the run file.

    Attributes
    ----------
    exceeded
        The largest force deviation in eV/Å, once it is above `stop_above`, before that None; the same on all ranks.

    Raises
    ------
    InputError
        A model has other types, or a larger cutoff than the driving one, whose neighbor list it uses.
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
        """Bytes per local atom while the models are compared: their forces, twice, and one evaluation."""
        return 2 * 24.0 * (1 + len(self.models)) + max(model.memory_per_atom() for model in self.models.values())

    def open(self, species: list[str], masses: NDArray[np.float64], kept: Mapping[str, int]) -> None:
        """Open the files, on rank 0; `kept` holds by name how much of an earlier run's files is kept."""
        s = self.settings
        self._table = TableFile(s.file, table_header(LAMMPS_COLUMNS), kept.get(s.file))
        if s.mark_above is not None:
            self._candidates = open_trajectory(self._frames, species, masses, kept.get(s.candidates), Serial())

    def outputs(self) -> dict[str, Output | None]:
        """The output of each file, on rank 0."""
        return {self.settings.file: self._table, self.settings.candidates: self._candidates}

    def write(self, engine: Engine, energy: float) -> None:
        """Compare the models at the present positions; collective.

        Parameters
        ----------
        energy
            Potential energy in eV, written with a candidate frame.

        Raises
        ------
        RunError
            A model cannot be evaluated, or a file cannot be written.
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
        # Written so that a NaN counts as above the limit.
        if s.stop_above is not None and not worst <= s.stop_above:
            self.exceeded = worst

    def measure(self, engine: Engine) -> NDArray[np.float64]:
        """(6,) values of `LAMMPS_COLUMNS` over all atoms; collective."""
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
    """Forces of this rank's atoms, with those that other ranks computed for them, and its share of the virial;
    collective."""
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
