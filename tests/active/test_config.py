"""What is wrong with a run file, or with what it names, is told before anything is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dphpc
from dphpc.active.config import LearnConfig
from dphpc.core.config import parse_config
from dphpc.core.errors import DphpcError
from tests.active.conftest import RUN, TRAINING, settings

FIRST = settings()["rounds"][0]
EXPLORE = FIRST["explore"][0]


def explore(**changes: Any) -> dict[str, Any]:
    return {"rounds": [{"explore": [EXPLORE | changes]}]}


def label(**given: Any) -> dict[str, Any]:
    return {"label": given}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modles": 4}, "did you mean 'models'"),
        ({"models": 1}, "greater than or equal to 2"),
        ({"rounds": []}, "at least 1 item"),
        (explore(structure="a"), "did you mean 'structures'"),
        ({"select": None}, "'select' is missing"),
        ({"select": {"above": 0.4, "below": 0.1}}, "these must ascend"),
        ({"select": {"above": 0.1, "below": 20.0}}, "these must ascend"),
        (label(calculator="emt", command="a {frames} {labelled}"), "give 'calculator' or 'command', one of them"),
        (label(), "give 'calculator' or 'command', one of them"),
        (label(command="label {frames}"), "'command' lacks {labelled}"),
        (label(command="a {frames} {labelled}", parameters={"a": 1}), "'parameters' are a calculator's"),
        (label(calculator="emtt"), "did you mean 'emt'"),
        ({"hold_out": 1.0}, "less than 1"),
        ({"folder": " "}, "'folder' is empty"),
        ({"folder": "le#arn"}, "'folder' has a '#'"),
        ({"folder": 300 * "x"}, "'folder' cannot be one: File name too long"),
        ({"folder": "/".join(2040 * "x")}, "'folder' cannot be one: File name too long"),
        ({"folder": "input.json/learn"}, "the folder cannot be written: Not a directory"),
        ({"folder": "le\0arn"}, "have no NUL characters"),
        ({"train": "input\0.json"}, "have no NUL characters"),
        (explore(md="\0"), "have no NUL characters"),
        ({"launch": {"md": "\0"}}, "have no NUL characters"),
        (label(command="\0{frames} {labelled}"), "have no NUL characters"),
        (explore(structures="\0"), "have no NUL characters"),
        ({"launch": {"md": "no-such-mpirun -n 2"}}, "there is no program 'no-such-mpirun'"),
        ({"launch": {"train": "mpirun 'n"}}, "No closing quotation"),
        ({"train": "none.json"}, "none.json"),
        ({"retrain": {"training": {"numb_stepss": 5}}}, "'retrain' on top of input.json: training/numb_stepss"),
        ({"retrain": {"model": {"descriptor": {"rcut": 5.0}}}}, "say init_model: false"),
        ({"retrain": {"training": {"training_data": {"systems": ["more"]}}}}, "retrain/training/training_data/systems"),
        ({"retrain": {"training": {"validation_data": {"systems": ["data"]}}}}, "'retrain' names other data"),
        (explore(md="none.json"), "none.json"),
        (explore(structures=["none.poscar"]), "there is no file 'none.poscar'\n  where:    key 'structures'"),
        (explore(structures=["restart.h5"]), "a restart file cannot be explored from"),
        (explore(every=41), "'every' is 41: of 40 steps no frame would be compared but the first"),
        (explore(pressure_bar=1.0), "'pressure_bar' is given for a run without an npt stage"),
    ],
)
def test_a_wrong_run_file(project: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DphpcError) as caught:
        dphpc.learn(settings(**changes))
    assert message in str(caught.value)
    assert not (project / "learn").exists()


@pytest.mark.parametrize(
    ("file", "section", "changes", "message"),
    [
        ("explore.json", "", {"model": "a.dp"}, "'model' is given by the loop"),
        ("explore.json", "", {"deviation": {"models": ["b.dp"]}}, "'deviation' is given by the loop"),
        ("explore.json", "", {"stages": [{"ensemble": "nvt", "steps": 5}]}, "an nvt stage needs 'thermostat'"),
        ("input.json", "training", {"stat_file": "stat"}, "'stat_file' names a place"),
        ("input.json", "training", {"disp_file": "a/lcurve.out"}, "'disp_file' names a place"),
        ("input.json", "training/training_data", {"batch_size": [1]}, "'batch_size' tells something of each system"),
        ("input.json", "training/training_data", {"auto_prob": "prob_sys_size;0:1:1"}, "'auto_prob' tells something"),
        ("input.json", "training/training_data", {"systems": ["none"]}, "the data system does not exist"),
        ("input.json", "model/fitting_net", {"numb_fparam": 1}, "frame or atomic parameters"),
        ("input.json", "model/fitting_net", {"numb_aparam": 1}, "frame or atomic parameters"),
        ("input.json", "model/descriptor", {"activation_function": "relu"}, "cannot be compressed"),
        ("input.json", "model", {"type_map": ["Si", "OW"]}, "'OW' is no element"),
    ],
)
def test_a_wrong_file_that_it_names(
    project: Path, file: str, section: str, changes: dict[str, Any], message: str
) -> None:
    given = json.loads(json.dumps({"explore.json": RUN, "input.json": TRAINING}[file]))
    inner = given
    for key in section.split("/") if section else ():
        inner = inner[key]
    inner |= changes
    (project / file).write_text(json.dumps(given))
    with pytest.raises(DphpcError) as caught:
        dphpc.learn(settings())
    assert message in str(caught.value)
    assert not (project / "learn").exists()


def test_structures_that_cannot_be_labelled(project: Path) -> None:
    text = (project / "si8.poscar").read_text()
    (project / "si8.poscar").write_text(text.replace("Si", "Ge"))
    with pytest.raises(DphpcError, match="species 'Ge', which the model does not know"):
        dphpc.learn(settings())
    (project / "si8.poscar").write_text(text)
    (project / "explore.json").write_text(json.dumps(RUN | {"periodic": [True, True, False]}))
    with pytest.raises(DphpcError, match="repeats in some directions only"):
        dphpc.learn(settings())


def test_one_value_stands_for_a_list() -> None:
    given = explore(temperature_K=300, pressure_bar=[0, 1], structures="a.poscar")
    entry = parse_config(LearnConfig, settings(**given)).rounds[0].explore[0]
    assert (entry.temperature_K, entry.pressure_bar, entry.structures) == ([300.0], [0.0, 1.0], ["a.poscar"])


def test_an_entry_may_select_in_its_own_way() -> None:
    own = {"above": 0.2, "below": 0.5}
    config = parse_config(LearnConfig, settings(rounds=[FIRST, FIRST | {"select": own}]))
    assert [config.selection(entry).above for entry in config.rounds] == [0.02, 0.2]
