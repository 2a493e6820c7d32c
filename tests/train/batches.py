"""Batches of small random frames with random labels, for tests of the trainer."""

from __future__ import annotations

import numpy as np

from dphpc.core.box import Box
from dphpc.model.dp_model import DPModel
from dphpc.train.data import Batch, Frame, Geometry
from dphpc.train.data.batch import join
from dphpc.train.step import LossGradient
from tests.models import random_structure


def random_batch(model: DPModel, sizes: tuple[int, ...] = (12, 20, 7), seed: int = 0) -> Batch:
    """Periodic frames of these sizes, the last one open; labels and parameters are random."""
    rng = np.random.default_rng(seed)
    frames = []
    for k, n in enumerate(sizes):
        x, cell, types = random_structure(n, length=5.5 + 0.3 * k, seed=seed + k, n_types=model.n_types)
        box = Box(cell) if k + 1 < len(sizes) else Box.around(x)
        geometry = Geometry.of(Frame(box.wrap(x), types, box), model.descriptor.rcut)
        values = {
            "energy": rng.normal(), "forces": rng.normal(size=(n, 3)), "virial": rng.normal(size=(3, 3)),
            "atom_ener": rng.normal(size=n), "atom_pref": rng.uniform(0.5, 2.0, n),
        }  # fmt: skip
        if model.fitting.numb_fparam:
            values["fparam"] = rng.normal(size=model.fitting.numb_fparam)
        if model.fitting.numb_aparam:
            values["aparam"] = rng.normal(size=(n, model.fitting.numb_aparam))
        frames.append(Batch.of(geometry, values))
    return join(frames)


def random_seeds(batch: Batch, seed: int = 0) -> LossGradient:
    """Random derivatives of a loss by everything that a prediction holds."""
    rng = np.random.default_rng(seed)
    return LossGradient(
        energy=rng.normal(size=batch.n_frames),
        atom_energy=rng.normal(size=batch.n_local),
        forces=rng.normal(size=(batch.n_local, 3)),
        virial=rng.normal(size=(batch.n_frames, 3, 3)),
    )
