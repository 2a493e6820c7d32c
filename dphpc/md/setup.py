"""Preparation of a run: its settings, models and structure, and the header that describes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc import __version__
from dphpc.core.box import Box
from dphpc.core.config import load_config, parse_config
from dphpc.core.device import Device
from dphpc.core.errors import InputError
from dphpc.md.config import MdConfig
from dphpc.md.deform import open_vector
from dphpc.md.deviation import DeviationMonitor
from dphpc.md.extent import resume_points
from dphpc.md.memory import Estimate
from dphpc.md.restart import Checkpoint, groups_of, is_restart, origin_of, read_restart
from dphpc.md.sealed import previous_of
from dphpc.md.structures import Source, masses_of, read_structure, require_file
from dphpc.parallel.comm import Communicator, together
from dphpc.parallel.domain import Domain
from dphpc.parallel.placement import Placement
from dphpc.potential.contract import Potential
from dphpc.potential.deep import DeepPotential

SHORT_STEP = 0.02
"""fs: a run warns of a shorter timestep, which may be meant in ps."""


def read_settings(
    config: str | Path | Mapping[str, Any], has_potential: bool, resume: bool, device: str | None = None
) -> tuple[MdConfig, MdConfig]:
    """The run's settings, and those of the run file: they differ if the run's own restart file is the structure.

    A `device` replaces the run file's.

    Raises
    ------
    InputError
        The settings are wrong, or name files that do not exist.
    """
    settings = parse_config(MdConfig, config) if isinstance(config, Mapping) else load_config(MdConfig, config)
    if device is not None:
        settings = settings.model_copy(update={"device": device})
    given = settings
    if resume:
        settings = with_own_restart(settings)
    if settings.model is None and not has_potential:
        raise InputError("'model' is missing", where="run file", remedy="add model: FILE.dp")
    if settings.model is not None and not has_potential:
        require_file(settings.model, "model")
    for path in settings.deviation.models if settings.deviation else []:
        require_file(path, "deviation.models")
    if not (is_restart(settings.structure) and previous_of(Path(settings.structure)).is_file()):
        require_file(settings.structure, "structure")
    if is_restart(given.structure) and max(given.replicate) > 1:  # going on, settings have no 'replicate'
        raise InputError("a restart cannot be replicated", where="key 'replicate'", remedy="remove it")
    return settings, given


def with_own_restart(settings: MdConfig) -> MdConfig:
    """The settings with the run's own restart file as structure, if there is one.

    Raises
    ------
    InputError
        The run file asks for no restart file.
    """
    if settings.restart is None:
        raise InputError(
            "'restart' is missing: there would be nothing to go on from", where="run file",
            expected="restart: {every: 1000, file: restart.h5}",
        )  # fmt: skip
    path = Path(settings.restart.file)
    if not path.is_file() and not previous_of(path).is_file():
        return settings
    return settings.model_copy(update={"structure": settings.restart.file, "replicate": [1, 1, 1]})


def own_restarts(settings: MdConfig) -> list[Path]:
    """Paths of the run's restart file and the previous one, whether they exist or not."""
    if settings.restart is None:
        return []
    return [Path(settings.restart.file), previous_of(Path(settings.restart.file))]


def starts_from_own_restart(settings: MdConfig) -> bool:
    """Whether the structure is one of the run's own restart files, by whatever path it is given."""
    return Path(settings.structure).resolve() in [path.resolve() for path in own_restarts(settings)]


def remove_stale_restarts(settings: MdConfig) -> None:
    """Remove another run's restart files that have this run's names, as `--continue` would go on from them.

    The file that the run starts from is kept; if it is the run's own restart file, so is the previous one.
    """
    for path in _stale_restarts(settings):
        path.unlink()


def _stale_restarts(settings: MdConfig) -> list[Path]:
    """The files that `remove_stale_restarts` removes."""
    start, names = Path(settings.structure).resolve(), own_restarts(settings)
    if not names or names[0].resolve() == start:
        return []
    return [path for path in names if path.is_file() and path.resolve() != start]


def plan_outputs(settings: MdConfig, checkpoint: Checkpoint | None) -> tuple[dict[str, int], list[str]]:
    """How much of each continued output is kept (see `resume_points`), and lines about old files that are replaced.

    Raises
    ------
    DataError
        A file to go on with is not as the restart file left it.
    """
    old = checkpoint.files_for(settings.stages) if checkpoint else {}
    kept, lines = resume_points(settings.outputs, old, starts_from_own_restart(settings))
    known, stale = {Path(path).resolve() for path in old}, _stale_restarts(settings)
    lost = [path for path in settings.outputs if Path(path).is_file() and Path(path).resolve() not in known]
    if lost or stale:
        go_on = "; to go on from its restart file: --continue" if stale else ""
        names = ", ".join([*lost, *map(str, stale)])
        lines.append(f"warning:   files of an earlier run are replaced: {names}{go_on}; to keep them: move them away")
    return kept, lines


