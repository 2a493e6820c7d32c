"""`dphpc freeze`: writing the model of a checkpoint as a model file."""

from __future__ import annotations

from pathlib import Path

from dphpc.core.errors import InputError
from dphpc.model.model_file import WRITTEN, write_model
from dphpc.train.checkpoint import read_any_model


def freeze(checkpoint_or_dir: str | Path = ".", output: str | Path = "frozen_model.dp") -> Path:
    """Write the model of a checkpoint, or of the newest one in a training's folder, as `.dp` or `.yaml`.

    The checkpoint may be DeePMD-kit's, or a frozen model.

    Raises
    ------
    InputError
        The output has another suffix.
    ModelFileError
        There is no checkpoint, or it is damaged.
    """
    output = Path(output)
    if output.suffix not in WRITTEN:
        raise InputError(
            f"'{output}' names no model file that can be written", expected="a name ending in .dp or .yaml"
        )
    write_model(read_any_model(checkpoint_or_dir), output)
    return output
