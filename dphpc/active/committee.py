"""The committee: one training input with several seeds, trained, frozen and compressed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers

from dphpc.active.commands import command_line
from dphpc.active.config import LearnConfig
from dphpc.active.work import Work, read_json, spoiled
from dphpc.core.errors import InputError
from dphpc.model.activations import has_kinks
from dphpc.model.compress import compress_file
from dphpc.train.checkpoint import POINTER, Checkpoint, find_checkpoint
from dphpc.train.data import Dataset
from dphpc.train.freeze import freeze
from dphpc.train.schema import TrainInput, load_input, parse_input

MODEL = "model.dp"
"""The compressed model of a member, in its folder."""

TRAINING, VALIDATION = "data", "valid"
"""Systems made of a round's labelled frames, in the folder `label` of the round."""

COMPLETED = "out.json"
"""The complete input that a training writes, with `auto` values resolved."""

OF_ITS_OWN = {"save_dir": None, "save_ckpt": "model.ckpt", "disp_file": "lcurve.out", "stat_file": None}
"""Keys of `training` that name files, and the values that they must have, as each training has its own folder."""


@dataclass
class Data:
    """The systems with labels of earlier rounds, used in addition to the input's own."""

    training: list[Path] = field(default_factory=list)
    validation: list[Path] = field(default_factory=list)

    def with_labels(self, folder: Path) -> Data:
        """These systems, and those in the folder of a labelling."""
        training, validation = ([p] if (p := folder / name).is_dir() else [] for name in (TRAINING, VALIDATION))
        return Data([*self.training, *training], [*self.validation, *validation])


@dataclass(frozen=True)
class Committee:
    """The checked training input of a loop, and the trainings of its committees.

    Attributes
    ----------
    first, later
        The input of the first round, and that of later rounds.
    systems, validation
        Names of the input's own data systems.
    sample
        The first frame of the training data, with labels.
    """

    config: LearnConfig
    first: TrainInput
    later: TrainInput
    systems: list[str]
    validation: list[str]
    sample: Atoms

    @classmethod
    def of(cls, config: LearnConfig) -> Committee:
        """Read and check the input and its data.

        Raises
        ------
        InputError, DataError
            They are wrong, or ask for something that a loop cannot do.
        """
        first = load_input(config.train)
        later = parse_input(merged(_mapping(first), config.retrain), source=f"'retrain' on top of {config.train}")
        for given in (first, later):
            _require_possible(given, config.train)
        _require_same_systems(first, later)
        if config.init_model and first.model != later.model:
            raise InputError(
                "'retrain' changes the section 'model', and later rounds take the weights of earlier ones",
                where="retrain/model", remedy="leave it out, or say init_model: false",
            )  # fmt: skip
        t = first.training
        training = Dataset.load(t.training_data, first.model)
        validation = [] if t.validation_data is None else Dataset.load(t.validation_data, first.model).systems
        names, held = ([system.name for system in systems] for systems in (training.systems, validation))
        return cls(config, first, later, names, held, _first_frame(training))

    @property
    def type_map(self) -> list[str]:
        """The models' type map."""
        return self.first.model.type_map

    def folder(self, number: int, member: int) -> Path:
        """The folder in which a member of a round's committee is trained."""
        return round_folder(self.config, number) / "train" / str(member)

    def models(self, number: int) -> list[Path]:
        """The model files of a round's committee."""
        return [self.folder(number, k) / MODEL for k in range(self.config.models)]

    def require_models(self, number: int) -> list[Path]:
        """The model files of a trained committee; InputError if one is missing."""
        models = self.models(number)
        for path in models:
            if not path.is_file():
                raise spoiled(path, "a model of a committee that is trained is missing")
        return models

    def trainings(self, number: int, data: Data, before: int | None) -> list[Work]:
        """The trainings of a round's committee.

        Parameters
        ----------
        data
            Labels of the rounds before.
        before
            The last round with a committee of its own, None for the first.
        """
        return [self._training(number, k, data, before) for k in range(self.config.models)]

    def _training(self, number: int, member: int, data: Data, before: int | None) -> Work:
        folder, config = self.folder(number, member), self.config
        start = before if config.init_model else None
        settings = _mapping(self.first if before is None else self.later)
        training, model = settings["training"], settings["model"]
        _extend(training["training_data"], self.systems, data.training, folder)
        if self.validation or data.validation:
            _extend(training.setdefault("validation_data", {}), self.validation, data.validation, folder)
        for k, section in enumerate((model["descriptor"], model["fitting_net"], training)):
            section["seed"] = draw_seed(config.seed, number, member, k)
        if start is not None:  # the sum of `sel` is a factor in the model
            model["descriptor"]["sel"] = _sel(self.folder(start, member) / COMPLETED)
        arguments = ["train", "input.json", "--continue", "--output", COMPLETED]
        if start is not None:
            arguments += ["--init-model", os.path.relpath(self.folder(start, member) / MODEL, folder)]

        def begin(part: Path) -> list[str] | None:
            return None if _is_trained(part) else command_line(config.launch.train, *arguments)

        return Work(
            f"round {number}, training of model {member}", folder, "input.json", settings, begin, _freeze_and_compress
        )