def load_potential(path: str, settings: MdConfig, device: Device | None) -> Potential:
    """A model with the run file's precision and parameters, on a GPU or on the CPU.

    Raises
    ------
    InputError
        It cannot be evaluated in this way.
    """
    potential = DeepPotential.from_file(path, settings.precision, settings.model_inputs.fparam, device)
    potential.require_ready(deterministic=settings.deterministic)
    return potential


def load_monitor(settings: MdConfig, driving: Potential, device: Device | None) -> DeviationMonitor | None:
    """The run's committee, if it has one."""
    if settings.deviation is None:
        return None
    models = {path: load_potential(path, settings, device) for path in settings.deviation.models}
    return DeviationMonitor(settings.deviation, models, driving, settings.model or type(driving).__name__)


@dataclass(frozen=True)
class Start:
    """What all ranks must know about the structure.

    Attributes
    ----------
    n_atoms
        Number of atoms in the file, before replication.
    masses
        (ntypes,) masses in u.
    checkpoint, warning
        The run's state and a warning, if the structure is a restart file.
    last_of_several
        Whether the file has frames before the one that is used.
    """

    box: Box
    n_atoms: int
    masses: NDArray[np.float64]
    has_velocities: bool
    checkpoint: Checkpoint | None
    warning: str | None
    last_of_several: bool


def read_start(
    settings: MdConfig, type_map: list[str], given: MdConfig, comm: Communicator
) -> tuple[Source | None, Start]:
    """The structure, on rank 0, and what all ranks must know about it; collective.

    `given` is the second result of `read_settings`.
    """
    s, source, start = settings, None, None
    with together(comm):
        if comm.rank == 0:
            checkpoint, warning = None, None
            if is_restart(s.structure):
                source, checkpoint, warning = read_restart(s.structure)
                source = source.repeating(s.periodic)
                if given is not s:
                    _require_same_plan(checkpoint, s, given)
            else:
                source = read_structure(s.structure, s.type_map, s.periodic, with_fixed=s.fixed is None)
            source.require_named(s.type_map, s.structure)
            source = source.with_types_of(type_map, s.structure)
            masses = masses_of(type_map, s.masses, source.masses, source.present)
            box = source.box.on_grid(s.replicate) if s.deterministic else source.box
            start = Start(
                box, source.n_atoms, masses, source.has_velocities, checkpoint, warning, source.last_of_several
            )
    start = comm.bcast(start)
    assert start is not None
    return source, start


def require_box_that_may_move(settings: MdConfig, box: Box) -> None:
    """Refuse a pressure in a direction in which the box is not periodic, and a deformation of an open box vector.

    Raises
    ------
    InputError
        A stage moves the box in such a direction.
    """
    for n, stage in enumerate(settings.stages, 1):
        changed = open_vector(stage.rates, box)
        if changed:
            raise InputError(
                f"'deform_per_ps' would change box vector {changed}, along which the box does not repeat",
                where=f"{settings.structure}; stage {n}",
                remedy="give rates to the periodic directions only; or set periodic",
            )
        if stage.freedom is None:
            continue
        moving, repeats = stage.freedom.moving, stage.freedom.repeats(box)
        if not all(repeats[axis] for axis in moving):
            sides = "".join("p" if p else "f" for p in box.periodic)
            raise InputError(
                f"a pressure needs a box that repeats in its directions, this one is {sides}",
                where=f"{settings.structure}; stage {n}",
                expected=f"periodic in {', '.join('xyz'[axis] for axis in moving)}"
                + ", which are Cartesian here" * (repeats != list(box.periodic)),
                remedy="name periodic directions only, as in pressure_bar: {x: 1, y: 1}; keep the box; or set periodic",
            )  # fmt: skip


def _require_same_origin(checkpoint: Checkpoint, given: MdConfig, path: str) -> None:
    """Refuse to continue another run, which left its restart file under this run's name."""
    origin, asked = checkpoint.origin, origin_of(given)
    if origin is None or origin == asked:
        return
    key = next(key for key in asked if origin[key] != asked[key])
    raise InputError(
        f"the restart file is another run's: its {key} is {origin[key]}, the run file's {asked[key]}",
        where=f"{path}, step {checkpoint.step}",
        remedy=f"move it away, or name another restart file; for a new run from there: structure: {path}",
    )


