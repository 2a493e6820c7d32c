from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dphpc.core.errors import InputError
from dphpc.train.schema import TrainInput, load_input, parse_input, write_input
from dphpc.train.schema.optimization import AdamConfig, AdamWConfig, HybridMuonConfig, LkfConfig, WsdConfig

WATER: dict[str, Any] = {
    "model": {
        "type_map": ["O", "H"],
        "descriptor": {"type": "se_e2_a", "sel": [46, 92], "rcut": 6.0, "neuron": [25, 50, 100], "axis_neuron": 16},
        "fitting_net": {"neuron": [240, 240, 240]},
        "_comment": " that's all",
    },
    "learning_rate": {"type": "exp", "decay_steps": 50, "start_lr": 0.001, "stop_lr": 3.51e-08},
    "loss": {"type": "ener"},
    "training": {"training_data": {"systems": ["data_0"], "batch_size": 1}, "numb_steps": 5000},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(WATER)
    *sections, key = path.split("/")
    part = data
    for section in sections:
        part = part.setdefault(section, {})
    part[key] = value
    return data


def parse(path: str, value: Any) -> TrainInput:
    return parse_input(changed(path, value), source="input.json")


def test_defaults_are_those_of_deepmd_kit() -> None:
    config = parse_input(WATER)
    d, f, t = config.model.descriptor, config.model.fitting_net, config.training
    assert (d.rcut_smth, d.resnet_dt, d.type_one_side, d.activation_function) == (0.5, False, False, "tanh")
    assert (d.env_protection, d.set_davg_zero, d.precision, d.numpy_precision) == (0.0, False, "default", "float64")
    assert (f.resnet_dt, f.rcond, f.numb_fparam, f.atom_ener) == (True, None, 0, [])
    assert (config.model.data_stat_nbatch, config.model.data_stat_protect) == (10, 0.01)
    assert (t.disp_freq, t.save_freq, t.max_ckpt_keep, t.disp_file, t.save_ckpt) == (
        1000,
        1000,
        5,
        "lcurve.out",
        "model.ckpt",
    )
    loss = config.loss
    assert (loss.start_pref_e, loss.limit_pref_e, loss.start_pref_f, loss.limit_pref_f) == (0.02, 1.0, 1000.0, 1.0)
    assert config.optimizer == AdamConfig(type="Adam", adam_beta1=0.9, adam_beta2=0.999, weight_decay=0.0)
    assert parse("optimizer/type", "AdamW").optimizer == AdamWConfig(weight_decay=0.001)
    assert parse("training/training_data", {"systems": "."}).training.training_data.batch_size == "auto"


def test_aliases_of_keys_and_types() -> None:
    assert parse("model/descriptor/type", "se_a").model.descriptor.type == "se_e2_a"
    data = changed("training/stop_batch", 7)
    del data["training"]["numb_steps"]
    assert parse_input(data).training.numb_steps == 7
    data = changed("model/descriptor/n_axis_neuron", 3)
    del data["model"]["descriptor"]["axis_neuron"]
    assert parse_input(data).model.descriptor.axis_neuron == 3
    validation = parse("training/validation_data", {"systems": "a", "numb_batch": 3}).training.validation_data
    assert validation is not None
    assert (validation.systems, validation.numb_btch) == (["a"], 3)


def test_optimizers_have_deepmd_kits_options() -> None:
    muon = parse("optimizer", {"type": "HybridMuon", "muon_momentum": 0.9, "magma_muon": False}).optimizer
    assert isinstance(muon, HybridMuonConfig)
    assert (muon.momentum, muon.adam_beta1, muon.adam_beta2, muon.weight_decay) == (0.9, 0.9, 0.95, 0.001)
    assert (muon.lr_adjust, muon.lr_adjust_coeff, muon.muon_mode, muon.enable_gram) == (0.0, 0.18, "slice", True)
    lkf = parse("optimizer", {"type": "LKF", "kf_start_pref_f": 2.0}).optimizer
    assert isinstance(lkf, LkfConfig)
    assert (lkf.kf_blocksize, lkf.kf_start_pref_e, lkf.kf_start_pref_f, lkf.kf_limit_pref_f) == (None, 1.0, 2.0, 1.0)


def test_keys_that_moved_since_deepmd_kit_3_1_are_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    data = changed("training/opt_type", "LKF")
    data["training"] |= {"kf_blocksize": 9, "kf_start_pref_f": 2.0, "warmup_steps": 3}
    config = parse_input(data)
    assert config.optimizer == LkfConfig(kf_blocksize=9, kf_start_pref_f=2.0)
    assert config.learning_rate.warmup_steps == 3
    assert "opt_type to optimizer/type" in caplog.text
    assert "warmup_steps to learning_rate/warmup_steps" in caplog.text
    assert parse("training/weight_decay", 0.1).optimizer == AdamConfig(weight_decay=0.1)
    with pytest.raises(InputError, match="'opt_type' of section training stands in section optimizer, too"):
        parse_input({**data, "optimizer": {"type": "Adam"}})
    with pytest.raises(InputError, match="'kf_blocksize' is not a known key"):
        parse("training/kf_blocksize", 9)  # of an optimizer that is Adam


def test_learning_rate_alternatives() -> None:
    data = changed("learning_rate", {"start_lr": 1e-3})
    assert parse_input(data).learning_rate.stop_lr == 5e-8
    wsd = parse_input(changed("learning_rate", {"type": "wsd", "start_lr": 1e-3, "stop_lr_ratio": 0.1})).learning_rate
    assert isinstance(wsd, WsdConfig)
    assert (wsd.stop_lr, wsd.decay_phase_ratio, wsd.decay_type) == (None, 0.1, "inverse_linear")
    with pytest.raises(InputError, match="exclude each other"):
        parse("learning_rate/stop_lr_ratio", 0.1)


def test_out_json_reads_back_the_same(tmp_path: Path) -> None:
    config = parse("model/fitting_net/atom_ener", [None, -3.0])
    write_input(config, tmp_path / "out.json")
    assert load_input(tmp_path / "out.json") == config
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["model"]["descriptor"]["rcut_smth"] == 0.5
    assert "numb_epoch" not in written["training"]
    assert "dphpc" not in written  # DeePMD-kit would refuse it
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def written_optimizer(folder: Path, **options: Any) -> dict[str, Any]:
    config = parse("optimizer", options)
    write_input(config, folder / "out.json")
    assert load_input(folder / "out.json") == config
    return dict(json.loads((folder / "out.json").read_text())["optimizer"])


def test_out_json_means_the_same_to_deepmd_kit(tmp_path: Path) -> None:
    """Its HybridMuon has `magma_muon` on by default; its LKF does not know our keys."""
    assert written_optimizer(tmp_path, type="HybridMuon")["magma_muon"] is False
    lkf = {"type", "kf_start_pref_e", "kf_limit_pref_e", "kf_start_pref_f", "kf_limit_pref_f"}
    assert written_optimizer(tmp_path, type="LKF").keys() == lkf
    assert written_optimizer(tmp_path, type="LKF", kf_noise=2.0, kf_blocksize=9).keys() == {
        *lkf, "kf_noise", "kf_blocksize",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("model/descriptor/rcut_smoth", 1.0, "model/descriptor/rcut_smoth", "did you mean 'rcut_smth'"),
        ("learning_rate/decay_step", 1, "learning_rate/decay_step", "did you mean 'decay_steps'"),
        ("model/descriptor", {"type": "dpa2", "repinit": {}}, "model/descriptor/type", "'dpa2' of DeePMD-kit is not"),
        ("learning_rate/type", "expo", "learning_rate/type", "did you mean 'exp'"),
        ("optimizer/type", "AdaMuon", "optimizer/type", "optimizer of DeePMD-kit that dphpc does not support yet"),
        ("training/opt_type", "AdaMuon", "optimizer/type", "use HybridMuon"),
        ("optimizer/type", "Lion", "optimizer/type", "not supported"),
        ("optimizer", {"type": "HybridMuon", "magma_muon": True}, "optimizer/magma_muon", "set it to false"),
        ("optimizer", {"type": "HybridMuon", "muon_mode": "3d"}, "optimizer/muon_mode", "slice"),
        ("optimizer", {"type": "SOAP", "max_precond_dims": 9}, "optimizer/max_precond_dims", "'max_precond_dim'"),
        ("optimizer", {"type": "LKF", "kf_block_size": 9}, "optimizer/kf_block_size", "'kf_blocksize'"),
        ("optimizer", {"type": "LKF", "kf_blocksize": 0}, "optimizer/kf_blocksize", "greater than 0"),
        ("model/descriptor/type", "dpa2", "model/descriptor/type", "'dpa2' of DeePMD-kit is not supported"),
        ("model/fitting_net/type", "dipole", "model/fitting_net/type", "not supported by dphpc yet"),
        ("model/spin", {"use_spin": [True]}, "model/spin", "not support yet"),
        ("loss/start_pref_gf", 1.0, "loss/start_pref_gf", "remove it or set it to 0"),
        ("training/mixed_precision", {"compute_prec": "float16"}, "training/mixed_precision", "not support yet"),
        ("training/training_data/min_pair_dist", 0.5, "training/training_data/min_pair_dist", "not support yet"),
        (
            "training/training_data/batch_size",
            0,
            "training/training_data/batch_size",
            r"0, or a list in brackets: \[\.\.\.\], or a valid str",
        ),
        ("training/training_data/batch_size", "mixed:4", "training/training_data/batch_size", "not supported"),
        ("training/training_data/auto_prob", "prob_sys_size;1:0:1", "training/training_data/auto_prob", "first < end"),
        ("model/descriptor/activation_function", "tanhh", "model/descriptor/activation_function", "'tanh'"),
        ("model/descriptor/precision", "float16", "model/descriptor/precision", "not supported"),
        ("model/descriptor/sel", "auto:0.5", "model/descriptor/sel", "factor"),
        ("model/descriptor/sel", 22, "model/descriptor/sel", "sel 22 should be a list of integers"),
        ("model/descriptor/sel", [46], "model", "1 entries, but type_map names 2"),
        ("model/descriptor/sel", [0, 0], "model/descriptor/sel", "no neighbors"),
        ("model/descriptor/rcut", 420, "model/descriptor/rcut", "rcut is in Å"),
        ("model/descriptor/rcut_smth", 6.0, "model/descriptor", "smaller than rcut"),
        ("model/descriptor/axis_neuron", 101, "model/descriptor", "must not exceed"),
        ("model/descriptor/exclude_types", [[0, 1]], "model/descriptor", "set_davg_zero"),
        ("model/pair_exclude_types", [[0, 2]], "model", "types 0 to 1"),
        ("model/fitting_net/trainable", [True], "model/fitting_net", "one per layer is 4"),
        ("model/type_map", ["O", "O"], "model/type_map", "more than once"),
        ("model/descriptor/seed", -1, "model/descriptor/seed", "greater than or equal to 0"),
        ("model/fitting_net/seed", -1, "model/fitting_net/seed", "greater than or equal to 0"),
        ("training/seed", 2**64, "training/seed", "less than"),
        ("learning_rate/stop_lr", 2e-3, "learning_rate", r"stop_lr \(0.002\) is above start_lr \(0.001\)"),
        ("learning_rate", {"start_lr": 1e-3, "stop_lr_ratio": 2}, "learning_rate", "stop_lr_ratio"),
        ("training/numb_epoch", 2, "training", "one of them"),
        ("training/stat_file_mode", "read", "training", "needs stat_file"),
        ("loss/f_use_norm", True, "loss", "acts only with"),
        ("validating/full_validation", True, "validating/full_validation", "set it to false"),
        ("validating/ful_validation", False, "validating/ful_validation", "did you mean 'full_validation'"),
        ("dphpc/embeding", "table", "dphpc/embeding", "did you mean 'embedding'"),
    ],
)
def test_refusals_name_place_and_remedy(path: str, value: Any, where: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(path, value)
    assert caught.value.where == f"input.json: {where}"


def test_neutral_values_of_unsupported_keys_are_accepted(caplog: pytest.LogCaptureFixture) -> None:
    parse("loss/start_pref_gf", 0.0)
    parse("training/enable_ema", False)
    parse("training/training_data/set_prefix", "set")
    assert caplog.text == ""
    parse("training/training_data/set_prefix", "part")
    assert 'training/training_data/set_prefix "part" has no effect' in caplog.text
    parse("model/descriptor/exclude_types", [])
    parse("validating", None)
    quiet = parse("validating", {"full_validation": False, "validation_freq": 100, "full_val_start": 0.5})
    assert "validating" not in quiet.model_dump()
    assert quiet.updated(loss=quiet.loss).model_dump() == quiet.model_dump()
