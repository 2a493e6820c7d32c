"""The training input: DeePMD-kit's `input.json` as typed sections, and our own under `dphpc`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from dphpc.core.config import Config, parse_config, read_mapping
from dphpc.core.errors import writing
from dphpc.core.files import write_whole
from dphpc.train.schema.migration import moved_from_training
from dphpc.train.schema.model import ModelConfig
from dphpc.train.schema.optimization import AdamConfig, LearningRateConfig, LossConfig, OptimizerConfig
from dphpc.train.schema.training import DphpcConfig, TrainingConfig, ValidatingConfig


class TrainInput(Config):
    """Everything `dphpc train` reads."""

    unsupported_keys: ClassVar = {"nvnmd": (None,)}
    taken_by: ClassVar = "train"

    model: ModelConfig
    learning_rate: LearningRateConfig
    optimizer: OptimizerConfig = AdamConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig
    validating: ValidatingConfig | None = Field(default=None, exclude=True)
    dphpc: DphpcConfig = DphpcConfig()

    @field_validator("optimizer", mode="before")
    @classmethod
    def _name_deepmd_kits(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("type") == "AdaMuon":
            what = "is 'AdaMuon', an optimizer of DeePMD-kit that dphpc does not support yet"
            problem = {"key": "type", "what": what, "remedy": "use HybridMuon"}
            raise PydanticCustomError("keys", "wrong keys", {"problems": [problem]})
        return value


def load_input(path: str | Path) -> TrainInput:
    """Read a training input (JSON or YAML).

    Raises
    ------
    InputError
        The file cannot be read, or a key or value is wrong.
    """
    return parse_input(read_mapping(path), source=str(path))


def parse_input(mapping: Mapping[str, Any], *, source: str = "input") -> TrainInput:
    """Check a mapping as `load_input` checks a file; keys that moved in DeePMD-kit 3.2 may be where they were.

    Raises
    ------
    InputError
        A key or value is wrong.
    """
    return parse_config(TrainInput, moved_from_training(mapping, source), source=source)


def write_input(config: TrainInput, path: str | Path) -> None:
    """Write `config` with all defaults as JSON (`out.json`), in one piece.

    Left out are keys without a value and, where they are all defaults, the section `dphpc` and an optimizer's keys that
    DeePMD-kit lacks: it refuses null for some keys, and keys that it does not know.  What an optimizer here leaves off
    and DeePMD-kit's default turns on is written as off.

    Raises
    ------
    RunError
        The file cannot be written.
    """
    path = Path(path)
    ours = {"dphpc"} if config.dphpc == DphpcConfig() else set()
    written = config.model_dump(mode="json", exclude_none=True, exclude=ours)
    options = config.optimizer
    left_out = {key for key in options.own_keys if getattr(options, key) == type(options).model_fields[key].default}
    kept = {key: value for key, value in written["optimizer"].items() if key not in left_out}
    written["optimizer"] = {**kept, **options.off_keys}
    with writing(path):
        write_whole(path, json.dumps(written, indent=4) + "\n")
