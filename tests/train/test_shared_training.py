"""Training of models whose networks all types share: DeePMD-kit's `dpa1` without attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dphpc
from dphpc.core.errors import InputError
from dphpc.model.container import read_tree
from dphpc.model.fewer_types import with_types
from dphpc.model.model_file import read_model, write_model
from dphpc.potential.deep_pot import DeepPot
from dphpc.train.bias import change_bias
from dphpc.train.checkpoint import Checkpoint
from dphpc.train.freeze import freeze
from dphpc.train.initial import STATISTICS, model_arrays
from dphpc.train.schema import load_input, parse_input
from tests.models import random_structure
from tests.train.systems import (
    FORMS,
    PEER_FORMS,
    peer_dpa1_input,
    shared_input,
    small_input,
    with_descriptor,
    write_system,
    write_systems,
)

HERE = Path(__file__).parent
MODELS = HERE.parent / "golden" / "models"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_systems(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


every_form = pytest.mark.parametrize("form", FORMS)


def state(path: str) -> dict[str, np.ndarray]:
    loaded = Checkpoint.load(Path(path))
    return {**loaded.arrays, **loaded.optimizer}


@pytest.mark.parametrize("form", PEER_FORMS)
def test_eight_steps_equal_deepmd_kit(form: str) -> None:
    write_system(Path("one"), 32, 1, seed=9)
    given = {**peer_dpa1_input(form), "dphpc": {"table_tolerance": 1e-9}}
    dphpc.train(given, init_model=HERE / f"peer_{form}_start.dp", skip_neighbor_stat=True)
    start, end = (model_arrays(read_model(HERE / f"peer_{form}_{name}.dp")) for name in ("start", "end"))
    ours = Checkpoint.load(Path("model.ckpt-8.safetensors")).arrays
    for name, value in end.items():
        moved = np.abs(value - start[name]).max()
        # Measured: 2e-7 of the way, where Adam divides a small gradient's rounding by its size.
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=2e-6 * max(moved, 1e-3))
        assert moved > 1e-3 or name in STATISTICS


@every_form
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_restart_goes_on_to_the_bit(precision: str, form: str) -> None:
    given = with_descriptor(shared_input(save_freq=5), precision=precision, **FORMS[form])
    given["model"]["fitting_net"]["precision"] = precision
    dphpc.train(given)
    curve, whole = Path("lcurve.out").read_text(), state("model.ckpt-12.safetensors")
    dphpc.train(given, restart="model.ckpt-5")
    assert Path("lcurve.out").read_text() == curve
    again = state("model.ckpt-12.safetensors")
    assert whole.keys() == again.keys()
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


@every_form
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "HybridMuon", "SOAP", "LKF"])
def test_training_lowers_the_loss_and_freezes_what_it_trained(optimizer: str, form: str) -> None:
    given = with_descriptor(shared_input(numb_steps=40, disp_freq=20), **FORMS[form])
    given["optimizer"] = {"type": optimizer}
    if optimizer == "LKF":
        given["loss"] = {"start_pref_e": 1, "limit_pref_e": 1, "start_pref_f": 1, "limit_pref_f": 1}
    dphpc.train(given)
    lines = Path("lcurve.out").read_text().splitlines()
    assert float(lines[-1].split()[2]) < 0.9 * float(lines[2].split()[2])
    made = Checkpoint.load(Path("model.ckpt-40.safetensors")).model()
    freeze(".", "frozen.dp")
    read = read_model("frozen.dp")
    expected, found = model_arrays(made), model_arrays(read)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    x, cell, types = random_structure(20, seed=3)
    for a, b in zip(DeepPot(made).eval(x, cell, types), DeepPot(read).eval(x, cell, types), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("form", "name"), [("concat", "concat"), ("strip", "strip"), ("smooth", "strip_smooth_one_sided")]
)
def test_a_start_has_the_keys_of_deepmd_kits_file_and_its_numbers(form: str, name: str) -> None:
    dphpc.train(with_descriptor(shared_input(numb_steps=0), tebd_dim=4, sel=60, **FORMS[form]))
    freeze(".", "ours.dp")
    ours, theirs = (read_tree(path) for path in (Path("ours.dp"), MODELS / f"dpa1_{name}.dp"))
    for key in ("tebd_input_mode", "smooth_type_embedding", "type_one_side"):
        assert form == "concat" or ours["model"]["descriptor"][key] == theirs["model"]["descriptor"][key]
    assert keys(ours["model"]["descriptor"]) == keys(theirs["model"]["descriptor"])
    assert keys(ours["model"]["fitting"]["nets"]) <= keys(theirs["model"]["fitting"]["nets"])
    assert ours["model"]["descriptor"]["@variables"]["dstd"].shape == (2, 60, 4)
    last = "embeddings_strip" if form != "concat" else "embeddings"
    first = ours["model"]["descriptor"][last]["networks"][0]["layers"][0]["@variables"]
    assert first["w"].shape == {"concat": (9, 4), "strip": (8, 4), "smooth": (4, 4)}[form]
    assert 0.1 < first["w"].std() * np.sqrt(13) < 2.0


def keys(node: Any) -> set[str]:
    """Paths of all keys of a tree, list items taken together."""
    if isinstance(node, dict):
        return {f"{key}/{rest}" for key, value in node.items() for rest in keys(value) or {""}}
    return {rest for item in node for rest in keys(item)} if isinstance(node, list) else set()


def test_sel_is_one_number_of_all_types() -> None:
    dphpc.train(shared_input(numb_steps=1), output="out.json")
    sel = load_input("out.json").model.descriptor.sel
    expected = (
        dphpc.train(small_input(numb_steps=1), output="both.json") and load_input("both.json").model.descriptor.sel
    )
    assert len(sel) == 1
    assert max(expected) < sel[0] <= sum(expected)
    assert parse_input(with_descriptor(shared_input(), sel=[20, 30])).model.descriptor.sel == [50]
    assert parse_input(with_descriptor(shared_input(), sel=50)).model.descriptor.sel == [50]


@every_form
def test_a_fine_tuning_begins_with_the_weights_and_fits_the_bias(form: str) -> None:
    own = with_descriptor(shared_input(numb_steps=0), **FORMS[form])
    dphpc.train(with_descriptor(shared_input(numb_steps=4, save_ckpt="first"), **FORMS[form]))
    freeze("first", "m.dp")
    for name in "ab":
        energy = Path(name, "set.000/energy.npy")
        np.save(energy, np.load(energy) - 60.0 * len(np.loadtxt(f"{name}/type.raw")))
    dphpc.train(own, finetune="m.dp")
    before, after = model_arrays(read_model("m.dp")), Checkpoint.load(Path("model.ckpt-0.safetensors")).arrays
    for name, value in before.items():
        if name not in STATISTICS:
            assert np.array_equal(after[name], value)
    np.testing.assert_allclose(after["out_bias"], before["out_bias"] - 60.0, atol=2.0)
    given = shared_input(numb_steps=0)
    given["model"] = {"type_map": ["O", "H"]}
    dphpc.train(given, finetune="m.dp", use_pretrain_script=True)
    with pytest.raises(InputError, match="descriptor/tebd_dim"):
        dphpc.train(with_descriptor(own, tebd_dim=5), finetune="m.dp")
    with pytest.raises(InputError, match="descriptor/type"):
        dphpc.train(small_input(), finetune="m.dp")


@pytest.mark.parametrize(
    "name",
    [
        "dpa1_concat", "dpa1_concat_one_sided", "dpa1_concat_electrons", "dpa1_concat_float32", "dpa1_strip",
        "dpa1_strip_one_sided", "dpa1_strip_smooth_three", "dpa1_strip_smooth_one_sided", "dpa1_v2",
    ],
)  # fmt: skip
def test_models_of_deepmd_kit_are_trained_on(name: str) -> None:
    model = read_model(MODELS / f"{name}.dp")
    arrays = model_arrays(model)
    write_model(model, "again.dp")
    again = model_arrays(read_model("again.dp"))
    assert all(np.array_equal(again[key], value) for key, value in arrays.items())
    given = shared_input(numb_steps=2)
    given["model"] = {"type_map": model.type_map}
    dphpc.train(given, init_model=MODELS / f"{name}.dp", use_pretrain_script=True)
    ours = Checkpoint.load(Path("model.ckpt-2.safetensors")).arrays
    assert all((ours[key] != value).any() for key, value in arrays.items() if key not in STATISTICS)


def test_change_bias_keeps_the_weights() -> None:
    dphpc.train(shared_input(numb_steps=2))
    target = change_bias("model.ckpt", values=[-1.0, -2.0], output="biased.dp")
    before, after = Checkpoint.load(Path("model.ckpt-2.safetensors")).arrays, model_arrays(read_model(target))
    assert np.array_equal(after["out_bias"], [-1.0, -2.0])
    assert all(np.array_equal(after[name], value) for name, value in before.items() if "bias" not in name)


REFUSED = [
    ({"attn_layer": 2}, 'attn_layer is 2 .*"attn_layer": 0'),
    ({"tebd_input_mode": "other"}, "tebd_input_mode"),
    ({"type": "se_atten_v2"}, "set_davg_zero is false: .*default of se_atten_v2"),
    ({"type": "se_atten_v2", "tebd_input_mode": "concat"}, "tebd_input_mode of se_atten_v2 is 'concat'"),
    ({"type": "se_atten_v2", "smooth_type_embedding": False}, "smooth_type_embedding of se_atten_v2 is False"),
    ({"set_davg_zero": False}, "set_davg_zero"),
    ({**FORMS["strip"], "set_davg_zero": False}, "set_davg_zero is false: DeePMD-kit then gives missing neighbors"),
    ({**FORMS["smooth"], "set_davg_zero": False}, "set_davg_zero is false: a smooth type embedding then has no table"),
    ({"activation_function": "relu"}, "smooth activation_function"),
    ({"tebd_dim": 2, "neuron": [5, 10]}, "begins with 5"),
    ({"sel": [4, "x"]}, "sel"),
    ({"sel": 0}, "sel leaves no neighbors"),
    ({"lmax": 2}, "lmax"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_not_trained_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        dphpc.train(with_descriptor(shared_input(), **change))
    assert "model" in str(caught.value)
    assert not Path("lcurve.out").exists()


def test_attention_is_refused_where_the_input_does_not_say() -> None:
    given = shared_input()
    del given["model"]["descriptor"]["attn_layer"]
    with pytest.raises(InputError, match="attn_layer is 2"):
        parse_input(given)


def test_keys_of_attention_have_no_effect() -> None:
    attention = {
        "attn": 64, "attn_dotr": False, "attn_mask": True, "trainable_ln": False, "ln_eps": 1e-3, "normalize": False,
        "temperature": 2.0, "scaling_factor": 3.0, "smooth_type_embedding": True, "stripped_type_embedding": None,
    }  # fmt: skip
    assert parse_input(with_descriptor(shared_input(), **attention)) == parse_input(shared_input())
    strip = with_descriptor(shared_input(), **FORMS["strip"])
    assert parse_input(with_descriptor(strip, smooth_type_embdding=True)) != parse_input(strip)


def test_the_second_version_is_smooth_and_stripped() -> None:
    second = with_descriptor(shared_input(), type="se_atten_v2", set_davg_zero=True)
    first = with_descriptor(shared_input(), **{**FORMS["smooth"], "type_one_side": False})
    assert parse_input(second) == parse_input(first)


def test_defaults_are_those_of_deepmd_kit() -> None:
    given = shared_input()
    given["model"]["descriptor"] = {"type": "se_atten", "attn_layer": 0}
    d = parse_input(given).model.descriptor
    defaults = {
        "sel": "auto", "rcut": 6.0, "rcut_smth": 0.5, "neuron": [10, 20, 40], "axis_neuron": 4, "tebd_dim": 8,
        "type_one_side": False, "set_davg_zero": True, "concat_output_tebd": True, "resnet_dt": False,
        "tebd_input_mode": "concat", "smooth_type_embedding": False,
        "use_econf_tebd": False, "use_tebd_bias": False, "activation_function": "tanh", "env_protection": 0.0,
    }  # fmt: skip
    assert {key: getattr(d, key) for key in defaults} == defaults


def test_other_refusals() -> None:
    with pytest.raises(InputError, match="through the table only"):
        dphpc.train({**shared_input(), "dphpc": {"embedding": "network"}})
    given = shared_input()
    given["model"]["fitting_net"]["atom_ener"] = [-1.0, None]
    with pytest.raises(InputError, match="atom_ener does not go with"):
        dphpc.train(given)


def test_another_form_or_davg_is_not_trained_on() -> None:
    rough = with_descriptor(shared_input(), **FORMS["strip"], tebd_dim=4)
    rough["model"]["type_map"] = read_model(MODELS / "dpa1_strip_smooth.dp").type_map
    dphpc.train(with_descriptor(shared_input(numb_steps=0), **{**FORMS["smooth"], "type_one_side": False}))
    freeze(".", "smooth.dp")
    with pytest.raises(InputError, match=r'(?s)another form .*smooth_type_embedding": true'):
        dphpc.train(with_descriptor(shared_input(), **FORMS["strip"]), init_model="smooth.dp")
    with pytest.raises(InputError, match=r"'descriptor\.networks\.0\.layers\.0\.w' has shape"):
        dphpc.train(with_descriptor(shared_input(), **FORMS["strip"]), init_model=HERE / "peer_dpa1_start.dp")
    with pytest.raises(InputError, match="cannot be trained: a smooth type embedding with davg != 0"):
        dphpc.train(rough, init_model=MODELS / "dpa1_strip_smooth_davg.dp")


def test_a_model_cut_down_where_types_skip_is_not_trained_on() -> None:
    given = with_descriptor(shared_input(numb_steps=0), tebd_dim=4)  # twice as wide as two types
    dphpc.train(given)
    whole = Checkpoint.load(Path("model.ckpt-0.safetensors")).model()
    write_model(with_types(whole, ["O", "H"]), "cut.dp")
    with pytest.raises(InputError, match="cut down to fewer types"):
        dphpc.train(given, init_model="cut.dp")
