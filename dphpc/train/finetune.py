"""Fine-tuning: what the input must share with the trained model, and the energy bias at the start."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.config import parse_config
from dphpc.core.device import Device
from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.train.bias import fitted_bias
from dphpc.train.data import Dataset
from dphpc.train.initial import model_section
from dphpc.train.sampler import Sampler
from dphpc.train.schema import TrainInput
from dphpc.train.schema.model import ModelConfig
from dphpc.train.statistics import sample_frames

FREE = ("seed", "precision", "trainable", "rcond", "set_davg_zero", "default_fparam")
"""Keys that a fine-tuning may change, as they do not change what the weights compute."""


def with_section_of(model: DPModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """An input with its descriptor and fitting net replaced by those of a model.

    As with `dp`, `trainable` and the rest of the section `model` are still the input's.
    """
    section = _mapping(given.get("model"))
    own = model_section(model)
    for name in ("descriptor", "fitting_net"):
        own[name]["trainable"] = _mapping(section.get(name)).get("trainable", True)
    rest = {key: value for key, value in section.items() if key not in ("descriptor", "fitting_net")}
    return {**given, "model": {**own, **rest}}


def shaped_as(model: DPModel, config: TrainInput, where: str) -> TrainInput:
    """The input of a fine-tuning, checked against the model, with the model's `sel` if it gives no numbers.

    Raises
    ------
    InputError
        The input describes another potential than the model's, whose file is `where`.
    """
    new, old = config.model, parse_config(ModelConfig, model_section(model), source=where)
    takes_sel = isinstance(new.descriptor.sel, str)
    if changed := changes(new, old, (*FREE, "sel") if takes_sel else FREE):
        raise InputError(
            f"the input differs from the model to be fine-tuned in {', '.join(changed)}", where=where,
            expected="; ".join(f"{key} {value}" for key, value in changed.items()),
            remedy="restore these values; --use-pretrain-script takes descriptor and fitting_net from the model",
        )  # fmt: skip
    if takes_sel:
        new = new.updated(descriptor=new.descriptor.updated(sel=old.descriptor.sel))
    return config.updated(model=new)


def shifted_bias(model: DPModel, config: TrainInput, training: Dataset, device: Device | None) -> NDArray[np.float64]:
    """The model's energy bias (ntypes,), eV, fitted to the frames that a new training takes its statistics from."""
    sizes = Sampler.of(training, config.training.training_data, config.training.seed).batch_sizes
    frames = [(training.systems[s], i) for s, i in sample_frames(training, config.model, sizes)]
    return fitted_bias(model, [(system, i) for system, i in frames if "energy" in system.labels], device=device)


def changes(new: ModelConfig, old: ModelConfig, free: Collection[str]) -> dict[str, Any]:
    """Keys that define a model, except `free` ones, and have different values; mapped to the old value."""
    sections = {"model": (new, old)} | {
        f"model/{name}": (getattr(new, name), getattr(old, name)) for name in ("descriptor", "fitting_net")
    }
    shared = ("type_map", "pair_exclude_types", "atom_exclude_types")
    return {
        f"{where}/{key}": getattr(b, key, None)
        for where, (a, b) in sections.items()
        for key in (shared if where == "model" else type(a).model_fields)
        if key not in free and _plain(key, getattr(a, key)) != _plain(key, getattr(b, key, None))
    }


def _plain(key: str, value: Any) -> Any:
    """A canonical form in which equivalent values are equal: excluded types in any order, no energies given."""
    if key.endswith("exclude_types"):
        return {frozenset(t) if isinstance(t, tuple) else t for t in value}
    return [] if key == "atom_ener" and all(e is None for e in value) else value


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one; the error is raised when the input is checked."""
    return value if isinstance(value, Mapping) else {}