def round_folder(config: LearnConfig, number: int) -> Path:
    """The folder of a round."""
    return Path(config.folder) / f"round-{number:02d}"


def draw_seed(*words: int) -> int:
    """A random seed that depends on these numbers only."""
    return int(np.random.default_rng(words).integers(2**31))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with changed values: sections are merged key by key, other values replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _mapping(config: TrainInput) -> dict[str, Any]:
    """The input as it was given, under the keys' own names."""
    return config.model_dump(mode="json", exclude_unset=True, exclude_none=True)


def _extend(section: dict[str, Any], own: Sequence[str], new: Sequence[Path], folder: Path) -> None:
    """Set the systems of a data section to its own and new ones, by paths relative to a folder."""
    section["systems"] = [os.path.relpath(system, folder) for system in [*own, *map(str, new)]]
    section.pop("rglob_patterns", None)


def _require_same_systems(first: TrainInput, later: TrainInput) -> None:
    """Refuse `retrain` with other data systems: every round has those of the input and all new ones."""
    for name in ("training_data", "validation_data"):
        before, after = (getattr(given.training, name) for given in (first, later))
        for key in ("systems", "rglob_patterns"):
            if after is not None and getattr(after, key) != getattr(before, key, None):
                raise InputError(
                    "'retrain' names other data, and later rounds have those of the first and all new labels",
                    where=f"retrain/training/{name}/{key}", remedy="name them in the training input, or leave them out",
                )  # fmt: skip


def _require_possible(given: TrainInput, path: str) -> None:
    """Raise InputError for options that a loop does not support."""
    t, m = given.training, given.model
    for name, data in (("training_data", t.training_data), ("validation_data", t.validation_data)):
        for key in ("batch_size", "auto_prob", "sys_probs") if data is not None else ():
            value = getattr(data, key)
            if isinstance(value, list) or (key == "auto_prob" and ";" in value):
                raise InputError(
                    f"'{key}' tells something of each system, and every round adds some",
                    where=f"{path}: training/{name}/{key}", expected="one value for all systems",
                )  # fmt: skip
    for key, default in OF_ITS_OWN.items():
        if getattr(t, key) != default:
            raise InputError(
                f"'{key}' names a place, and every training of a loop has a folder of its own",
                where=f"{path}: training/{key}", remedy="remove it",
            )  # fmt: skip
    if m.fitting_net.numb_aparam or (m.fitting_net.numb_fparam and m.fitting_net.default_fparam is None):
        raise InputError(
            "the model takes frame or atomic parameters, which a loop does not label",
            where=f"{path}: model/fitting_net", expected="numb_aparam 0, and numb_fparam 0 or default_fparam",
        )  # fmt: skip
    unnamed = [name for name in m.type_map if name not in atomic_numbers]
    if unnamed:
        raise InputError(
            f"'{unnamed[0]}' is no element, by which frames are labelled", where=f"{path}: model/type_map",
            expected="element symbols",
        )  # fmt: skip
    if has_kinks(m.descriptor.activation_function):
        raise InputError(
            f"networks with {m.descriptor.activation_function} cannot be compressed",
            where=f"{path}: model/descriptor/activation_function", expected="a smooth one, such as tanh",
        )  # fmt: skip


def _first_frame(data: Dataset) -> Atoms:
    frame, periodic = data.frame(0, 0), data.systems[0].periodic
    symbols = [data.type_map[k] for k in frame.types]
    atoms = Atoms(symbols, frame.positions, cell=frame.box.matrix if periodic else None, pbc=periodic)
    if frame.energy is not None and frame.forces is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
    return atoms


def _is_trained(folder: Path) -> bool:
    """Whether an interrupted training had done all its steps."""
    if not (folder / POINTER).is_file():
        return False
    checkpoint = Checkpoint.load(find_checkpoint(folder))
    return checkpoint.step >= (checkpoint.config.training.numb_steps or 0)


def _sel(path: Path) -> Any:
    """`sel` of a training, from the complete input that it has written."""
    try:
        return read_json(path)["model"]["descriptor"]["sel"]
    except (KeyError, TypeError):
        raise spoiled(path, "the input of a training that is done is damaged: it has no 'sel'") from None


def _freeze_and_compress(folder: Path) -> None:
    compress_file(freeze(folder, folder / "frozen.dp"), folder / MODEL)