def _require_same_plan(checkpoint: Checkpoint, settings: MdConfig, given: MdConfig) -> None:
    """Refuse to continue a run that is complete or has another structure, other stages, fixed atoms or groups.

    All but the first are allowed if the run file names the restart file as its structure: it is a new run from there.
    """
    begins_there = Path(given.structure).resolve() == Path(settings.structure).resolve()
    if not begins_there:
        _require_same_origin(checkpoint, given, settings.structure)
    same_fixed, same_groups = checkpoint.fixes_as(settings.fixed), groups_of(settings.groups) == checkpoint.groups
    if begins_there and not (same_fixed and same_groups):
        return
    if not same_groups:
        raise InputError(
            "the restart file was written with other groups than the run file's", where="key 'groups'",
            expected=f"groups: {dict(checkpoint.groups)}" if checkpoint.groups else "no 'groups'",
            remedy=f"for a new run from there: structure: {settings.structure}",
        )  # fmt: skip
    if not same_fixed:
        raise InputError(
            "the restart file was written with other fixed atoms than the run file's", where="key 'fixed'",
            expected="no 'fixed'" if checkpoint.fixed is None else f"fixed: {checkpoint.fixed}",
            remedy=f"for a new run from there: structure: {settings.structure}",
        )  # fmt: skip
    if checkpoint.position_in(settings.stages) is not None:
        return
    path, stages = settings.structure, [stage.model_dump() for stage in settings.stages]
    complete = checkpoint.stages == stages
    if not complete and begins_there:
        return
    new_plan = f"for a new plan from there: structure: {path}"
    if complete:
        longer = "" if settings.stages[-1].ramps else "raise the last stage's steps or "
        raise InputError(
            "the run is complete", where=f"{path}, step {checkpoint.step}",
            expected="stages that ask for more", remedy=f"{longer}add a stage; {new_plan}",
        )  # fmt: skip
    pairs = zip_longest(checkpoint.stages[: checkpoint.stage + 1], stages)
    n, (old, now) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    keys = ", ".join(key for key in old if old[key] != now[key]) if old and now else "missing"
    raise InputError(
        "the restart file was written in other stages than the run file's",
        where=f"{path}, step {checkpoint.step}; stage {n}: {keys}",
        expected="stages that agree with the restart file's up to where it stands; a ramp that is longer is another",
        remedy=f"leave that stage as it was, and add others; {new_plan}",
    )


def _too_short(settings: MdConfig) -> str | None:
    """A warning about a timestep that seems to be in ps, as in LAMMPS' `metal` units."""
    if settings.timestep_fs >= SHORT_STEP:
        return None
    ps = settings.timestep_fs
    return f"timestep_fs is {ps:g}: it is in femtoseconds; if it is meant in ps, as in LAMMPS, write {1e3 * ps:g}"


def _velocities(settings: MdConfig, start: Start) -> list[str]:
    """Where velocities come from that neither the run file nor a restart file gives."""
    if settings.velocities is not None or start.checkpoint is not None:
        return []
    if not start.has_velocities:
        return ["velocities: all atoms start at rest (none in the run file, none in the structure)"]
    return [f"velocities: from {settings.structure}"] if settings.stages[0].ensemble != "minimize" else []


def header(
    settings: MdConfig, potential: Potential, start: Start, domain: Domain, places: Placement, needed: Estimate,
    device: Device | None,
) -> list[str]:  # fmt: skip
    """The lines that a run prints first."""
    s, n_atoms = settings, start.n_atoms * math.prod(settings.replicate)
    sides = "".join("p" if p else "f" for p in domain.box.periodic)
    frame = ", last of its frames" if start.last_of_several else ""
    replicate = f", replicated {' × '.join(map(str, s.replicate))}" if max(s.replicate) > 1 else ""
    return [
        f"dphpc {__version__}: molecular dynamics",
        f"processes: {places}; bricks {' × '.join(map(str, domain.grid))}",
        f"structure: {s.structure}{frame}{replicate}: {n_atoms:,} atoms in {domain.box.lengths} ({sides})",
        f"model:     {s.model or type(potential).__name__} ({', '.join(potential.type_map)}), "
        f"{s.precision}, cutoff {potential.cutoff:g} + skin {s.skin_A:g} Å",
        *([f"device:    {device.name if device else 'cpu, no GPU that CuPy sees'}"] if s.device != "cpu" else []),
        *([f"GPU:       {needed.gpu}"] if needed.gpu else []),
        *(f"committee: {1 + len(d.models)} models, compared every {d.every} steps" for d in [s.deviation] if d),
        f"memory:    {needed}",
        *_velocities(s, start),
        *(f"warning:   {text}" for text in (places.warning(), start.warning, _too_short(s)) if text),
    ]
