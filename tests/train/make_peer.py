"""Writes peer.json: losses, their gradients and learning rates by DeePMD-kit itself.

Run in DeePMD-kit's own environment: `python tests/train/make_peer.py` (made with deepmd-kit 3.2.0, torch 2.11).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

N_FRAMES, N_ATOMS, MASKED_TYPE = 3, 5, 1
TYPES = [0, 1, 0, 0, 1]

LOSSES = {
    "plain": {},
    "all_terms": {"start_pref_v": 0.3, "limit_pref_v": 0.7, "start_pref_ae": 2.0, "limit_pref_ae": 1.0,
                  "start_pref_pf": 3.0, "limit_pref_pf": 0.5},
    "intensive": {"start_pref_v": 0.3, "limit_pref_v": 0.7, "intensive_ener_virial": True},
    "relative_f": {"relative_f": 0.5},
    "huber": {"use_huber": True, "huber_delta": 0.4, "start_pref_v": 0.3, "limit_pref_v": 0.7,
              "start_pref_ae": 2.0, "limit_pref_ae": 1.0},
    "huber_list": {"use_huber": True, "huber_delta": [0.1, 0.5, 0.2], "start_pref_v": 1.0, "limit_pref_v": 1.0},
    "huber_norm": {"use_huber": True, "huber_delta": 0.4, "f_use_norm": True},
    "mae": {"loss_func": "mae", "start_pref_v": 0.3, "limit_pref_v": 0.7, "start_pref_ae": 2.0, "limit_pref_ae": 1.0},
    "mae_norm": {"loss_func": "mae", "f_use_norm": True},
    "default_pf": {"use_default_pf": True, "start_pref_pf": 3.0, "limit_pref_pf": 0.5, "without": ["atom_pref"]},
    "no_virial": {"start_pref_v": 0.3, "limit_pref_v": 0.7, "without": ["virial"]},
    "masked": {"start_pref_v": 0.3, "limit_pref_v": 0.7, "start_pref_ae": 2.0, "limit_pref_ae": 1.0, "masked": True},
    "masked_huber": {"use_huber": True, "huber_delta": 0.4, "masked": True},
}  # fmt: skip

SCHEDULES = {
    "water": ({"type": "exp", "decay_steps": 50, "start_lr": 1e-3, "stop_lr": 3.51e-8}, 5000),
    "exp_default_steps": ({"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-6}, 2000),
    "exp_rate": ({"type": "exp", "decay_steps": 7, "decay_rate": 0.9, "start_lr": 2e-3, "stop_lr": 1e-4}, 300),
    "exp_smooth": ({"type": "exp", "decay_steps": 40, "smooth": True, "start_lr": 1e-3, "stop_lr_ratio": 1e-3}, 500),
    "exp_warmup": ({"type": "exp", "decay_steps": 40, "start_lr": 1e-3, "stop_lr": 1e-6, "warmup_steps": 30,
                    "warmup_start_factor": 0.1}, 500),
    "cosine": ({"type": "cosine", "start_lr": 1e-3, "stop_lr": 1e-5, "warmup_ratio": 0.1}, 400),
    "wsd": ({"type": "wsd", "start_lr": 1e-3, "stop_lr": 1e-5, "warmup_steps": 20}, 400),
    "wsd_cosine": ({"type": "wsd", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_phase_ratio": 0.4,
                    "decay_type": "cosine"}, 400),
    "wsd_linear": ({"type": "wsd", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_phase_ratio": 0.4,
                    "decay_type": "linear"}, 400),
}  # fmt: skip

START_LR, LR = 1e-3, 2.5e-4
PREFACTORS = {"start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 1000.0, "limit_pref_f": 1.0}


def sample() -> dict[str, np.ndarray]:
    """Predictions and labels, the same here and in the test."""
    rng = np.random.default_rng(5)
    shapes = {"energy": (N_FRAMES, 1), "force": (N_FRAMES, N_ATOMS, 3), "virial": (N_FRAMES, 9),
              "atom_energy": (N_FRAMES, N_ATOMS, 1)}  # fmt: skip
    arrays = {f"{side}_{name}": rng.normal(size=shape) for side in ("pred", "label") for name, shape in shapes.items()}
    arrays["atom_pref"] = rng.uniform(0.5, 2.0, (N_FRAMES, N_ATOMS))
    return arrays


def peer_loss(options: dict) -> dict:
    import torch
    from deepmd.pt.loss.ener import EnergyStdLoss

    options = dict(options)
    without, masked = options.pop("without", []), options.pop("masked", False)
    arrays = {name: torch.tensor(value, dtype=torch.float64) for name, value in sample().items()}
    names = ("energy", "force", "virial", "atom_energy")
    prediction = {name: arrays[f"pred_{name}"].clone().requires_grad_(True) for name in names}
    mask = np.array([[t != MASKED_TYPE or not masked for t in TYPES]] * N_FRAMES, float)
    label = {name: arrays[f"label_{name}"] for name in ("energy", "force", "virial")}
    label["atom_ener"] = arrays["label_atom_energy"]
    label["atom_pref"] = arrays["atom_pref"][:, :, None].repeat(1, 1, 3)
    for name in list(label):
        label[f"find_{name}"] = 0.0 if name in without else 1.0
        if name in without:
            label[name] = torch.ones_like(label[name])
    loss = EnergyStdLoss(START_LR, **PREFACTORS, **options)
    _, value, more = loss({}, lambda: {**prediction, "mask": torch.tensor(mask)}, label, N_ATOMS, LR)
    value.backward()
    gradient = {n: (p.grad if p.grad is not None else torch.zeros_like(p)).tolist() for n, p in prediction.items()}
    errors = {key: float(v) for key, v in more.items() if not key.startswith("l2_")}
    return {"value": float(value), "errors": errors, "gradient": gradient}


def peer_schedule(options: dict, n_steps: int) -> list[float]:
    from deepmd.dpmodel.utils.learning_rate import BaseLR

    schedule = BaseLR(**options, num_steps=n_steps)
    return [schedule.value(step) for step in range(n_steps + 5)]


if __name__ == "__main__":
    result = {
        "losses": {name: peer_loss(options) for name, options in LOSSES.items()},
        "schedules": {name: peer_schedule(*a)[:: max(1, a[1] // 97)] for name, a in SCHEDULES.items()},
    }
    Path(__file__).with_name("peer.json").write_text(json.dumps(result) + "\n")
