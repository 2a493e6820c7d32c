"""Checkpoints: everything that a training needs to continue bit for bit, as one safetensors file.

It holds weights, statistics and the optimizer's state, and as JSON in its metadata the training input, the step and the
table's grid.  The sampler has no state, as it is a pure function of seed and step.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dphpc.core.errors import InputError, ModelFileError
from dphpc.core.files import whole, write_whole
from dphpc.model.container import conversion
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import MODEL_SUFFIXES, read_model
from dphpc.model.radial_table import Grid
from dphpc.train.initial import model_of
from dphpc.train.schema import TrainInput, parse_input

FORMAT = 1
SUFFIX = ".safetensors"
POINTER = "checkpoint"
"""File beside the run that names the newest checkpoint, as DeePMD-kit writes it."""

Arrays = dict[str, NDArray[Any]]


@dataclass
class Checkpoint:
    """The state of a training between two steps.

    Attributes
    ----------
    step
        Number of steps done.
    config
        The complete input, with `sel` and seeds resolved.
    arrays
        The model's arrays by name, as `initial.model_arrays` gives them.
    optimizer
        The optimizer's state by name, as `Optimizer.state` gives it.
    averages
        For `disp_avg`: sums of the errors since the last line of the learning curve, and their number under "n".
    """

    step: int
    config: TrainInput
    arrays: Arrays
    optimizer: Arrays
    grid: Grid | None
    min_distance: float | None
    averages: dict[str, float] = field(default_factory=dict)

    def model(self) -> DPModel:
        """The model with the checkpoint's weights."""
        return model_of(self.config.model, self.arrays, "checkpoint", self.min_distance)

    def save(self, path: Path) -> None:
        """Write the file under a temporary name and rename it.

        Raises
        ------
        OSError
            It cannot be written; an existing file stays.
        """
        head = {
            "format": FORMAT,
            "step": self.step,
            "input": self.config.model_dump(mode="json", exclude_none=True),
            "grid": None if self.grid is None else self.grid.numbers(),
            "min_distance": self.min_distance,
            "averages": self.averages,
        }
        tensors = {f"model.{name}": np.ascontiguousarray(value) for name, value in self.arrays.items()}
        tensors |= {f"optimizer.{name}": np.ascontiguousarray(value) for name, value in self.optimizer.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole(path, sync=True) as partial:
                save_file(tensors, partial, metadata={"dphpc": json.dumps(head)})
        except SafetensorError as error:
            raise OSError(str(error)) from None

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        ModelFileError
            The file is missing, damaged, or no checkpoint of dphpc.
        """
        if not path.is_file():
            raise ModelFileError("no such checkpoint", where=str(path), expected=f"model.ckpt-STEP{SUFFIX}")
        if path.suffix in MODEL_SUFFIXES:
            raise ModelFileError(
                "the file holds a model, but no training that could be gone on with", where=str(path),
                expected=f"model.ckpt-STEP{SUFFIX}",
                remedy=f"begin a new training with its weights: --init-model {path}",
            )  # fmt: skip
        try:
            with safe_open(path, framework="numpy") as file:
                head = json.loads((file.metadata() or {})["dphpc"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if head["format"] > FORMAT:
                raise ModelFileError(
                    "the checkpoint is newer than this program", where=str(path), remedy="update dphpc"
                )
            return cls(
                step=int(head["step"]),
                config=parse_input(head["input"], source=str(path)),
                arrays=_below("model.", tensors),
                optimizer=_below("optimizer.", tensors),
                grid=_grid(head["grid"]),
                min_distance=head["min_distance"],
                averages=head["averages"],
            )
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ModelFileError(
                f"the file is damaged or no checkpoint of dphpc: {error}", where=str(path),
                remedy=None if path.suffix == SUFFIX else conversion(path),
            ) from error  # fmt: skip


def _grid(numbers: list[float] | dict[str, float] | None) -> Grid | None:
    """The table's grid; older checkpoints hold the numbers as a dictionary."""
    if numbers is None:
        return None
    return Grid.from_numbers(*(numbers.values() if isinstance(numbers, dict) else numbers))


def _below(prefix: str, tensors: Arrays) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path names: the file itself, its name without suffix, or the newest in a folder.

    Raises
    ------
    ModelFileError
        The folder names none.
    """
    path = Path(path)
    if path.is_dir():
        pointer = path / POINTER
        if not pointer.is_file():
            raise ModelFileError(
                f"the folder has no file '{POINTER}'", where=str(path), expected="the folder of a training",
                remedy="name the checkpoint file itself",
            )  # fmt: skip
        named = Path(pointer.read_text(encoding="utf-8").strip())
        return named if named.is_absolute() else path / named
    if not path.is_file() and path.with_name(path.name + SUFFIX).is_file():
        return path.with_name(path.name + SUFFIX)
    return path


def read_any_model(path: str | Path) -> DPModel:
    """The model of a model file, or of a checkpoint that a path names, also of one of DeePMD-kit.

    Raises
    ------
    ModelFileError
        There is none, or it is damaged or not supported.
    """
    path = find_checkpoint(path)
    return read_model(path) if path.suffix in MODEL_SUFFIXES else Checkpoint.load(path).model()


def newest_of(prefix: str | Path) -> Path:
    """The link to the newest checkpoint of the trainings with this `save_ckpt`."""
    return Path(f"{prefix}{SUFFIX}")


class CheckpointFolder:
    """The checkpoint files of a run: their names, the link to the newest, and how many are kept, as in DeePMD-kit.

    `<save_dir or folder of save_ckpt>/<save_ckpt>-<step>.safetensors`; `<save_ckpt>.safetensors` links to the
    newest and the file `checkpoint` names it; the `max_keep` newest are kept.

    Parameters
    ----------
    restart
        Step from which the run continues, None for a new run.

    Attributes
    ----------
    others
        Steps of the checkpoints of another run: for a new run all that are there, for a restarted one the later ones.
        They are kept, except where this run writes the same step.
    """

    def __init__(self, prefix: str, save_dir: str | None, max_keep: int, restart: int | None = None) -> None:
        self.prefix = Path(prefix)
        self.folder = Path(save_dir) if save_dir else self.prefix.parent
        self.max_keep = max_keep
        if self.prefix.is_dir():
            raise InputError(f"'{prefix}' is a folder", where="training/save_ckpt", expected="a file name")
        self.others = {step for step in self._steps() if restart is None or step > restart}

    def path(self, step: int) -> Path:
        """File of the checkpoint at a step."""
        return self.folder / f"{self.prefix.name}-{step}{SUFFIX}"

    @property
    def newest(self) -> Path:
        """The link to the newest checkpoint; another run's if this one has written none yet."""
        return newest_of(self.prefix)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, make it the newest, and remove this run's oldest beyond `max_keep`.

        Raises
        ------
        OSError
            It cannot be written; the existing ones stay.
        """
        path, link = self.path(checkpoint.step), self.newest
        checkpoint.save(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        with whole(link) as fresh:
            fresh.symlink_to(os.path.relpath(path, link.parent))
        write_whole(Path(POINTER), f"{path}\n")
        self.others.discard(checkpoint.step)
        for step in sorted(self._steps() - self.others)[: -self.max_keep]:
            self.path(step).unlink(missing_ok=True)
        return path

    def _steps(self) -> set[int]:
        """Steps of the checkpoints in the folder."""
        names = [path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"{self.prefix.name}-*{SUFFIX}")]
        numbers = [name[len(self.prefix.name) + 1 :] for name in names]
        return {int(number) for number in numbers if number.isdecimal()}
