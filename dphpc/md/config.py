"""The settings in a run file of molecular dynamics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from dphpc.core.config import Config, Seed
from dphpc.core.errors import did_you_mean
from dphpc.core.units import FS
from dphpc.md.selection import Selection
from dphpc.md.stages import FEWEST_MOVES, LARGEST_SHRINKAGE, LARGEST_STRAIN, NEVER, Kelvin, Stage

FORMATS = {".extxyz": "extxyz", ".xyz": "extxyz", ".dump": "lammps", ".lammpstrj": "lammps", ".h5md": "h5md"}
"""Formats of trajectory files by suffix."""
RESTART_SUFFIXES = (".h5", ".hdf5", ".restart")
"""Suffixes by which a structure is recognized as a restart file."""

_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


class Velocities(Config):
    """Initial velocities, drawn at a temperature."""

    temperature_K: Kelvin
    seed: Seed = 1


class Fixed(Selection):
    """Atoms that do not move in some directions."""

    directions: Literal["x", "y", "z", "xy", "xz", "yz", "xyz"] = "xyz"
    """The Cartesian directions in which they do not move."""

    @classmethod
    def _remedy(cls) -> str:
        return "; to free all: fixed: {}"


def _selections(value: Any) -> Any:
    """A list of one selection, or of none if it is empty; other values as they are."""
    if not isinstance(value, Mapping):
        return value
    return [value] if value else []


class Thermo(Config):
    """Output of energies, temperature and pressure to the screen and a CSV file."""

    every: PositiveInt = 10
    file: str | None = "thermo.csv"


class Trajectory(Config):
    """The trajectory file."""

    every: PositiveInt = 100
    file: str = "traj.extxyz"
    format: Literal["extxyz", "lammps", "h5md"] | None = None
    """Format of the file; by default its suffix tells it."""
    velocities: bool = False
    forces: bool = False
    unwrap: bool = False
    """Write unwrapped positions, not those wrapped back into the box."""

    @model_validator(mode="after")
    def _check(self) -> Trajectory:
        if self.format is None and Path(self.file).suffix.lower() not in FORMATS:
            raise ValueError(
                f"the format of '{self.file}' is not clear from its suffix: use one of "
                f"{', '.join(FORMATS)}, or add format: extxyz | lammps | h5md"
            )
        return self

    @property
    def kind(self) -> str:
        """Format of the file: the given one, or that of its suffix."""
        return self.format or FORMATS[Path(self.file).suffix.lower()]


class Restart(Config):
    """The restart file, from which a run can be continued."""

    every: PositiveInt = 1000
    file: str = "restart.h5"

    @field_validator("file")
    @classmethod
    def _can_be_read_again(cls, name: str) -> str:
        if not name.lower().endswith(RESTART_SUFFIXES):
            raise ValueError(f"'{name}' would not be known as a restart file: use one of {', '.join(RESTART_SUFFIXES)}")
        return name


class Deviation(Config):
    """The deviation of a committee of models, of which the run's own is the first."""

    models: Annotated[list[str], Field(min_length=1)]
    """Files of the other models of the committee, besides `model`."""
    every: PositiveInt = 10
    file: str = "model_devi.out"
    stop_above: PositiveFloat | None = None
    """eV/Å: the run ends when the largest deviation of a force is above this."""
    mark_above: NonNegativeFloat | None = None
    """eV/Å: frames whose largest deviation of a force is above this are written to `candidates`."""
    mark_below: PositiveFloat | None = None
    """eV/Å: only frames whose largest deviation is below this are written to `candidates`."""
    candidates: str = "candidates.extxyz"

    @model_validator(mode="after")
    def _check(self) -> Deviation:
        if self.mark_below is not None and (self.mark_above is None or self.mark_above >= self.mark_below):
            raise ValueError("'mark_below' is the upper end of what 'mark_above' begins: give that, and less")
        return self

    @property
    def files(self) -> list[str]:
        """Files that the committee writes."""
        return [self.file] + [self.candidates] * (self.mark_above is not None)


