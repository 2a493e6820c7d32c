"""The run file of active learning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from dphpc.core.config import Config, Seed
from dphpc.md.config import Kelvin
from dphpc.train.data.storage import HDF5_MARK

PLACEHOLDERS = ("{frames}", "{labelled}")
"""Of a labelling command: the files it reads and writes."""

LONGEST = ("round-00", "explore", 100 * "x", 50 * "x")
"""As long as a path in `folder` becomes."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int | float | str) and not isinstance(value, bool) else value


def _without_nul(name: str) -> str:
    if "\0" in name:
        raise ValueError("paths and commands have no NUL characters")
    return name


Text = Annotated[str, AfterValidator(_without_nul)]


class Exploration(Config):
    """Runs of one MD run file: from each structure, at each temperature and pressure."""

    md: Text
    """Run file of `dphpc md` without `model`, `structure` and `deviation`."""
    structures: Annotated[list[Text], BeforeValidator(_listed), Field(min_length=1)]
    temperature_K: Annotated[list[Kelvin], BeforeValidator(_listed)] = Field(default=[])
    """In place of the run file's, in `velocities` and in every stage that has one; a run for each."""
    pressure_bar: Annotated[list[float], BeforeValidator(_listed)] = Field(default=[])
    """In place of the run file's, in every npt stage; a run for each."""
    every: PositiveInt = 10
    """Steps between two frames on which the models are compared."""


class Select(Config):
    """Which frames are labelled, by the largest deviation of a force (max_devi_f) in eV/Å."""

    above: PositiveFloat
    """Up to this a frame is accurate: there is nothing to learn from it."""
    below: PositiveFloat
    """From this on a frame has failed: the models have led the run to where nothing physical may be."""
    most: PositiveInt = 50
    """So many of a round's candidates, the frames in between, are labelled at most."""
    accurate: Annotated[float, Field(gt=0, le=1)] = 0.99
    """A round in which this fraction of the frames is accurate has converged."""
    stop_above: PositiveFloat = 10.0
    """A run that deviates more ends there."""

    @model_validator(mode="after")
    def _in_order(self) -> Select:
        if not self.above < self.below <= self.stop_above:
            raise ValueError(
                f"candidates lie between 'above' ({self.above:g}) and 'below' ({self.below:g}), runs end at "
                f"'stop_above' ({self.stop_above:g}): these must ascend"
            )
        return self


class Label(Config):
    """What computes energies, forces and stresses: a calculator of ASE, or a command."""

    calculator: str | None = None
    """ASE's name of it, or `module:name` of a class or function that makes one."""
    parameters: dict[str, Any] = Field(default={})
    """The calculator's arguments."""
    command: Text | None = None
    """Reads the extxyz file {frames} and writes the extxyz file {labelled}."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Label:
        if (self.calculator is None) == (self.command is None):
            raise ValueError("give 'calculator' or 'command', one of them")
        if self.command is not None and self.parameters:
            raise ValueError("'parameters' are a calculator's: write them into the command")
        missing = [name for name in PLACEHOLDERS if self.command is not None and name not in self.command]
        if missing:
            raise ValueError(
                f"'command' lacks {' and '.join(missing)}: it is told what to read by {PLACEHOLDERS[0]} and what to "
                f"write by {PLACEHOLDERS[1]}"
            )
        return self


class Round(Config):
    """What is explored, until nothing new is found there or `repeat` rounds are done."""

    explore: Annotated[list[Exploration], Field(min_length=1)]
    repeat: PositiveInt = 1
    select: Select | None = None
    """In place of the run file's."""


class Launch(Config):
    """What goes before the commands that are started, such as `mpirun -n 4`."""

    train: Text = ""
    md: Text = ""


class AtOnce(Config):
    """How many trainings, explorations and labels run side by side."""

    train: PositiveInt = 1
    md: PositiveInt = 1
    label: PositiveInt = 1


class LearnConfig(Config):
    """Everything of a loop.  Paths are relative to the current directory."""

    train: Text
    """Training input; its systems are the first data."""
    retrain: dict[str, Any] = Field(default={})
    """Keys of the training input that have other values in rounds after the first."""
    init_model: bool = True
    """Rounds after the first start from the weights of the round before; else from random ones."""
    models: Annotated[int, Field(ge=2)] = 4
    """Of the committee: they differ by their seeds."""
    folder: Text = "learn"
    """Where everything is written."""
    rounds: Annotated[list[Round], Field(min_length=1)]
    select: Select | None = None
    label: Label
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the new frames that become validation data and are not trained on."""
    launch: Launch = Field(default_factory=Launch)
    at_once: AtOnce = Field(default_factory=AtOnce)
    seed: Seed = 1
    """Of everything that is drawn."""

    @field_validator("folder")
    @classmethod
    def _folder_has_a_name(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("'folder' is empty")
        if HDF5_MARK in name:
            raise ValueError(f"'folder' has a '{HDF5_MARK}', by which data name a group of an HDF5 file: leave it out")
        try:
            os.stat(Path(name, *LONGEST))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise ValueError(f"'folder' cannot be one: {error.strerror}") from None
        return name

    @model_validator(mode="after")
    def _every_round_selects(self) -> LearnConfig:
        if self.select is None and any(entry.select is None for entry in self.rounds):
            raise ValueError("'select' is missing: add select: {above: 0.1, below: 0.4}, in eV/Å")
        return self

    def selection(self, entry: Round) -> Select:
        """How frames of an entry of `rounds` are chosen."""
        select = entry.select or self.select
        assert select is not None, "checked above"
        return select
