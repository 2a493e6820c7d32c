"""`dphpc change-bias`: fitting the energy bias of a model to other data, as fine-tuning does at its start, too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from dphpc.core.arrays import Doubles
from dphpc.core.device import Device
from dphpc.core.errors import DataError, InputError
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import MODEL_SUFFIXES, WRITTEN, read_model, write_model
from dphpc.potential.deep_pot import DeepPot
from dphpc.train.checkpoint import SUFFIX, Checkpoint, find_checkpoint
from dphpc.train.data.system import System
from dphpc.train.evaluate import predict, systems_for
from dphpc.train.initial import model_arrays
from dphpc.train.statistics import energy_bias, spread

log = logging.getLogger(__name__)

Mode = Literal["change", "set"]


def change_bias(
    model: str | Path,
    systems: str | Sequence[str] | None = None,
    mode: Mode = "change",
    values: Sequence[float] | None = None,
    n_frames: int = 0,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
) -> Path:
    """Write a copy of a model or checkpoint with another energy bias.

    Parameters
    ----------
    model
        A model file, a checkpoint, or the folder of a training.
    systems
        A labelled system, a folder to be searched, `file.hdf5#/group`, `data.lmdb`, or several of them; the
        working directory if neither they nor `values` are given.
    mode
        "change" or "set", see `fitted_bias`.
    values
        (ntypes,) eV, the bias itself, instead of data to fit it to.
    n_frames
        Frames of each system, spread evenly through it; 0 means all.
    output
        A `.dp` or `.yaml` file, or for a checkpoint `.safetensors`; None: `NAME_updated` with the suffix of `model`,
        if that is one of these, else `.dp`.
    progress
        Called with the number of frames predicted so far and in all.
    device
        `cpu`, `cuda` or `auto`, as for `DeepPot`.

    Returns
    -------
    The file written.

    Raises
    ------
    InputError
        The arguments do not go together.
    DataError, ModelFileError
        Missing or damaged files, elements that the model does not know, a system without energies.
    """
    if values is not None and systems is not None:
        raise InputError("both systems and values of the bias are given", remedy="use one of -s (or -f) and -b")
    if mode not in get_args(Mode):
        raise InputError(f"'{mode}' is no mode", expected="change or set")
    source = find_checkpoint(model)
    checkpoint = None if source.suffix in MODEL_SUFFIXES else Checkpoint.load(source)
    target = _target(source, output)
    before = read_model(source) if checkpoint is None else checkpoint.model()
    if values is not None:
        bias = _given_bias(before, values)
    else:
        opened = systems_for(before, "." if systems is None else systems)
        for system in opened:
            if "energy" not in system.labels:
                raise DataError(
                    "no energy.npy, which the bias is fitted to", where=system.name,
                    remedy="leave the system out, or give the bias itself with -b",
                )  # fmt: skip
        frames = [(s, int(i)) for s in opened for i in spread(s.n_frames, n_frames or s.n_frames)]
        bias = fitted_bias(before, frames, mode, progress, device)
    after = with_bias(before, bias)
    if checkpoint is not None and target.suffix == SUFFIX:
        replace(checkpoint, arrays=model_arrays(after)).save(target)
    else:
        write_model(after, target)
    return target


def fitted_bias(
    model: DPModel,
    frames: Iterable[tuple[System, int]],
    mode: Mode = "change",
    progress: Callable[[int, int], None] | None = None,
    device: str | Device | None = "cpu",
) -> Doubles:
    """The energy bias (ntypes,), eV, that fits a model to frames with energies, by least squares over atom counts.

    Mode "change" fits the difference between labels and the model's energies and adds it to the model's bias; a type
    that is in no frame keeps its bias.  Mode "set" fits the labels themselves, as a new training does; such a type gets
    0.  Types whose energy `atom_ener` gives have that energy in both modes.

    Parameters
    ----------
    frames
        System and number of each frame.
    progress
        Called with the number of frames predicted so far and in all.
    """
    frames = list(frames)
    dp = DeepPot(model, device=device) if mode == "change" else None
    rest = np.zeros(len(frames))
    counts = np.zeros((len(frames), model.n_types))
    for k, (system, i) in enumerate(frames):
        frame = system.frame(i)
        assert frame.energy is not None, "the caller takes frames with energies only"
        rest[k] = frame.energy - (predict(dp, frame, system.periodic).energy if dp else 0.0)
        counts[k] = np.bincount(frame.types, minlength=model.n_types)
        if progress:
            progress(k + 1, len(frames))
    given = model.fitting.atom_ener
    if mode == "change":
        given = [None if e is None else 0.0 for e in given]
    fitted, _ = energy_bias(rest, counts, given, model.atom_exclude_types, model.fitting.rcond)
    return fitted if mode == "set" else model.energy_bias + fitted


def with_bias(model: DPModel, bias: ArrayLike) -> DPModel:
    """A model with this energy bias (ntypes,), eV, instead of its own; both are logged."""
    new = np.array(bias, np.float64)
    old, names = model.energy_bias, " ".join(model.type_map)
    log.info("energy bias of %s in eV: %s, before: %s", names, *(" ".join(f"{e:.8g}" for e in b) for b in (new, old)))
    return replace(model, fitting=replace(model.fitting, bias_atom_e=np.zeros(model.n_types)), out_bias=new)


def _given_bias(model: DPModel, values: Sequence[float]) -> Doubles:
    bias = np.array(values, np.float64)
    if bias.shape != (model.n_types,) or not np.isfinite(bias).all():
        raise InputError(
            f"the bias is {' '.join(f'{e:g}' for e in bias.ravel())}", where="-b",
            expected=f"{model.n_types} finite numbers, for {' '.join(model.type_map)}",
        )  # fmt: skip
    return bias


def _target(source: Path, output: str | Path | None) -> Path:
    """The file to write; InputError if it cannot be written."""
    endings = WRITTEN if source.suffix in MODEL_SUFFIXES else (*WRITTEN, SUFFIX)
    same = source.with_stem(f"{source.stem}_updated")
    target = Path(output) if output is not None else same if same.suffix in endings else same.with_suffix(".dp")
    if target.suffix not in endings:
        raise InputError(
            f"'{target}' names no file that can be written", expected=f"a name ending in {', '.join(endings)}"
        )
    if not target.parent.is_dir():
        raise InputError(f"there is no folder '{target.parent}' to write '{target.name}' to", remedy="make it first")
    return target
