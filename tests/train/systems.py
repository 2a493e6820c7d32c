"""Small training data on disk, labelled by a random model, and an input for it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from tests.models import random_structure


def write_system(folder: Path, n_atoms: int, n_frames: int, seed: int, *, virial: bool = True) -> None:
    """A DeePMD-kit npy system of random frames with smooth made-up labels."""
    rng = np.random.default_rng(seed)
    coords, boxes, types = [], [], np.zeros(n_atoms, int)
    for k in range(n_frames):
        x, cell, types = random_structure(n_atoms, 6.0, seed=100 * seed + k)
        coords.append(x.ravel())
        boxes.append(cell.ravel())
    target = folder / "set.000"
    target.mkdir(parents=True)
    np.savetxt(folder / "type.raw", types, fmt="%d")
    (folder / "type_map.raw").write_text("O\nH\n")
    np.save(target / "coord.npy", np.array(coords))
    np.save(target / "box.npy", np.array(boxes))
    np.save(target / "energy.npy", -3.0 * n_atoms + rng.normal(size=n_frames))
    np.save(target / "force.npy", rng.normal(size=(n_frames, 3 * n_atoms)))
    if virial:
        np.save(target / "virial.npy", rng.normal(size=(n_frames, 9)))


def write_padded(folder: Path) -> None:
    """An npy/mixed system: frames of 12, 9 and 10 atoms, filled up to 12 with slots that hold none."""
    write_system(folder, 12, 3, seed=4)
    slots = np.tile(np.loadtxt(folder / "type.raw", dtype=int), (3, 1))
    slots[1, 9:] = slots[2, 10:] = -1
    np.save(folder / "set.000/real_atom_types.npy", slots)
    np.savetxt(folder / "type.raw", np.zeros(12), fmt="%d")


def small_input(**training: Any) -> dict[str, Any]:
    """An input for `a` and `b` (training) and `c` (validation) in the working directory."""
    return {
        "model": {
            "type_map": ["O", "H"],
            "descriptor": {
                "type": "se_e2_a", "sel": "auto", "rcut": 4.0, "rcut_smth": 1.0, "neuron": [4, 8, 16],
                "axis_neuron": 4, "type_one_side": True, "seed": 1,
            },
            "fitting_net": {"neuron": [12, 12], "seed": 1},
        },
        "learning_rate": {"type": "exp", "start_lr": 2e-3, "stop_lr": 1e-5, "decay_steps": 5},
        "loss": {"start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 100, "limit_pref_f": 1,
                 "start_pref_v": 0.1, "limit_pref_v": 0.1},
        "training": {
            "training_data": {"systems": ["a", "b"], "batch_size": 2},
            "validation_data": {"systems": ["c"], "batch_size": 1, "numb_btch": 2},
            "numb_steps": 12, "seed": 7, "disp_freq": 3, "save_freq": 4, **training,
        },
    }  # fmt: skip


def peer_input() -> dict[str, Any]:
    """Training on the one frame of system `one` from a given start: DeePMD-kit and dphpc must take the same way.

    `gradient_max_norm` acts from the third step on.
    """
    given = small_input(numb_steps=8, disp_freq=2, save_freq=100, gradient_max_norm=30.0)
    given["model"]["descriptor"]["sel"] = [40, 40]
    given["training"]["training_data"] = {"systems": ["one"], "batch_size": 1}
    given["training"]["validation_data"] = {"systems": ["one"], "batch_size": 1, "numb_btch": 1}
    given["learning_rate"] = {"type": "exp", "start_lr": 2e-3, "stop_lr": 1e-4, "decay_steps": 2}
    return given


def shared_input(**training: Any) -> dict[str, Any]:
    """`small_input` for networks that all types share."""
    given = small_input(**training)
    own = given["model"]["descriptor"]
    given["model"]["descriptor"] = {**own, "type": "dpa1", "attn_layer": 0, "tebd_dim": 3, "type_one_side": False}
    return given


FORMS: dict[str, dict[str, Any]] = {
    "concat": {},
    "strip": {"tebd_input_mode": "strip"},
    "smooth": {"tebd_input_mode": "strip", "smooth_type_embedding": True, "type_one_side": True},
}
"""Keys of the descriptor for networks that all types share."""


def with_descriptor(given: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """The input with other keys of the descriptor."""
    given = deepcopy(given)
    given["model"]["descriptor"] |= keys
    return given


PEER_FORMS: dict[str, dict[str, Any]] = {
    "dpa1": {},
    "strip": {"tebd_input_mode": "strip", "resnet_dt": True},
    "v2": {"type": "se_atten_v2", "type_one_side": True, "set_davg_zero": True},
}
"""Keys of the descriptor."""


def peer_dpa1_input(form: str = "dpa1") -> dict[str, Any]:
    """`peer_input` for networks that all types share, with a bias in the types' embedding."""
    given, own = peer_input(), shared_input()["model"]["descriptor"]
    given["model"]["descriptor"] = {**own, "sel": 80, "use_tebd_bias": True, **PEER_FORMS[form]}
    return given


def peer_lkf_input() -> dict[str, Any]:
    """Training by LKF, in one block, on the two frames of system `six`, from the same start.

    With six atoms a group can hold all of them, so that chance has no part in it.
    """
    given = peer_input()
    del given["training"]["validation_data"], given["training"]["gradient_max_norm"]
    given["training"]["training_data"] = {"systems": ["six"], "batch_size": 2}
    prefactors = {"kf_start_pref_e": 2.0, "kf_limit_pref_e": 1.0, "kf_start_pref_f": 5.0, "kf_limit_pref_f": 2.0}
    given["optimizer"] = {"type": "LKF", "kf_blocksize": 5120, **prefactors}
    return given


def write_systems(folder: Path) -> None:
    """The three systems of `small_input`, of different sizes."""
    write_system(folder / "a", 10, 5, seed=1)
    write_system(folder / "b", 16, 4, seed=2)
    write_system(folder / "c", 12, 3, seed=3)
