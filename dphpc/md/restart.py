"""Restart files: everything to take a run up again, on any number of ranks.

HDF5 with the atoms sorted by id, written under a temporary name, forced to disk and renamed, so that
the file under its own name is always complete.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.errors import DataError, RunError
from dphpc.core.state import RESTARTED
from dphpc.md.config import Stage
from dphpc.md.engine import Engine
from dphpc.md.gather import collect
from dphpc.md.integrators import Saved
from dphpc.md.structures import ROWS, Source
from dphpc.parallel.comm import agree

FORMAT = "dphpc restart"
VERSION = 1


@dataclass
class Checkpoint:
    """Where a run stands, beside its atoms.

    Attributes
    ----------
    clock
        Step and time (ps) from which the time is counted, and the timestep (ps).
    stages
        The run's stages as the run file gave them.
    stage, stage_step
        The stage it is in (from 0), and the steps of it that are done.
    bath
        (3,) eV that thermostats of earlier stages, or Langevin's of this one, took.
    files
        Output file to how far it was written (bytes, or frames).
    integrator
        Its own state.
    """

    step: int
    clock: tuple[int, float, float]
    stages: list[dict[str, Any]]
    stage: int
    stage_step: int
    bath: list[float]
    files: dict[str, int] = field(default_factory=dict)
    integrator: Saved = field(default_factory=dict)

    def position_in(self, stages: list[Stage]) -> tuple[int, int] | None:
        """(stage, steps done of it) at which to go on with `stages`, or None if they are a new plan.

        They go on where this run stood if they agree with its own up to there and ask for more.
        """
        planned = [s.model_dump() for s in stages]
        here = self.stage
        if len(planned) <= here or planned[:here] != self.stages[:here]:
            return None
        differs = {k for k in planned[here] if planned[here][k] != self.stages[here][k]}
        # A ramp that became longer is another ramp.
        same = not differs or (differs == {"steps"} and not isinstance(planned[here]["temperature_K"], list))
        done_all = here == len(planned) - 1 and self.stage_step >= planned[here]["steps"]
        if not same or done_all or planned[here]["steps"] < self.stage_step:
            return None
        return here, self.stage_step


def write_restart(
    path: str, engine: Engine, checkpoint: Checkpoint, type_map: list[str], masses: NDArray[np.float64]
) -> None:
    """Write a restart file; collective.

    Raises
    ------
    RunError
        The file cannot be written; an older one stays as it was.
    """
    state, comm, n = engine.state, engine.comm, engine.state.n_local
    fields = {f.name: getattr(state, f.name)[:n] for f in RESTARTED if f.name != "ids"}
    fields["positions"], fields["images"] = state.wrapped()
    counts = comm.allreduce(np.bincount(state.types[:n], minlength=len(type_map)))
    present = [name for name, count in zip(type_map, counts, strict=True) if count]
    partial = Path(path).with_name(f".{Path(path).name}.part")
    file: h5py.File | None = None
    error: Exception | None = None
    try:
        if comm.rank == 0:
            known = {name: float(m) for name, m in zip(type_map, masses, strict=True) if np.isfinite(m)}
            meta = {**asdict(checkpoint), "species": type_map, "present": present, "masses": known}
            file = _create(partial, engine, meta)
    except OSError as caught:
        error = caught
    agree(comm, _cannot_write(path, error))
    done = 0

    def write(part: dict[str, NDArray]) -> None:
        nonlocal done
        assert file is not None
        last = done + len(part["ids"])
        for name, rows in part.items():
            file["atoms"][name][done:last] = rows
        done = last

    try:
        collect(state.ids[:n], fields, comm, write)
        if file is not None:
            file.close()
            _commit(partial, Path(path))
    except OSError as caught:
        error = caught
    finally:
        if file is not None:
            file.close()
            partial.unlink(missing_ok=True)
    agree(comm, _cannot_write(path, error))
    engine.last_restart = f"{path} (step {engine.step})"


def _cannot_write(path: str, error: Exception | None) -> RunError | None:
    if error is None:
        return None
    return RunError(f"the restart file cannot be written: {error}", where=path, remedy="check space and permissions")


def _create(path: Path, engine: Engine, meta: dict[str, Any]) -> h5py.File:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = h5py.File(path, "w")
    saved = meta.pop("integrator")
    meta["periodic"] = list(engine.state.box.periodic)
    file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
    file.attrs["run"] = json.dumps(meta)
    file["box"], file["origin"] = engine.state.box.matrix, engine.state.box.origin
    for name, array in saved.items():
        file[f"integrator/{name}"] = array
    atoms = file.create_group("atoms")
    for f in RESTARTED:
        data = atoms.create_dataset(f.name, (engine.n_atoms, *f.shape), f.dtype)
        data.attrs["unit"] = f.unit
    return file


def _commit(partial: Path, path: Path) -> None:
    """Force the file to disk, give it its name, and force that to disk too."""
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_restart(path: str) -> bool:
    """Whether a structure's name is a restart file's."""
    return path.lower().endswith((".h5", ".hdf5", ".restart"))


def read_restart(path: str) -> tuple[Source, Checkpoint]:
    """The atoms (read piece by piece) and the place of the run.

    Raises
    ------
    DataError
        The file is damaged, too new, or no restart file.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise DataError("this HDF5 file is no restart file of dphpc", where=path)
            if file.attrs["version"] > VERSION:
                raise DataError(
                    f"the restart file has version {file.attrs['version']}", where=path, expected=f"at most {VERSION}"
                )
            meta = json.loads(file.attrs["run"])
            box = Box(file["box"][:], tuple(meta.pop("periodic")), file["origin"][:])
            saved = {name: data[:] for name, data in file.get("integrator", {}).items()}
            atoms = file["atoms"]
            n_atoms = len(atoms["ids"])
            for f in RESTARTED:
                if atoms[f.name].shape != (n_atoms, *f.shape):
                    raise DataError(f"field '{f.name}' has shape {atoms[f.name].shape}", where=path)
            max_id = int(atoms["ids"][-1])
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"the restart file is damaged: {error}", where=path, remedy="take an older one") from None
    species, present, masses = meta.pop("species"), meta.pop("present"), meta.pop("masses")
    bath = meta["bath"] if isinstance(meta["bath"], list) else [meta["bath"], 0.0]  # one number up to 0.1
    checkpoint = Checkpoint(**{**meta, "clock": tuple(meta["clock"]), "bath": bath}, integrator=saved)

    def read(first: int, last: int) -> NDArray:
        return _read_rows(path, first, last)

    return Source(box, species, present, n_atoms, max_id, masses, True, read), checkpoint


def _read_rows(path: str, first: int, last: int) -> NDArray:
    rows = np.empty(last - first, ROWS)
    with h5py.File(path, "r") as file:
        for f in RESTARTED:
            rows[f.name] = file["atoms"][f.name][first:last]
    return rows
