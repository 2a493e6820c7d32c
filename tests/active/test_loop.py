"""Whole loops of real trainings, runs and labels: what they leave, how they go on, what they refuse."""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms

import dphpc
from dphpc.active.result import LearnResult
from dphpc.core.errors import InputError, RunError
from dphpc.plots.tables import read_table
from dphpc.train.convert import convert
from dphpc.train.data import open_systems
from dphpc.train.evaluate import test as evaluate
from tests.active.conftest import RUN, TRAINING, rattled, settings, tersoff

FIRST = settings()["rounds"][0]
EXPLORE = FIRST["explore"]


def start(*arguments: str) -> subprocess.Popen[str]:
    """`dphpc learn`, as a user starts it."""
    command = [sys.executable, "-m", "dphpc", "learn", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stamps(folder: Path) -> dict[Path, int]:
    """When each file was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_two_rounds_are_tabled(finished: tuple[Path, LearnResult]) -> None:
    folder, result = finished
    assert [r.labelled for r in result.rounds] == [3, 3]
    assert not result.converged
    assert result.models == [Path("learn/round-02/train") / k / "model.dp" for k in "01"]
    table = read_table(folder / "rounds.csv")
    for name in ("frames", "accurate", "candidate", "failed", "worst_devi_f", "labelled", "rmse_f", "rmse_e"):
        assert table[name] == pytest.approx([getattr(r, name) for r in result.rounds], rel=1e-9)
    assert table["accurate"] + table["candidate"] + table["failed"] == pytest.approx(1)
    first = result.rounds[0]
    assert first.frames == 9  # of 40 steps, every 5th and the first
    assert min(first.train_s, first.explore_s, first.label_s) > 0
    assert "candidate" in str(result)
    assert "<td>9</td>" in result._repr_html_()


def test_new_data_are_the_calculators(finished: tuple[Path, LearnResult]) -> None:
    folder = finished[0] / "round-00" / "label"
    held, trained = (open_systems([str(folder / name)], ["Si"]) for name in ("valid", "data"))
    assert [system.n_frames for system in (*held, *trained)] == [1, 2]  # 0.4 of 3
    for system in (*held, *trained):
        for i in range(system.n_frames):
            frame = system.frame(i)
            atoms = Atoms("Si8", frame.positions, cell=frame.box.matrix, pbc=True, calculator=tersoff())
            assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
            assert frame.forces == pytest.approx(atoms.get_forces(), abs=1e-6)
            virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
            assert frame.virial == pytest.approx(virial, abs=1e-6)


def test_the_error_is_of_models_that_had_not_seen_the_labels(finished: tuple[Path, LearnResult]) -> None:
    folder, result = finished
    labels = [str(folder / "round-01" / "label" / name) for name in ("data", "valid")]
    errors = [evaluate(folder / f"round-01/train/{k}/model.dp", labels).total for k in range(2)]
    pooled = np.sqrt(np.mean([error.measures("f")[1] ** 2 for error in errors]))
    assert result.rounds[1].rmse_f == pytest.approx(pooled, rel=1e-6)


def test_each_training_has_all_data_and_its_own_seeds(finished: tuple[Path, LearnResult]) -> None:
    train = finished[0] / "round-02" / "train"
    inputs = [read(train / k / "input.json") for k in "01"]
    seeds = {
        section["seed"]
        for given in inputs
        for section in (given["model"]["descriptor"], given["model"]["fitting_net"], given["training"])
    }
    assert len(seeds) == 6
    new = [f"../../../round-{number:02d}/label" for number in (0, 1)]
    data = inputs[0]["training"]
    assert data["training_data"]["systems"] == ["../../../../data", *(f"{folder}/data" for folder in new)]
    assert data["validation_data"]["systems"] == [f"{folder}/valid" for folder in new]
    completed = read(finished[0] / "round-00" / "train" / "0" / "out.json")
    assert inputs[0]["model"]["descriptor"]["sel"] == completed["model"]["descriptor"]["sel"]
    # The first step's error is that of trained weights, not of random ones.
    first, last = (read_table(finished[0] / f"round-{n:02d}/train/0/lcurve.out")["rmse_f_trn"] for n in (0, 2))
    assert last[0] < 0.5 * first[0]


def test_the_same_command_again_does_nothing(finished: tuple[Path, LearnResult], copy: Path) -> None:
    before = stamps(copy)
    assert dphpc.learn(settings()) == finished[1]
    assert stamps(copy) == before


def test_a_cut_step_is_gone_on_with(finished: tuple[Path, LearnResult], copy: Path) -> None:
    before, last = stamps(copy), copy / "round-01"
    shutil.rmtree(copy / "round-02")
    (last / "summary.json").unlink()
    for folder in (last / "explore" / "00-si8", last / "label"):
        folder.rename(folder.with_name(f"{folder.name}.part"))
    for name in ("0001.extxyz", "labelled.extxyz"):
        (last / "label.part" / name).unlink()
    with pytest.raises(RunError, match=r"round 2, training of model \d ended with status 1"):
        dphpc.learn(settings(launch={"train": "false"}))  # the rounds are all that is looked at
    touched = {path.relative_to(copy).as_posix() for path, stamp in stamps(copy).items() if before.get(path) != stamp}
    assert {"round-01/label/0001.extxyz", "round-01/explore/00-si8/model_devi.out", "rounds.csv"} <= touched
    rest = {name for name in touched if "round-02" not in name}
    assert not {name for name in rest if "train" in name or "round-00" in name or "0000.extxyz" in name}
    for name in ("frames", "accurate", "worst_devi_f", "labelled", "rmse_f", "rmse_e"):  # to the last bit
        assert read(last / "summary.json")[name] == getattr(finished[1].rounds[1], name)


def test_another_exploration_of_a_round_that_has_begun_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "round-02")
    (copy / "round-01" / "summary.json").unlink()
    other = {"explore": [EXPLORE[0] | {"temperature_K": 500}]}
    shutil.rmtree(copy / "round-00" / "explore")  # what is done may be removed, to save space
    with pytest.raises(InputError, match=r"has begun other explorations .*: '00-si8' is only there"):
        dphpc.learn(settings(rounds=[FIRST | {"repeat": 1}, other]))


def test_rounds_after_one_that_is_not_done_are_refused(copy: Path) -> None:
    (copy / "round-01" / "summary.json").unlink()
    with pytest.raises(InputError, match="round 1 is not done, and there is a later one"):
        dphpc.learn(settings())


@pytest.mark.slow
def test_the_error_falls_from_round_to_round(project: Path) -> None:
    ase.io.write("hot.extxyz", rattled(40, 0.1, seed=9))
    convert("hot.extxyz", "hot", type_map=["Si"])
    given = json.loads(json.dumps(TRAINING)) | {"optimizer": {"type": "HybridMuon"}}
    given["model"]["descriptor"] |= {"neuron": [16, 32], "axis_neuron": 6}
    given["model"]["fitting_net"]["neuron"] = [48, 48]
    given["learning_rate"] |= {"start_lr": 0.02}
    given["training"] |= {"numb_steps": 300}
    given["training"]["training_data"]["batch_size"] = 4
    (project / "input.json").write_text(json.dumps(given))
    (project / "explore.json").write_text(json.dumps(RUN | {"stages": [RUN["stages"][0] | {"steps": 500}]}))
    hot = {"md": "explore.json", "structures": "si8.poscar", "temperature_K": [600, 1500]}
    known = {"above": 0.1, "below": 2.0, "most": 15}
    result = dphpc.learn(settings(rounds=[{"explore": [hot], "repeat": 3}], select=known, hold_out=0.0))
    errors = []
    for number in range(len(result.rounds) + 1):
        models = sorted(project.glob(f"learn/round-{number:02d}/train/*/model.dp"))
        of_models = [evaluate(model, "hot").total.measures("f")[1] for model in models]
        errors += [np.sqrt(np.mean(np.square(of_models)))] if models else []
    assert len(errors) > 2
    assert errors[-1] < 0.7 * errors[0], errors  # measured: 0.72, 0.89, 0.44, 0.40 eV/Å


def test_a_signal_stops_a_training_that_is_gone_on_with(project: Path) -> None:
    training = TRAINING["training"] | {"numb_steps": 10**6, "save_freq": 20}
    (project / "input.json").write_text(json.dumps(TRAINING | {"training": training}))
    (project / "learn.json").write_text(json.dumps(settings(at_once={"train": 1})))
    part = project / "learn" / "round-00" / "train" / "0.part"

    def run_until(text: str) -> str:
        with start("learn.json") as process:
            until = time.monotonic() + 300
            while time.monotonic() < until and process.poll() is None:
                if (part / "log").is_file() and text in (part / "log").read_text():
                    break
                time.sleep(0.02)
            process.terminate()
            message = process.communicate(timeout=300)[1]
        assert process.returncode == 128 + signal.SIGTERM, message
        return message

    message = run_until("batch      20")
    assert "the same command goes on" in message
    assert (part / "checkpoint").is_file()
    assert not list(project.glob("learn/round-00/train/1*"))
    run_until("train from step")


@pytest.mark.slow
def test_ranks_train_and_explore(project: Path, mpirun: list[str]) -> None:
    (project / "explore.json").write_text(json.dumps(RUN | {"stages": [RUN["stages"][0] | {"steps": 400}]}))
    ranks = shlex.join([*mpirun, "-n", "2"])
    select = {"above": 0.02, "below": 0.3, "stop_above": 0.3}
    hot = {"md": "explore.json", "structures": "si8.poscar", "temperature_K": [300, 9000]}
    changes = {"launch": {"train": ranks, "md": ranks}, "select": select, "rounds": [{"explore": [hot]}]}
    result = dphpc.learn(settings(**changes))
    assert result.rounds[0].labelled > 0
    for log in ("train/0/log", "explore/01-si8-9000K/log"):
        assert "2 ranks × 1 thread" in (project / "learn" / "round-00" / log).read_text()
    assert "stopped by max_devi_f" in (project / "learn/round-00/explore/01-si8-9000K/log").read_text()


def test_rounds_can_be_added(finished: tuple[Path, LearnResult], copy: Path) -> None:
    known = {"above": 90.0, "below": 99.0, "stop_above": 99.0}
    before = stamps(copy)
    result = dphpc.learn(settings(rounds=[FIRST, {"explore": EXPLORE, "select": known, "repeat": 5}]))
    assert len(result.rounds) == 3  # the third has converged, so that the fifth entry's others are left out
    assert result.converged
    assert result.rounds[2].labelled == 0
    assert np.isnan(result.rounds[2].rmse_f)
    assert result.models == finished[1].models
    new = {path.relative_to(copy).parts[0] for path, stamp in stamps(copy).items() if before.get(path) != stamp}
    assert new == {"round-02", "rounds.csv"}
    assert not list(copy.glob("round-02/train/*.part"))
    assert not (copy / "round-02" / "label").exists()


def test_runs_that_go_astray_are_no_failure(copy: Path) -> None:
    poor = {"above": 1e-9, "below": 2e-9, "stop_above": 1e-3}
    with pytest.raises(RunError, match="no frame can be learned from") as caught:
        dphpc.learn(settings(rounds=[FIRST, {"explore": EXPLORE, "select": poor}]))
    assert "raise 'below'" in str(caught.value)
    assert "stopped by max_devi_f" in (copy / "round-02/explore/00-si8/log").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": {"above": 0.03, "below": 2.0}}, "select/above: 0.02 in place of 0.03"),
        ({"select": {"above": 0.02, "below": 1.0, "most": 3}}, "select/below: 2.0 in place of 1.0"),
        ({"label": {"calculator": "emt"}}, 'label/calculator: "tests.active.conftest:tersoff" in place of "emt"'),
        ({"rounds": [{"explore": [EXPLORE[0] | {"every": 4}], "repeat": 2}]}, "explore/every: 5 in place of 4"),
        (
            {"rounds": [{"explore": [EXPLORE[0] | {"structures": ["other.poscar"]}], "repeat": 2}]},
            "'00-other' is only in the run file",
        ),
        ({"rounds": [{"explore": [*EXPLORE, *EXPLORE], "repeat": 2}]}, "'01-si8' is only in the run file"),
        ({"hold_out": 0.2}, "hold_out: 0.4 in place of 0.2"),
        ({"seed": 2}, "seed: "),
        ({"models": 3}, "round 0, exploration 0 .* was done with another deviation/models"),
        ({"retrain": {"training": {"numb_steps": 50}}}, "training/numb_steps: 60 in place of 50"),
        ({"rounds": [{"explore": EXPLORE}]}, "round 1 was done for entry 1 of 'rounds', and would now be none of it"),
        (
            {"rounds": [{"explore": EXPLORE}] * 2},
            "round 1 was done for entry 1 of 'rounds', and would now be for entry 2",
        ),
    ],
)
def test_what_contradicts_finished_work_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    shutil.copy("si8.poscar", "other.poscar")
    before = stamps(copy)
    with pytest.raises(InputError, match=message):
        dphpc.learn(settings(**changes))
    assert stamps(copy) == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("round-00/summary.json", "", "a file of a step that is done or begun is damaged"),
        ("round-00/summary.json", "[1]", "the summary of round 0 is damaged"),
        ("round-01/summary.json", '{"round": 1}', "the summary of round 1 is damaged"),
        ("round-01/train/0/input.json", "{", "a file of a step that is done or begun is damaged"),
        ("round-00/train/0/out.json", None, "a file of a step that is done is missing"),
        ("round-00/train/1/out.json", '{"model": 5}', "the input of a training that is done is damaged"),
        ("round-00/explore/00-si8/run.json", "\0", "a file of a step that is done or begun is damaged"),
        ("round-01/label/data", None, "round 1 has labelled 3 frames, and their data are missing"),
        ("round-00/label/valid", None, "round 0 has labelled 3 frames, and their data are missing"),
        ("round-00/label", None, "round 0 has labelled 3 frames, and their data are missing"),
    ],
)
def test_what_is_damaged_is_told(copy: Path, name: str, text: str | None, message: str) -> None:
    path = copy / name
    if text is not None:
        path.write_text(text)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(InputError, match=message) as caught:
        dphpc.learn(settings())
    assert name in str(caught.value)
    assert "remove the folder of that step" in str(caught.value)


def test_labels_that_were_removed_with_all_that_followed_are_made_anew(
    finished: tuple[Path, LearnResult], copy: Path
) -> None:
    shutil.rmtree(copy / "round-02")
    shutil.rmtree(copy / "round-01" / "label")
    (copy / "round-01" / "seconds.json").write_text("{")  # of which no result depends
    with pytest.raises(RunError, match=r"round 2, training of model \d ended with status 1"):
        dphpc.learn(settings(launch={"train": "false"}))
    assert read(copy / "round-01" / "summary.json")["rmse_f"] == finished[1].rounds[1].rmse_f


def test_models_that_are_missing_are_told(finished: tuple[Path, LearnResult], copy: Path) -> None:
    (copy / "round-02" / "train" / "1" / "model.dp").unlink()
    with pytest.raises(InputError, match="a model of a committee that is trained is missing"):
        dphpc.learn(settings())


def test_a_second_loop_in_the_folder_is_refused(copy: Path) -> None:
    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another `dphpc learn` is at work"):
            dphpc.learn(settings())


def test_a_dry_run_says_what_it_would_do(project: Path) -> None:
    (project / "learn.json").write_text(json.dumps(settings()))
    with start("learn.json", "--dry-run") as process:
        message = process.communicate(timeout=300)[1]
    assert process.returncode == 0, message
    assert "committee: 2 models of input.json (Si), 60 steps each; 1 data system" in message
    assert "up to 2 rounds of 1 runs, 40 steps in all" in message
    assert "at most:   6 trainings, 2 runs, 6 labels" in message
    assert not (project / "learn").exists()


def test_several_processes_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "learn.json").write_text(json.dumps(settings()))
    said = []
    for rank in "01":
        monkeypatch.setenv("PMI_RANK", rank)
        monkeypatch.setenv("PMI_SIZE", "2")
        with start("learn.json", "--dry-run") as process:
            said.append(process.communicate(timeout=300)[1])
        assert process.returncode == 1
    assert "a loop is one process, and MPICH or Intel MPI started 2" in said[0]
    assert "WARNING" not in said[0]
    assert not said[1]
