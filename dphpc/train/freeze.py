"""`dphpc freeze`: writing the model of a checkpoint as a model file."""

from __future__ import annotations

from pathlib import Path

from dphpc.core.errors import InputError
from dphpc.model.model_file import MODEL_SUFFIXES, write_model
from dphpc.train.checkpoint import Checkpoint, find_checkpoint


def freeze(checkpoint_or_dir: str | Path = ".", output: str | Path = "frozen_model.dp") -> Path:
    """Write the model of a checkpoint, or of the newest one in a training's folder, as `.dp` or `.yaml`.

    Raises
    ------
    InputError
        The output has another suffix.
    ModelFileError
        There is no checkpoint, or it is damaged.
    """
    output = Path(output)
    if output.suffix not in MODEL_SUFFIXES:
        raise InputError(
            f"'{output}' names no model file that can be written", expected="a name ending in .dp or .yaml"
        )
    write_model(Checkpoint.load(find_checkpoint(checkpoint_or_dir)).model(), output)
    return output
