"""Inputs for DeePMD-kit before 3.2, where keys of optimizer and warm-up were in the section `training`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from dphpc.core.errors import InputError

log = logging.getLogger(__name__)

_KF = ("kf_blocksize", "kf_start_pref_e", "kf_limit_pref_e", "kf_start_pref_f", "kf_limit_pref_f")
_MUON = ("momentum", "muon_momentum", "lr_adjust", "lr_adjust_coeff")
_ADAM = ("weight_decay", "adam_beta1", "adam_beta2")

MOVED: dict[str, tuple[str, str]] = {
    "opt_type": ("optimizer", "type"),
    **{key: ("optimizer", key) for key in (*_KF, *_MUON, *_ADAM)},
    **{key: ("learning_rate", key) for key in ("warmup_steps", "warmup_ratio", "warmup_start_factor")},
}
"""Key in `training`, and its section and key since 3.2."""


def moved_from_training(data: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The input with these keys in their new sections; a warning names them.  `source` names the file in messages.

    Raises
    ------
    InputError
        A key is in both sections.
    """
    training = data.get("training")
    if not isinstance(training, Mapping):
        return data
    found = [key for key in training if key in MOVED]
    if not found or not all(isinstance(data.get(MOVED[key][0], {}), Mapping) for key in found):
        return data  # refused later, for what is not a section
    result = {**data, "training": {key: value for key, value in training.items() if key not in MOVED}}
    for key in found:
        section, name = MOVED[key]
        if name in result.get(section, {}):
            raise InputError(
                f"'{key}' of section training stands in section {section}, too", where=f"{source}: training/{key}",
                remedy=f"keep {section}/{name}, where it belongs since DeePMD-kit 3.2",
            )  # fmt: skip
        result[section] = {**result.get(section, {}), name: training[key]}
    log.warning(
        "keys of section training that belong elsewhere since DeePMD-kit 3.2 were moved: %s",
        ", ".join(f"{key} to {'/'.join(MOVED[key])}" for key in found),
    )
    return result
