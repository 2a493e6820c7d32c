"""The sections `training` and `dphpc` of a training input."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dphpc.core.config import Config, Seed, listed
from dphpc.parallel.back_ends import Compression, DataParallel
from dphpc.train.schema.model import NonNegative, NonNegativeInt, Positive, PositiveInt

log = logging.getLogger(__name__)

Probability = Annotated[float, Field(le=1)]


class DataConfig(Config):
    """Systems and how they are sampled: the keys that training and validation data share."""

    key_aliases: ClassVar = {"auto_prob_style": "auto_prob", "sys_weights": "sys_probs"}
    ignored_keys: ClassVar = frozenset({"set_prefix"})
    section: ClassVar = "training/training_data"

    systems: Annotated[list[str], Field(min_length=1), BeforeValidator(listed)]
    rglob_patterns: list[str] | None = None
    batch_size: PositiveInt | list[PositiveInt] | str = "auto"
    auto_prob: str = "prob_sys_size"
    sys_probs: list[Probability] | None = None

    @model_validator(mode="before")
    @classmethod
    def _warn_of_prefix(cls, data: Any) -> Any:
        prefix = data.get("set_prefix", "set") if isinstance(data, Mapping) else "set"
        if prefix != "set":
            log.warning('%s/set_prefix "%s" has no effect: sets are the folders set.*', cls.section, prefix)
        return data

    @field_validator("batch_size")
    @classmethod
    def _check_batch_size(cls, value: int | list[int] | str) -> int | list[int] | str:
        if isinstance(value, str):
            batch_rule(value)
        return value

    @field_validator("auto_prob")
    @classmethod
    def _check_auto_prob(cls, value: str) -> str:
        prob_blocks(value)
        return value


class TrainingDataConfig(DataConfig):
    """`training/training_data`."""

    unsupported_keys: ClassVar = {"min_pair_dist": (0,)}


class ValidationDataConfig(DataConfig):
    """`training/validation_data`; each validation takes `numb_btch` batches."""

    key_aliases: ClassVar = {**DataConfig.key_aliases, "numb_batch": "numb_btch"}
    section: ClassVar = "training/validation_data"

    numb_btch: PositiveInt = 1


def batch_rule(text: str) -> tuple[str, int]:
    """Rule and number of a batch size given as text: `auto` (32 atoms), `auto:N`, `max:N`, `filter:N`.

    auto: at least N atoms; max: at most N atoms, but at least one frame; filter: as max, without larger systems.

    Raises
    ------
    ValueError
        Another text.
    """
    if text == "auto":
        return "auto", 32
    match = re.fullmatch(r"(auto|max|filter|mixed|mix):(\d+)", text)
    if not match or int(match[2]) == 0:
        raise ValueError(
            f"batch size '{text}' is unknown; it can be a number, a list with one per system, "
            '"auto", "auto:N", "max:N" or "filter:N"'
        )
    if match[1].startswith("mix"):
        raise ValueError(f"batch size '{text}' of DeePMD-kit is not supported by dphpc yet; use \"auto:N\"")
    return match[1], int(match[2])


def prob_blocks(text: str) -> list[tuple[int, int, float]] | None:
    """Blocks (first, end, weight) of `prob_sys_size;first:end:weight;…`.

    None for `prob_uniform`, an empty list for plain `prob_sys_size`.

    Raises
    ------
    ValueError
        Another text, or a block that is not first:end:weight.
    """
    if text == "prob_uniform":
        return None
    name, *blocks = text.split(";")
    if name != "prob_sys_size":
        raise ValueError(
            f"auto_prob '{text}' is unknown; known are prob_uniform, prob_sys_size and prob_sys_size;first:end:weight;…"
        )
    parsed = []
    for block in blocks:
        match = re.fullmatch(r"\s*(\d+):(\d+):(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)\s*", block)
        if not match or int(match[2]) <= int(match[1]):
            raise ValueError(f"block '{block}' of auto_prob should be first:end:weight with first < end")
        parsed.append((int(match[1]), int(match[2]), float(match[3])))
    if parsed and sum(weight for _, _, weight in parsed) <= 0:
        raise ValueError("the weights of auto_prob are all zero")
    return parsed


class TrainingConfig(Config):
    """The `training` section."""

    key_aliases: ClassVar = {
        **dict.fromkeys(("stop_batch", "num_step", "num_steps", "numb_step"), "numb_steps"),
        **dict.fromkeys(("num_epochs", "num_epoch", "numb_epochs"), "numb_epoch"),
    }
    ignored_keys: ClassVar = frozenset({"numb_test", "set_prefix", "profiling_file", "ema_decay", "ema_ckpt_keep"})
    unsupported_keys: ClassVar = {
        "mixed_precision": (None,),
        "enable_ema": (False,),
        "change_bias_after_training": (False,),
        "profiling": (False,),
        "enable_profiler": (False,),
        "acc_freq": (1,),
        "zero_stage": (0,),
        "neighbor_graph_method": ("auto",),
        "enable_compile": (False,),
        "enable_tf32": (False,),
        "data_dict": (),
        "model_prob": (None, {}),
        "num_epoch_dict": (None, {}),
    }

    training_data: TrainingDataConfig
    validation_data: ValidationDataConfig | None = None
    numb_steps: NonNegativeInt | None = None
    numb_epoch: Positive | None = None
    seed: Seed | None = None
    disp_file: str = "lcurve.out"
    disp_freq: PositiveInt = 1000
    save_freq: PositiveInt = 1000
    save_dir: str | None = None
    save_ckpt: str = "model.ckpt"
    max_ckpt_keep: PositiveInt = 5
    ckpt_keep_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    disp_training: bool = True
    time_training: bool = True
    disp_avg: bool = False
    tensorboard: bool = False
    tensorboard_log_dir: str = "log"
    tensorboard_freq: PositiveInt = 1
    gradient_max_norm: NonNegative = 0.0
    stat_file: str | None = None
    stat_file_mode: Literal["update", "read"] = "update"

    @model_validator(mode="after")
    def _check_length(self) -> TrainingConfig:
        if (self.numb_steps is None) == (self.numb_epoch is None):
            raise ValueError("give the length of training by numb_steps or by numb_epoch, one of them")
        if self.stat_file_mode == "read" and self.stat_file is None:
            raise ValueError('stat_file_mode "read" needs stat_file')
        return self


class ValidatingConfig(Config):
    """The section `validating`, accepted if it asks for no validation; its other keys are then ignored."""

    ignored_keys: ClassVar = frozenset(
        ("validation_freq", "save_best", "save_best_dir", "max_best_ckpt", "validation_metric", "full_val_file",
         "full_val_start")
    )  # fmt: skip
    unsupported_keys: ClassVar = {
        "full_validation": (False,),
        "ema_full_validation": (False,),
        "compiled_infer": (False,),
        "tf32_infer": (False,),
        "amp_infer": (False,),
    }


class DphpcConfig(Config):
    """The `dphpc` section: options for which DeePMD-kit has no key.

    Attributes
    ----------
    embedding
        "table": pairs read the radial table, the network is evaluated at its knots.  "network": every pair
        evaluates the network (for checking).
    table_tolerance
        Largest error of G and of dG/ds̃ in the table, which is refined when the networks outgrow it.  The default leaves
        some 1e-7 eV in an atom's energy and 1e-6 eV/Å in forces, far below a trained model's errors; large weights
        would need 16 times the knots for 1e-9.
    device
        What trains: "cpu", "cuda", or "auto", a GPU where there is one.  A node's ranks take its GPUs in turn.
    n_threads
        Threads of the native kernels; 0 takes all cores.
    cache_mb
        Memory for the neighbor lists of frames, in MiB; frames beyond it are rebuilt when drawn.
    data_parallel
        What adds up gradients between ranks: "mpi", "torch" (torch.distributed) or "horovod"; "auto" is "mpi", and
        "torch" for gradients on GPUs.
    batch
        Of several ranks.  "global": `batch_size` is a step's, which ranks divide among them, so that a training is the
        same on any number of ranks.  "per_rank": every rank draws `batch_size` frames of its own, as in DeePMD-kit;
        N ranks take N times the frames a step, and learning rates go with N as `learning_rate/scale_by_worker` says.
    gradient_compression
        Precision in which gradients travel between ranks: "none" (their own), "fp16" or "bf16".
    """

    embedding: Literal["table", "network"] = "table"
    table_tolerance: Positive = 1e-5
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    n_threads: NonNegativeInt = 0
    cache_mb: NonNegative = 2048.0
    data_parallel: DataParallel = "auto"
    batch: Literal["global", "per_rank"] = "global"
    gradient_compression: Compression = "none"
