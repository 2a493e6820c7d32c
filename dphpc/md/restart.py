"""Restart files: everything that is needed to continue a run, on any number of ranks.

They are HDF5 files with the atoms sorted by id; `md/sealed.py` tells how they survive crashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.errors import DataError
from dphpc.core.fixing import WHOLLY
from dphpc.core.state import RESTARTED
from dphpc.md.config import RESTART_SUFFIXES, Fixed, MdConfig
from dphpc.md.deferred import at_once
from dphpc.md.engine import Engine
from dphpc.md.extent import Extent
from dphpc.md.gather import collect
from dphpc.md.hdf5 import with_room
from dphpc.md.integrators import Saved
from dphpc.md.ledger import Ledger
from dphpc.md.sealed import Draft, damage_of, last_good
from dphpc.md.selection import Selection
from dphpc.md.stages import Stage
from dphpc.md.structures import ROWS, Source

FORMAT = "dphpc restart"
VERSION = 5
"""Since 5 there are groups.  Since 4 `fixed` tells directions; before it was 1 of an atom that did not move, and the
choice was a single one."""


@dataclass
class Checkpoint:
    """The state of a run, apart from its atoms.

    Attributes
    ----------
    clock
        Step and time (ps) from which the time is counted, and the timestep (ps).
    stages
        The run's stages as the run file gave them.
    stage, stage_step
        The present stage (from 0), and the number of its steps that are done.
    bath
        (3,) eV taken by barostats, by thermostats of earlier stages and, if it is Langevin's, by the present one.
    files
        By name how far a run that goes on with the stages keeps the outputs.
    integrator
        The integrator's own state.
    fixed
        The run file's choice of fixed atoms, see `choice_of`.
    ends
        By name how far the outputs were written, including a last step that was not due; empty in older files.
    account
        (3,) eV that all thermostats and barostats took, the integrator's own account included; None in older files.
    origin
        What the run began from, see `origin_of`; None in older files.
    heats, heat_account
        (3, n) eV that groups' thermostats gave: what `bath` and `account` are to all that was taken; None without.
    groups
        The run file's groups, see `groups_of`.
    flow
        A move of the present stage's deformation, by its number, and its time (ps) in the stage; others are counted
        from there.
    """

    step: int
    clock: tuple[int, float, float]
    stages: list[dict[str, Any]]
    stage: int
    stage_step: int
    bath: list[float]
    files: dict[str, Extent] = field(default_factory=dict)
    integrator: Saved = field(default_factory=dict)
    fixed: list[dict[str, Any]] | None = None
    ends: dict[str, Extent] = field(default_factory=dict)
    account: list[float] | None = None
    origin: dict[str, Any] | None = None
    heats: list[list[float]] | None = None
    heat_account: list[list[float]] | None = None
    groups: list[list[Any]] = field(default_factory=list)
    flow: tuple[int, float] = (0, 0.0)

    @property
    def minimizes(self) -> bool:
        """Whether the present stage is a minimization, whose velocities are not physical."""
        return bool(self.stages[self.stage]["ensemble"] == "minimize")

    @property
    def drifts(self) -> bool:
        """Whether the center of mass moves in the present stage."""
        stage = self.stages[self.stage]
        return bool(stage.get("thermostat") == "langevin" or stage.get("groups"))

    def flow_with(self, timestep: float) -> tuple[int, float]:
        """`flow`; that of the last move if it goes on with another timestep (ps)."""
        (move, time), every, old = self.flow, self.stages[self.stage]["deform_every"], self.clock[2]
        last = self.stage_step // every
        return (move, time) if timestep == old else (last, time + (last - move) * every * old)

    def ledger(self, groups: Mapping[str, Selection], *, goes_on: bool) -> Ledger:
        """The accounts of a run with these groups that begins here; other groups begin without heat.

        If it goes on with the present stage, its thermostats keep their own accounts.
        """
        ledger = Ledger.empty(len(groups))
        bath, heats = (self.bath, self.heats) if goes_on else (self.account, self.heat_account)
        ledger.bath[...] = self.bath if bath is None else bath
        if heats is not None and groups_of(groups) == self.groups:
            ledger.heats[...] = heats
        return ledger

    def fixes_as(self, fixed: list[Fixed] | None) -> bool:
        """Whether a run file's choice of fixed atoms is the same as this run's."""
        return self.fixed == choice_of(fixed)

    def files_for(self, stages: list[Stage]) -> dict[str, Extent]:
        """By name how far a run of these stages keeps the outputs; new stages after a minimization keep its end."""
        return self.ends or self.files if self.minimizes and self.position_in(stages) is None else self.files

    def position_in(self, stages: list[Stage]) -> tuple[int, int] | None:
        """(stage, number of its steps that are done) at which `stages` continue this run, or None if they are new.

        They continue it if they agree with its own stages up to the present step and ask for more steps.
        """
        planned = [s.model_dump() for s in stages]
        here = self.stage
        if len(planned) <= here or planned[:here] != self.stages[:here]:
            return None
        differs = {k for k in planned[here] if planned[here][k] != self.stages[here][k]}
        same = not differs or (differs == {"steps"} and not stages[here].ramps)
        done_all = here == len(planned) - 1 and self.stage_step >= planned[here]["steps"]
        if not same or done_all or planned[here]["steps"] < self.stage_step:
            return None
        return here, self.stage_step


def choice_of(fixed: list[Fixed] | None) -> list[dict[str, Any]] | None:
    """A run file's choice of fixed atoms, if it made one, as a restart file keeps it."""
    return None if fixed is None else [selection.model_dump(exclude_defaults=True) for selection in fixed]


