"""Training inputs of the rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dphpc.active.committee import Committee, Data, merged
from dphpc.active.config import LearnConfig
from dphpc.core.config import parse_config
from tests.active.conftest import TRAINING, settings


def committee(**changes: Any) -> Committee:
    return Committee.of(parse_config(LearnConfig, settings(**changes)))


def test_sections_are_merged_key_by_key() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}
    assert merged(base, {"a": {"c": {"d": 3}}, "e": [4]}) == {"a": {"b": 1, "c": {"d": 3}}, "e": [4]}
    assert base["a"] == {"b": 1, "c": {"d": 2}}


def test_later_rounds_have_their_own_keys_and_their_weights_from_before(project: Path) -> None:
    for k in range(2):
        folder = project / "learn" / "round-00" / "train" / str(k)
        folder.mkdir(parents=True)
        (folder / "out.json").write_text(json.dumps({"model": {"descriptor": {"sel": [17]}}}))
    changes = {"training": {"numb_steps": 30}, "learning_rate": {"start_lr": 0.002}}
    c = committee(retrain=changes)
    first, later = c.trainings(0, Data(), None)[0], c.trainings(1, Data(), 0)[1]
    assert first.settings["training"]["numb_steps"] == TRAINING["training"]["numb_steps"]
    assert later.settings["training"]["numb_steps"] == 30
    assert later.settings["learning_rate"]["start_lr"] == 0.002
    assert later.settings["learning_rate"]["stop_lr"] == TRAINING["learning_rate"]["stop_lr"]
    assert first.settings["model"]["descriptor"]["sel"] == "auto"
    assert later.settings["model"]["descriptor"]["sel"] == [17]
    (project / "part").mkdir()
    assert "--init-model" not in (first.begin(project / "part") or [])
    assert (later.begin(project / "part") or [])[-2:] == ["--init-model", "../../../round-00/train/1/model.dp"]


def test_rounds_may_start_from_random_weights(project: Path) -> None:
    model = {"fitting_net": {"neuron": [8]}}
    work = committee(init_model=False, retrain={"model": model}).trainings(3, Data(), 2)[0]
    assert work.settings["model"]["descriptor"]["sel"] == "auto"
    assert work.settings["model"]["fitting_net"]["neuron"] == [8]
    (project / "part").mkdir()
    assert "--init-model" not in (work.begin(project / "part") or [])


def test_own_validation_data_stay(project: Path) -> None:
    valid = {"systems": ["."], "rglob_patterns": ["da*"], "numb_btch": 2}
    training = TRAINING["training"] | {"validation_data": valid}
    (project / "input.json").write_text(json.dumps(TRAINING | {"training": training}))
    held = project / "learn" / "round-00" / "label" / "valid"
    held.mkdir(parents=True)
    work = committee(init_model=False).trainings(1, Data().with_labels(held.parent), 0)[0]
    data = work.settings["training"]["validation_data"]
    assert data == {"systems": ["../../../../data", "../../../round-00/label/valid"], "numb_btch": 2}


def test_the_sample_has_the_datas_labels(project: Path) -> None:
    sample = committee().sample
    assert str(sample.symbols) == "Si8"
    assert sample.pbc.all()
    assert abs(sample.get_potential_energy() / 8 + 4.6) < 0.1  # Tersoff's silicon has -4.63 eV an atom