class ModelInputs(Config):
    """Inputs of the model besides the positions."""

    fparam: list[float] | None = None
    """Frame parameters of the model."""


class MdConfig(Config):
    """All settings of a run.  Paths are relative to the current directory, as in LAMMPS and `dp`."""

    taken_by: ClassVar = "md"
    other_words: ClassVar = {
        **dict.fromkeys(("dt", "time_step"), "timestep_fs"),
        **dict.fromkeys(("pair_style", "potential", "graph"), "model"),
        **dict.fromkeys(("dump", "traj"), "trajectory"),
        **dict.fromkeys(("run", "fix"), "stages"),
        **dict.fromkeys(("freeze", "constraints"), "fixed"),
        **{"group": "groups", "read_data": "structure", "velocity": "velocities", "neighbor": "skin_A"},
    }

    structure: str
    """Structure file: LAMMPS data, extxyz, POSCAR, CIF, or a restart file."""
    model: str | None = None
    """Model file; needed unless a potential is passed from Python."""
    type_map: list[str] | None = None
    """Species of the types 1, 2, … in the structure's file, if it does not name them."""
    masses: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Masses in u by species; others are taken from the structure's file, then from the periodic table."""
    periodic: Annotated[list[bool], Field(min_length=3, max_length=3)] | None = None
    """Which box vectors are periodic; overrides the structure's file."""
    replicate: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)] = Field(default=[1, 1, 1])
    precision: Literal["float64", "mixed", "tf32", "float32"] = "float64"
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where the models are evaluated; `auto`: on a GPU if there is one."""
    timestep_fs: PositiveFloat = 0.5
    velocities: Velocities | None = None
    fixed: Annotated[list[Fixed] | None, BeforeValidator(_selections)] = None
    """Atoms that do not move, one selection or several; by default what the structure's file fixes."""
    groups: dict[str, Selection] = Field(default_factory=dict)
    """Groups of atoms by name, which stages may give thermostats of their own; no atom is in two."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    seed: Seed = 1
    """Seed of thermostats and barostats."""
    model_inputs: ModelInputs = Field(default_factory=ModelInputs)
    thermo: Thermo = Field(default_factory=Thermo)
    trajectory: Trajectory | None = None
    restart: Restart | None = None
    deviation: Deviation | None = None
    deterministic: bool = True
    """Whether results are bitwise the same on any number of ranks and threads, and through restarts."""
    balance: bool = True
    """Whether to move the planes between the ranks' bricks so that all have equal work."""
    skin_A: PositiveFloat = 1.0
    """Distance by which the neighbor list reaches beyond the cutoff."""
    n_threads: PositiveInt | None = None
    """Threads per rank; by default an equal share of the node's cores."""
    gpu_aware_mpi: bool = False
    """Let MPI read and write GPU memory; an MPI that is not GPU-aware crashes on it."""
    ignore_memory_limit: bool = False
    """Start even if the estimated memory exceeds the machine's."""

    @classmethod
    def _suggest(cls, key: str) -> str:
        return "it is a key of a stage: see 'stages'" if key in Stage.model_fields else super()._suggest(key)

    @property
    def outputs(self) -> dict[str, str]:
        """Formats, by file name, of the files that grow with the run."""
        files = {self.thermo.file: "table"} if self.thermo.file else {}
        files |= {self.trajectory.file: self.trajectory.kind} if self.trajectory else {}
        return files | (dict(zip(self.deviation.files, ("table", "extxyz"), strict=False)) if self.deviation else {})

    @property
    def intervals(self) -> dict[str, int]:
        """Steps between outputs, by kind of output."""
        outputs = {
            "thermo": self.thermo, "trajectory": self.trajectory, "deviation": self.deviation, "restart": self.restart
        }  # fmt: skip
        return {what: output.every for what, output in outputs.items() if output}

    def steps_to_output(self, step: int) -> int:
        """Steps from `step` until the next output, `NEVER` if there is none."""
        return min((every - step % every for every in self.intervals.values()), default=NEVER)

    @field_validator("type_map")
    @classmethod
    def _are_named(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and not (names and all(names)):
            raise ValueError("'type_map' holds an empty name")
        return names

    @field_validator("groups")
    @classmethod
    def _are_words(cls, groups: dict[str, Selection]) -> dict[str, Selection]:
        for name in groups:
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}' is no name of a group: use letters, digits and _, as they name columns")
        return groups

    @model_validator(mode="after")
    def _groups_are_known(self) -> MdConfig:
        for n, stage in enumerate(self.stages, 1):
            for name in stage.groups or ():
                if name not in self.groups:
                    known = did_you_mean(name, self.groups) if self.groups else "the run file has no 'groups'"
                    raise ValueError(f"stage {n} has a thermostat for '{name}', which is not one of 'groups': {known}")
        return self

    @model_validator(mode="after")
    def _damping_is_in_fs(self) -> MdConfig:
        for n, stage in enumerate(self.stages, 1):
            for bath in stage.baths:
                if bath.damping_fs < self.timestep_fs:
                    raise ValueError(
                        f"'damping_fs' of stage {n} is {bath.damping_fs:g}, less than a timestep "
                        f"({self.timestep_fs:g} fs): it is in femtoseconds, LAMMPS' Tdamp of 0.1 ps is 100"
                    )
            least = FEWEST_MOVES * stage.barostat_every * self.timestep_fs
            if stage.ensemble == "npt" and stage.pressure_damping_fs < least:
                raise ValueError(
                    f"'pressure_damping_fs' of stage {n} is {stage.pressure_damping_fs:g}, less than {FEWEST_MOVES} "
                    f"times 'barostat_every' timesteps ({least:g} fs): it is in femtoseconds, LAMMPS' Pdamp of 1 ps "
                    "is 1000"
                )
        return self

    @model_validator(mode="after")
    def _deforms_slowly(self) -> MdConfig:
        for n, stage in enumerate(self.stages, 1):
            for axes, rate in stage.rates.items():
                move, whole = (rate * steps * self.timestep_fs * FS for steps in (stage.deform_every, stage.steps))
                if abs(move) > LARGEST_STRAIN:
                    raise ValueError(
                        f"'deform_per_ps' of stage {n} would strain {axes} by {100 * move:.3g} % in each move, more "
                        f"than {100 * LARGEST_STRAIN:g} %: rates are per ps (1e12/s); else a smaller 'deform_every'"
                    )
                if len(axes) == 1 and whole <= -LARGEST_SHRINKAGE:
                    raise ValueError(
                        f"'deform_per_ps' of stage {n} would shrink the box by {-100 * whole:.3g} % along {axes} in "
                        f"{stage.steps} steps: the rate is that of the first length; give a smaller one, or fewer steps"
                    )
        return self

    @model_validator(mode="after")
    def _files_differ(self) -> MdConfig:
        named = [o.file for o in (self.thermo, self.trajectory, self.restart) if o is not None and o.file]
        named += self.deviation.files if self.deviation else []
        models = [name for name in (self.model, *(self.deviation.models if self.deviation else [])) if name]
        # One file may have several names: ./a.dp, folder/../a.dp, a link.
        outputs, committee = [Path(name).resolve() for name in named], [Path(name).resolve() for name in models]
        structure = Path(self.structure).resolve()
        own_restart = Path(self.restart.file).resolve() if self.restart else None
        for name, path in zip(models, committee, strict=True):
            if committee.count(path) > 1:
                raise ValueError(f"'{name}' is in the committee twice: 'deviation' names the models beside 'model'")
        for name, path in zip(named, outputs, strict=True):
            if outputs.count(path) > 1:
                raise ValueError(f"two outputs would write to '{name}'")
            if path in committee or (path == structure and path != own_restart):
                raise ValueError(f"an output would overwrite the input '{name}'")
        return self