def groups_of(groups: Mapping[str, Selection]) -> list[list[Any]]:
    """A run file's groups in turn, by name and choice of atoms, as a restart file keeps them."""
    return [[name, selection.model_dump(exclude_defaults=True)] for name, selection in groups.items()]


def origin_of(settings: MdConfig) -> dict[str, Any]:
    """What tells a run from another: the name of its structure's file, without the folder, and how it is replicated."""
    return {"structure": Path(settings.structure).name, "replicate": settings.replicate}


def write_restart(
    path: str,
    engine: Engine,
    checkpoint: Checkpoint,
    type_map: list[str],
    masses: NDArray[np.float64],
) -> None:
    """Write a restart file and keep the previous one; collective.

    Raises
    ------
    RunError
        The file cannot be written; the older ones stay as they were.
    """
    state, comm, n = engine.state, engine.comm, engine.state.n_local
    fields = {f.name: getattr(state, f.name)[:n] for f in RESTARTED if f.name != "ids"}
    fields["positions"], fields["images"] = state.wrapped()
    meta = {**asdict(checkpoint), **_species(engine, type_map, masses), "periodic": list(state.box.periodic)}
    saved = meta.pop("integrator")
    n_bytes = engine.n_atoms * ROWS.itemsize + len(json.dumps(meta)) + sum(array.nbytes for array in saved.values())
    target, first = Path(path), engine.last_restart is None
    # A file from before this run is kept as the previous one unless damaged: then the run started from the one before.
    keep = not first or (comm.rank == 0 and damage_of(target) is None)
    draft = Draft(target, comm, n_bytes, lambda file: _fill(file, engine, meta, saved))

    def add(before: int, part: dict[str, NDArray]) -> None:
        assert draft.file is not None
        for name, rows in part.items():
            draft.file["atoms"][name][before : before + len(rows)] = rows

    error = at_once(collect(state.ids[:n], fields, comm, add, draft.close, draft.n_writers))
    with draft.step():
        if error is not None:
            raise error
    draft.commit(keep)
    engine.last_restart = f"{path} (step {engine.step})"


def _species(engine: Engine, type_map: list[str], masses: NDArray[np.float64]) -> dict[str, Any]:
    """Metadata: species of the types, those that have atoms, and masses in u by species; collective."""
    types = engine.state.types[: engine.state.n_local]
    counts = engine.comm.allreduce(np.bincount(types, minlength=len(type_map)))
    present = [name for name, count in zip(type_map, counts, strict=True) if count]
    known = {name: float(m) for name, m in zip(type_map, masses, strict=True) if np.isfinite(m)}
    return {"species": type_map, "present": present, "masses": known}


def _fill(file: h5py.File, engine: Engine, meta: dict[str, Any], saved: Saved) -> None:
    """Write everything but the atoms, and allocate space for these."""
    file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
    file.attrs["run"] = json.dumps(meta)
    file["box"], file["origin"] = engine.state.box.matrix, engine.state.box.origin
    for name, array in saved.items():
        file[f"integrator/{name}"] = array
    atoms = file.create_group("atoms")
    for f in RESTARTED:
        data = atoms.create_dataset(f.name, (engine.n_atoms, *f.shape), f.dtype, dcpl=with_room())
        data.attrs["unit"] = f.unit


def is_restart(path: str) -> bool:
    """Whether a structure's name is that of a restart file."""
    return path.lower().endswith(RESTART_SUFFIXES)


def read_restart(path: str) -> tuple[Source, Checkpoint, str | None]:
    """The atoms (read piece by piece), the run's state, and a warning if the file previous to `path` was used.

    Raises
    ------
    DataError
        The file and the previous one are damaged or missing, or the version is too new.
    """
    path, warning = last_good(path)
    with h5py.File(path, "r") as file:
        if file.attrs["version"] > VERSION:
            raise DataError(
                f"the restart file has version {file.attrs['version']}", where=path, expected=f"at most {VERSION}"
            )
        meta = json.loads(file.attrs["run"])
        box = Box(file["box"][:], tuple(meta.pop("periodic")), file["origin"][:])
        saved = {name: data[:] for name, data in file.get("integrator", {}).items()}
        n_atoms, max_id = len(file["atoms/ids"]), int(file["atoms/ids"][-1])
    species, present, masses = meta.pop("species"), meta.pop("present"), meta.pop("masses")
    meta["stages"] = [_completed(stage) for stage in meta["stages"]]
    if isinstance(older := meta.get("fixed"), dict):
        meta["fixed"] = [{key: value for key, value in older.items() if value}] if any(older.values()) else []
    for key in ("files", "ends"):
        extents = meta.get(key, {}).items()
        meta[key] = {name: Extent(e) if isinstance(e, int) else Extent(**e) for name, e in extents}
    checkpoint = Checkpoint(**{**meta, "clock": tuple(meta["clock"])}, integrator=saved)

    def read(first: int, last: int) -> NDArray:
        return _read_rows(path, first, last)

    return Source(box, species, present, n_atoms, max_id, masses, True, read), checkpoint, warning


def _completed(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage of an older file with all keys."""
    return Stage.model_construct(**stage | {"groups": None}).model_dump() | {"groups": stage.get("groups")}


def _read_rows(path: str, first: int, last: int) -> NDArray:
    rows = np.empty(last - first, ROWS)
    with h5py.File(path, "r") as file:
        for f in RESTARTED:
            rows[f.name] = file["atoms"][f.name][first:last] if f.name in file["atoms"] else 0  # older files lack some
        if file.attrs["version"] < 4:
            rows["fixed"] *= WHOLLY
    return rows
