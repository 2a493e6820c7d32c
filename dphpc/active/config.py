"""The run file of active learning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from dphpc.core.config import Config, Seed, listed
from dphpc.md.stages import Kelvin
from dphpc.train.data.storage import HDF5_MARK

PLACEHOLDERS = ("{frames}", "{labelled}")
"""Placeholders in a labelling command for the files that it reads and writes."""

LONGEST = ("round-00", "explore", 100 * "x", 50 * "x")
"""Parts of the longest path that is made below `folder`."""


def _without_nul(name: str) -> str:
    if "\0" in name:
        raise ValueError("paths and commands have no NUL characters")
    return name


Text = Annotated[str, AfterValidator(_without_nul)]


class Exploration(Config):
    """MD runs with one run file: one from each structure, at each temperature and pressure."""

    md: Text
    """Run file of `dphpc md` without `model`, `structure` and `deviation`."""
    structures: Annotated[list[Text], BeforeValidator(listed), Field(min_length=1)]
    temperature_K: Annotated[list[Kelvin], BeforeValidator(listed)] = Field(default=[])
    """Temperatures that replace those in the run file, in `velocities` and every stage that has one; one run each."""
    pressure_bar: Annotated[list[float], BeforeValidator(listed)] = Field(default=[])
    """Pressures that replace those in the run file, in every stage that has one; one run each."""
    every: PositiveInt = 10
    """Steps between two frames on which the models are compared."""


class Select(Config):
    """Which frames are labelled, by the largest deviation of a force (max_devi_f) in eV/Å."""

    above: PositiveFloat
    """A frame with a deviation up to this is accurate: there is nothing to learn from it."""
    below: PositiveFloat
    """A frame with a deviation from this on has failed: the run may have become unphysical."""
    most: PositiveInt = 50
    """Largest number of a round's candidates, the frames in between, that are labelled."""
    accurate: Annotated[float, Field(gt=0, le=1)] = 0.99
    """A round in which this fraction of the frames is accurate has converged."""
    stop_above: PositiveFloat = 10.0
    """A run ends at a frame that deviates by more."""

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
    """What is explored in up to `repeat` rounds, until nothing new is found."""

    explore: Annotated[list[Exploration], Field(min_length=1)]
    repeat: PositiveInt = 1
    select: Select | None = None
    """Replaces the run file's `select`."""


class Launch(Config):
    """Words in front of the commands that are started, such as `mpirun -n 4`."""

    train: Text = ""
    md: Text = ""


class AtOnce(Config):
    """How many trainings, explorations and labels run side by side: one, or in a queue any number."""

    train: PositiveInt | None = None
    md: PositiveInt | None = None
    label: PositiveInt | None = None


class LearnConfig(Config):
    """The run file.  Paths are relative to the current directory."""

    taken_by: ClassVar = "learn"

    train: Text
    """Training input; its systems are the initial data."""
    retrain: dict[str, Any] = Field(default={})
    """Keys of the training input with other values in rounds after the first."""
    init_model: bool = True
    """Whether rounds after the first start from the weights of the round before, or from random ones."""
    models: Annotated[int, Field(ge=2)] = 4
    """Number of models in the committee; they differ by their seeds."""
    folder: Text = "learn"
    """Folder in which everything is written."""
    rounds: Annotated[list[Round], Field(min_length=1)]
    select: Select | None = None
    label: Label
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the new frames that become validation data."""
    launch: Launch = Field(default_factory=Launch)
    at_once: AtOnce = Field(default_factory=AtOnce)
    queue: Text | dict[str, Any] | None = None
    """Which of them are jobs of a queue system, and how these are submitted (`QueueConfig`), or a file with that."""
    seed: Seed = 1
    """Seed for everything random."""

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
        """The selection for an entry of `rounds`."""
        select = entry.select or self.select
        assert select is not None, "checked above"
        return select
