"""Networks that all types share: what follows from them, and what of them is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dphpc.model.dp_model import DPModel
from dphpc.model.dpa1 import folded
from dphpc.model.fewer_types import with_types
from dphpc.model.model_file import read_model, write_model

MODELS = Path(__file__).parents[1] / "golden/models"
NAMES = ["dpa1_concat", "dpa1_concat_one_sided", "dpa1_concat_parameters", "dpa1_concat_no_output_tebd"]


def changed(name: str) -> DPModel:
    """A model with other weights than its file's, and in other arrays, as training has them."""
    model = read_model(MODELS / f"{name}.dp")
    assert model.shared is not None
    layers = [layer for networks in model.shared.groups.values() for layer in networks[0].layers]
    for k, layer in enumerate(layers):
        for key, value in list(layer.parameters()):
            setattr(layer, key, (1.01 + 0.01 * k) * value)
    model.shared.spread()
    return model


def arrays(model: DPModel) -> list[np.ndarray]:
    """Those that the model's own networks are evaluated with."""
    return [a for net in (*model.descriptor.networks, *model.fitting.networks) for _, a in net.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_own_networks_are_the_folded_shared_ones(name: str) -> None:
    model = changed(name)
    s = model.shared
    assert s is not None
    pairs = [folded(s.embedding, constants, 1) for constants in s.tebd_of_pairs(s.tebd)]
    centers = [folded(s.fitting, c, s.at) if s.output_types else s.fitting for c in s.tebd]
    for own, expected in ((model.descriptor.networks, pairs), (model.fitting.networks, centers)):
        assert len(own) == len(expected)
        for a, b in zip(own, expected, strict=True):
            for (_, x), (_, y) in zip(a.parameters(), b.parameters(), strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-14 * np.abs(y).max())


@pytest.mark.parametrize("name", NAMES)
def test_present_weights_are_written(name: str, tmp_path: Path) -> None:
    model, before = changed(name), read_model(MODELS / f"{name}.dp")
    write_model(model, tmp_path / "model.dp")
    again = read_model(tmp_path / "model.dp")
    assert all(np.array_equal(x, y) for x, y in zip(arrays(again), arrays(model), strict=True))
    assert not any(np.array_equal(x, y) for x, y in zip(arrays(again), arrays(before), strict=True))


def test_types_are_taken_out_of_the_present_weights() -> None:
    model = changed("dpa1_concat_three")
    cut = with_types(model, [model.type_map[2], model.type_map[0]])
    # Networks of (center, neighbor) at center + ntypes·neighbor.
    expected = [model.descriptor.networks[c + 3 * t] for t in (2, 0) for c in (2, 0)]
    for a, b in zip(cut.descriptor.networks, expected, strict=True):
        for (_, x), (_, y) in zip(a.parameters(), b.parameters(), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-14 * np.abs(y).max())


def test_files_of_other_forms_share_nothing_that_is_trained() -> None:
    assert read_model(MODELS / "dpa1_strip.dp").shared is None
    assert read_model(MODELS / "dpa1_v2.dp").shared is None
