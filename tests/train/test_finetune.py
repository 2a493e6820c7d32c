"""Fine-tuning: what is kept of the model, what follows the data, what is refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dphpc
from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model, write_model
from dphpc.train.bias import fitted_bias
from dphpc.train.checkpoint import Checkpoint
from dphpc.train.data import open_systems
from dphpc.train.initial import initial_model, model_arrays, model_section
from dphpc.train.schema import parse_input
from dphpc.train.schema.model import ModelConfig
from dphpc.train.statistics import Statistics
from tests.models import random_model
from tests.train.systems import small_input, write_systems

BIASES = ("out_bias", "fitting.bias_atom_e")


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DPModel:
    """A trained model, in `m.dp`, and data whose energies have another zero."""
    write_systems(tmp_path)
    monkeypatch.chdir(tmp_path)
    dphpc.train(small_input(numb_steps=4, save_ckpt="first"))
    made = Checkpoint.load(Path("first-4.safetensors")).model()
    write_model(made, "m.dp")
    for name in "ab":
        energy = Path(name, "set.000/energy.npy")
        np.save(energy, np.load(energy) - 60.0 * len(np.loadtxt(f"{name}/type.raw")))
    return made


def start(**model: Any) -> dict[str, Any]:
    """An input that trains no step: its checkpoint holds what a training begins with."""
    given = small_input(numb_steps=0)
    given["model"] |= model
    return given


def began_with() -> DPModel:
    return Checkpoint.load(Path("model.ckpt-0.safetensors")).model()


@pytest.mark.parametrize("source", ["m.dp", "first-4"])
def test_weights_and_statistics_stay_and_the_bias_follows_the_data(model: DPModel, source: str) -> None:
    dphpc.train(start(), finetune=source)
    kept, found = model_arrays(model), model_arrays(began_with())
    assert all(np.array_equal(found[name], kept[name]) for name in kept if name not in BIASES)
    frames = [(s, i) for s in open_systems(["a", "b"], ["O", "H"]) for i in range(s.n_frames)]  # few: all are taken
    expected = fitted_bias(model, frames)
    assert began_with().energy_bias == pytest.approx(expected, abs=1e-9)
    assert np.abs(expected - model.energy_bias).max() > 10.0
    dphpc.train(start(), init_model=source)
    assert np.array_equal(began_with().energy_bias, model.energy_bias)


def test_a_fine_tuning_trains(model: DPModel) -> None:
    result = dphpc.train(small_input(), finetune="m.dp")
    assert result.step == 12
    curve = np.loadtxt("lcurve.out")
    assert curve[0, 4] < 1.0  # eV/atom; 60 without the fitted bias
    dphpc.train(small_input(numb_steps=14), resume=True, finetune="m.dp", use_pretrain_script=True)  # goes on
    assert Checkpoint.load(Path("model.ckpt-14.safetensors")).step == 14


def test_sel_is_the_models_where_the_input_leaves_it_open(model: DPModel) -> None:
    given = start()
    given["model"]["descriptor"] |= {"sel": [40, 41]}
    dphpc.train(given | {"training": given["training"] | {"numb_steps": 1}})
    dphpc.train(start(), finetune="model.ckpt-1", skip_neighbor_stat=True)
    assert began_with().descriptor.sel == (40, 41)
    given["model"]["descriptor"] |= {"sel": [30, 30]}
    with pytest.raises(InputError, match=r"(?s)differs.*model/descriptor/sel.*\[40, 41\]"):
        dphpc.train(given, finetune="model.ckpt-1")


def test_data_without_energies_leave_the_bias(model: DPModel) -> None:
    for name in "ab":
        Path(name, "set.000/energy.npy").unlink()
    given = start()
    given["loss"] |= {"start_pref_e": 0, "limit_pref_e": 0}
    dphpc.train(given, finetune="m.dp")
    assert began_with().energy_bias == pytest.approx(model.energy_bias, abs=1e-12)


@pytest.mark.parametrize("given", [{}, {"descriptor": {"trainable": False}, "fitting_net": {}}])
@pytest.mark.parametrize("flag", ["finetune", "init_model"])
def test_the_pretrained_models_section(model: DPModel, given: dict[str, Any], flag: str) -> None:
    whole = start()
    whole["model"] = {"type_map": ["O", "H"], **given}
    dphpc.train(whole, use_pretrain_script=True, **{flag: "m.dp"})
    section = Checkpoint.load(Path("model.ckpt-0.safetensors")).config.model
    assert section.descriptor.neuron == [4, 8, 16]
    assert section.descriptor.type_one_side
    assert section.fitting_net.neuron == [12, 12]
    assert section.descriptor.trainable == (not given)
    with pytest.raises(InputError, match="without a model"):
        dphpc.train(whole, use_pretrain_script=True)


def test_a_models_section_makes_a_model_of_its_shape() -> None:
    options = {"numb_fparam": 2, "numb_aparam": 1, "atom_ener": [None, -1.5], "default_fparam": [0.5, 1.0]}
    excluding = {"exclude_types": frozenset({(0, 1)}), "set_davg_zero": True, "env_protection": 0.1}
    two = random_model(1, **excluding), random_model(2, one_side=True, resnet_dt=True, fitting=options)
    for other in two:
        config = ModelConfig.model_validate(model_section(other))
        again = initial_model(config, Statistics.neutral(config), 0)
        assert model_section(again) == model_section(other)
        for field in fields(other.descriptor):
            if field.name not in ("networks", "davg", "dstd"):
                assert getattr(again.descriptor, field.name) == getattr(other.descriptor, field.name)
        shapes = [{k: v.shape for k, v in model_arrays(m).items()} for m in (again, other)]
        assert shapes[0].items() >= {k: v for k, v in shapes[1].items() if "_avg" not in k and "_std" not in k}.items()


@pytest.mark.parametrize(
    ("section", "key", "value", "names"),
    [
        ("descriptor", "rcut", 4.5, r"model/descriptor/rcut.*rcut 4\.0"),
        ("descriptor", "activation_function", "gelu", "model/descriptor/activation_function.*tanh"),
        ("fitting_net", "neuron", [12, 13], r"model/fitting_net/neuron.*\[12, 12\]"),
        (None, "type_map", ["H", "O"], r"model/type_map.*\['O', 'H'\]"),
        (None, "type_map", ["O", "H", "C"], r"model/type_map.*\['O', 'H'\]"),
        (None, "pair_exclude_types", [[0, 1]], r"model/pair_exclude_types.*\[\]"),
    ],
)
def test_another_potential_is_refused(section: str | None, key: str, value: Any, names: str) -> None:
    given = start()
    (given["model"][section] if section else given["model"])[key] = value
    with pytest.raises(InputError, match=rf"(?s)differs.*{names}.*remedy"):
        dphpc.train(given, finetune="m.dp")
    assert not Path("model.ckpt-0.safetensors").exists()


def test_what_leaves_the_potential_may_differ() -> None:
    given = start()
    given["model"]["descriptor"] |= {"precision": "float32", "trainable": False, "seed": 5}
    given["model"]["fitting_net"] |= {"rcond": 1e-3, "atom_ener": [None, None]}
    dphpc.train(given, finetune="m.dp")
    assert began_with().descriptor.precision == "float32"


def test_excluded_types_in_another_order_are_the_same() -> None:
    given = start(pair_exclude_types=[[0, 0], [0, 1]])
    dphpc.train(given | {"training": given["training"] | {"save_ckpt": "second"}})
    other = deepcopy(given)
    other["model"]["pair_exclude_types"] = [[1, 0], [0, 0]]
    dphpc.train(other, finetune="second-0")
    assert parse_input(given).model.pair_exclude_types != parse_input(other).model.pair_exclude_types


@pytest.mark.parametrize("flag", ["finetune", "init_model"])
def test_a_model_of_another_kind_is_refused(flag: str) -> None:
    path = Path(__file__).parents[1] / "golden/models/dpa1_strip_smooth_davg.dp"
    with pytest.raises(InputError, match="a model of kind 'dpa1, strip, two-sided' cannot be trained"):
        dphpc.train(start(), **{flag: path})


def test_one_start_only() -> None:
    with pytest.raises(InputError, match="--init-model and --finetune exclude each other"):
        dphpc.train(start(), finetune="m.dp", init_model="m.dp")
    with pytest.raises(InputError, match="--restart and --finetune exclude each other"):
        dphpc.train(start(), finetune="m.dp", restart=".")
    assert read_model("m.dp").type_map == ["O", "H"]


def test_a_graph_with_other_skip_connections_is_refused() -> None:
    """TensorFlow's fitting nets have none in the first layer, however wide: with them it would be another potential."""
    graph = Path(__file__).parents[1] / "golden" / "models" / "skip_first_equal.pb"
    section = read_model(graph).script
    given = small_input(numb_steps=0) | {
        "model": section | {"fitting_net": section["fitting_net"] | {"resnet_dt": False}}
    }
    for path in Path().glob("**/type_map.raw"):
        path.write_text("H\nO\n")
    with pytest.raises(InputError, match=r"(?s)skip connections.*skip_first_equal\.pb"):
        dphpc.train(given, init_model=graph)
