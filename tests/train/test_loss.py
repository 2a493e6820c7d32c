from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dphpc.core.errors import InputError
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.train.data import Batch, Geometry
from dphpc.train.loss import EnergyLoss
from dphpc.train.schema.optimization import LossConfig
from dphpc.train.step import Prediction
from tests.models import random_model
from tests.train.batches import random_batch
from tests.train.make_peer import LOSSES, LR, MASKED_TYPE, N_ATOMS, N_FRAMES, PREFACTORS, START_LR, TYPES, sample

PEER = json.loads(Path(__file__).with_name("peer.json").read_text())["losses"]


def sample_batch(without: list[str]) -> tuple[Prediction, Batch]:
    a = sample()
    labels = {
        "energy": a["label_energy"].ravel(),
        "forces": a["label_force"].reshape(-1, 3),
        "virial": a["label_virial"].reshape(-1, 3, 3),
        "atom_ener": a["label_atom_energy"].ravel(),
        "atom_pref": a["atom_pref"].ravel(),
    }
    nobody = np.zeros(0, np.int32)
    alone = Neighbors(np.zeros(N_ATOMS + 1, np.int64), nobody, 1.0)
    frame = Geometry(N_ATOMS, np.zeros((N_ATOMS, 3)), np.array(TYPES, np.int32), nobody, alone)
    batch = Batch(
        natoms=np.full(N_FRAMES, N_ATOMS),
        frame=np.repeat(np.arange(N_FRAMES, dtype=np.int32), N_ATOMS),
        frame_offsets=np.arange(N_FRAMES + 1) * N_ATOMS,
        geometries=(frame,) * N_FRAMES,
        **{name: value for name, value in labels.items() if name not in without},
    )
    prediction = Prediction(
        a["pred_atom_energy"].ravel(), a["pred_energy"].ravel(), a["pred_force"].reshape(-1, 3),
        a["pred_virial"].reshape(-1, 3, 3),
    )  # fmt: skip
    return prediction, batch


@pytest.mark.parametrize("name", LOSSES)
def test_equals_deepmd_kit(name: str) -> None:
    options = dict(LOSSES[name])
    without, masked = options.pop("without", []), options.pop("masked", False)
    prediction, batch = sample_batch(without)
    loss = EnergyLoss(LossConfig(**PREFACTORS, **options), START_LR, frozenset({MASKED_TYPE} if masked else ()))
    result = loss(prediction, batch, LR)
    assert result.value == pytest.approx(PEER[name]["value"], rel=1e-13)
    assert result.errors == pytest.approx(PEER[name]["errors"], rel=1e-13, nan_ok=True)
    g, expected = result.gradient, {k: np.array(v) for k, v in PEER[name]["gradient"].items()}
    found = {"energy": g.energy, "force": g.forces, "virial": g.virial, "atom_energy": g.atom_energy}
    for key, value in found.items():
        value = np.zeros(expected[key].size) if value is None else value.ravel()
        np.testing.assert_allclose(value, expected[key].ravel(), rtol=1e-12, atol=1e-15)


def test_derivatives_with_frames_of_different_size() -> None:
    batch = random_batch(random_model())
    options = {f"{end}_pref_{name}": 1.5 for end in ("start", "limit") for name in ("e", "f", "v", "ae", "pf")}
    loss = EnergyLoss(LossConfig(**options), 1e-3, frozenset({1}))
    rng = np.random.default_rng(2)
    n, frames = batch.n_local, batch.n_frames
    shapes = {"atom_energy": n, "energy": frames, "forces": (n, 3), "virial": (frames, 3, 3)}
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    gradient = loss(Prediction(**values), batch, 1e-3).gradient
    h = 1e-6
    for name in shapes:
        direction = rng.normal(size=shapes[name])
        up, down = ({**values, name: values[name] + sign * h * direction} for sign in (1, -1))
        slope = (loss(Prediction(**up), batch, 1e-3).value - loss(Prediction(**down), batch, 1e-3).value) / (2 * h)
        assert slope == pytest.approx(float((getattr(gradient, name) * direction).sum()), rel=1e-7)  # measured 2e-9


def test_missing_labels_switch_their_terms_off() -> None:
    prediction, batch = sample_batch(["energy", "forces", "virial"])
    result = EnergyLoss(LossConfig(**PREFACTORS), START_LR)(prediction, batch, LR)
    assert result.value == 0.0
    assert math.isnan(result.errors["rmse_e"])
    assert math.isnan(result.errors["rmse_f"])
    assert result.gradient.forces is None


def test_what_makes_no_loss_is_refused() -> None:
    with pytest.raises(InputError, match="Huber"):
        EnergyLoss(LossConfig(use_huber=True, relative_f=0.1), 1e-3)
    with pytest.raises(InputError, match="no term"):
        EnergyLoss(LossConfig(limit_pref_e=0.0, start_pref_f=0.0), 1e-3)
