"""Networks that all types share: what follows from them, and what of them is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dphpc.model.container import read_tree, write_tree
from dphpc.model.dp_model import DPModel
from dphpc.model.env_mat import switch
from dphpc.model.fewer_types import with_types
from dphpc.model.model_file import read_model, write_model

MODELS = Path(__file__).parents[1] / "golden/models"
NAMES = ["dpa1_concat", "dpa1_concat_one_sided", "dpa1_concat_parameters", "dpa1_concat_no_output_tebd"]
STRIPPED = ["dpa1_strip", "dpa1_strip_one_sided", "dpa1_strip_smooth_one_sided", "dpa1_v2"]


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


@pytest.mark.parametrize("name", [*NAMES, *STRIPPED])
def test_own_networks_are_the_shared_ones_with_types_given(name: str) -> None:
    model = changed(name)
    s = model.shared
    assert s is not None
    x, tebd = np.linspace(-0.3, 4.0, 9)[:, None], s.types(s.inputs)
    for own, (t, c) in zip(model.descriptor.networks, s.pairs, strict=True):
        given = tebd[t] if s.one_side else np.concatenate((tebd[t], tebd[c]))
        if s.strip is None:
            expected = s.embedding(np.hstack((x, np.tile(given, (9, 1)))))
        else:
            d = model.descriptor
            gate = gate_at(d.davg[c] + d.dstd[c, 0] * x[:, 0], d.rcut, d.rcut_smth) if s.smooth else 1.0
            expected = s.embedding(x) * (1.0 + s.strip(given[None]) * gate)
        found = own(x)
        near = x[:, 0] > 0  # no pair has s < 0
        limit = 1e-7 if s.smooth else 1e-13  # measured 2e-9, from the table of s(r)
        np.testing.assert_allclose(found[near], expected[near], rtol=0, atol=limit * np.abs(expected).max())
    features = np.random.default_rng(1).normal(size=(5, model.fitting.networks[0].n_in))
    for own, row in zip(model.fitting.networks, tebd, strict=True):
        columns = [features[:, : s.at], np.tile(row, (5, 1))[:, : len(row) * s.output_types], features[:, s.at :]]
        expected = s.fitting(np.hstack(columns))
        np.testing.assert_allclose(own(features), expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def gate_at(s: np.ndarray, rcut: float, rcut_smth: float) -> np.ndarray:
    """(n, 1) the switch at the distances of s, by a fine table of s(r)."""
    r = np.linspace(0.05, rcut, 200_001)
    sw = switch(r, rcut, rcut_smth)[0]
    return np.interp(s, (sw / r)[::-1], sw[::-1])[:, None]


@pytest.mark.parametrize("name", [*NAMES, *STRIPPED])
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


def test_a_deep_type_embedding_is_evaluated_but_not_trained(tmp_path: Path) -> None:
    """As DeePMD-kit's TensorFlow back end has them."""
    tree = read_tree(MODELS / "dpa1_strip.dp")
    layer = tree["model"]["descriptor"]["type_embedding"]["embedding"]["layers"][0]
    layer["activation_function"] = "tanh"
    write_tree(tree, tmp_path / "model.dp")
    deep, linear = (read_model(path) for path in (tmp_path / "model.dp", MODELS / "dpa1_strip.dp"))
    assert deep.shared is not None
    assert linear.shared is not None
    assert (deep.shared.trained, linear.shared.trained) == (False, True)
    assert not np.allclose(deep.shared.tebd, linear.shared.tebd)
