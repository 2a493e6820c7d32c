"""The section `queue`: what is taken, what is refused, and a loop whose works are all jobs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

import dphpc
from dphpc.active import label
from dphpc.active.jobs import Jobs
from dphpc.active.queue import sections
from dphpc.active.result import LearnResult
from dphpc.active.work import Workshop
from dphpc.core.errors import InputError, RunError
from dphpc.train.data import open_systems
from tests.active.conftest import settings
from tests.active.test_label import FAILS, FRAMES, GOOD, carry_out, work

SHELL: dict[str, Any] = {"batch_type": "Shell"}
DPGEN: dict[str, Any] = {
    "api_version": "1.0",
    "train": [
        {
            "command": "dp",
            "machine": SHELL | {"context_type": "LocalContext", "local_root": "./", "remote_root": "/scratch/me"},
            "resources": {"number_node": 1, "cpu_per_node": 4, "gpu_per_node": 1, "queue_name": "gpu", "group_size": 2},
        }
    ],
    "model_devi": {
        "command": "lmp",
        "machine": SHELL | {"context_type": "LazyLocalContext", "local_root": ".", "_comment": "here"},
        "resources": {"group_size": 5, "source_list": [], "strategy": {"ratio_unfinished": 0.1}},
    },
    "fp": [{"command": "mpirun -n 4 vasp_std", "machine": SHELL, "resources": {"group_size": 0}}],
}
"""A `machine.json` as DP-GEN takes it."""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is found, and does nothing."""
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_dpgens_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(DPGEN))
    found = sections(str(path))
    assert list(found) == ["train", "md", "label"]
    assert {name: section.group_size for name, section in found.items()} == {"train": 2, "md": 5, "label": float("inf")}
    unused = [", ".join(section.unused) for section in found.values()]
    assert unused == ["'command'", "'command', 'ratio_unfinished'", "'command'"]
    assert sections({"md": DPGEN["fp"][0]})["md"].batch_type == "Shell"


@pytest.mark.parametrize(
    ("queue", "message"),
    [
        ("none.json", "none.json"),
        ({}, "it has no section of jobs"),
        ({"trian": {}}, "did you mean 'train'"),
        ({"train": []}, "'train' has the wrong value []"),
        ({"train": {"machine": SHELL}, "md": None, "model_devi": {}}, "gives 'md' twice"),
        ({"train": {"machines": SHELL}}, "did you mean 'machine'"),
        ({"train": {"resources": {}}}, "'machine' is missing"),
        ({"train": {"machine": {}}}, "'batch_type' is missing"),
        ({"train": {"machine": {"batch_type": "Slrum"}}}, "did you mean 'Slurm'"),
        ({"train": {"machine": {"batch_type": "Slurm"}}}, "there is no program 'sbatch', which submits jobs of Slurm"),
        ({"train": {"machine": {"batch_type": "Bohrium"}}}, "batch type Bohrium: files of a loop are not sent"),
        (
            {"fp": {"machine": SHELL | {"context_type": "SSHContext"}}},
            "context SSHContext: files of a loop are not sent",
        ),
        ({"train": {"machine": SHELL | {"retries": 3}}}, "undefined key `retries` is not allowed"),
        ({"train": {"machine": SHELL | {"retry_count": "3"}}}, "key `retry_count` gets wrong value type"),
        ({"train": {"machine": SHELL, "resources": {"cpu_per_nod": 3}}}, "Did you mean: cpu_per_node?"),
        ({"train": {"machine": SHELL, "resources": {"group_size": -1}}}, "'group_size' is negative"),
        ({"train": {"machine": SHELL, "resources": {"source_list": ["a; b"]}}}, "source_list entries must"),
        (
            {"train": {"machine": SHELL, "resources": {"strategy": {"ratio_unfinished": 2.0}}}},
            "must be smaller than 1.0",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_done(project: Path, queue: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        dphpc.learn(settings(queue=queue))
    assert message in str(caught.value)
    assert not (project / "learn").exists()


def test_a_launcher_that_cannot_be_read(project: Path) -> None:
    with pytest.raises(InputError, match="No closing quotation"):
        dphpc.learn(settings(queue={"train": {"machine": SHELL}}, launch={"train": "mpirun 'n"}))


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpdispatcher", None)
    with pytest.raises(InputError, match=r"(?s)'queue' needs the package dpdispatcher.*pip install 'dphpc\[queue\]'"):
        sections({"train": {"machine": SHELL}})


@pytest.mark.usefixtures("sbatch")
def test_a_dry_run_says_what_would_be_submitted(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dphpc")
    resources = {"cpu_per_node": 4, "gpu_per_node": 1, "queue_name": "gpu", "custom_flags": ["#SBATCH -t 24:00:00"]}
    train = {"command": "dp", "machine": {"batch_type": "slurm"}, "resources": resources}
    labels = {"machine": SHELL, "resources": {"group_size": 5}}
    given = settings(
        queue={"train": train, "fp": labels}, at_once={"label": 3}, launch={"train": "no-such-mpirun-here -n 4"},
        label={"command": "no-such-program-here {frames} {labelled}"},
    )  # fmt: skip
    dphpc.learn(given, dry_run=True)
    asked = "--nodes 1 --ntasks-per-node 4 --gres=gpu:1 --partition gpu -t 24:00:00"
    assert f"train:     jobs of Slurm, all at the same time: {asked}\n" in caplog.text
    assert "not used: 'command': dphpc runs, on files where they are" in caplog.text
    assert "label:     jobs of Shell, 3 at a time, 5 works in each\n" in caplog.text
    assert "md:" not in caplog.text
    assert not (project / "learn").exists()


def test_a_loop_of_jobs_gives_the_same_as_processes(finished: tuple[Path, LearnResult], copy: Path) -> None:
    for path in (copy / "round-02", copy / "round-01" / "label", copy / "round-01" / "explore"):
        shutil.rmtree(path)
    (copy / "round-01" / "summary.json").unlink()
    Path("machine.json").write_text(json.dumps(DPGEN))
    result = dphpc.learn(settings(queue="machine.json"))
    assert len(list((copy / "queue").iterdir())) == 3  # a run, the labels, two trainings
    for now, then in zip(result.rounds, finished[1].rounds, strict=True):
        assert astuple(now)[:-4] == astuple(then)[:-4]  # without times
    for path in ("round-02/train/0/lcurve.out", "round-02/train/1/lcurve.out", "round-01/label/frames.extxyz"):
        assert (copy / path).read_bytes() == (finished[0] / path).read_bytes()


@pytest.mark.slow
def test_frames_are_labelled_by_jobs_each(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    queue = sections({"label": {"machine": SHELL, "resources": {"group_size": 2}}})
    labelling = work(True, label={"calculator": FAILS, "parameters": {"often": "sometimes"}})
    workshop = Workshop(Path("learn"))
    with workshop.alone():
        frames = label.frame_works(labelling)
        workshop.do(frames[:2], 99, jobs=Jobs(queue["label"], Path("learn")))  # the loop is stopped here
        workshop.do(label.frame_works(labelling), 99, jobs=Jobs(queue["label"], Path("learn")))
        workshop.do([labelling], 1)
    assert label.frame_works(labelling) == []
    (system,) = open_systems([str(labelling.folder / "data")], ["Si"])
    assert system.n_frames == len(GOOD)
    for i, atoms in enumerate(GOOD):
        assert system.frame(i).energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert "no labels: frame 3: RuntimeError: SCF has not converged" in caplog.text
    assert f"{len(FRAMES) - len(GOOD)} of {len(FRAMES)} frames have no labels and are left out" in caplog.text


def test_if_the_jobs_of_all_frames_fail_they_are_done_again(project: Path) -> None:
    queue = sections({"label": {"machine": SHELL, "resources": {"group_size": 0}}})
    labelling = work(True, label={"calculator": FAILS, "parameters": {"often": "always"}})
    workshop = Workshop(Path("learn"))
    with workshop.alone():
        workshop.do(label.frame_works(labelling)[:1], 99, jobs=Jobs(queue["label"], Path("learn")))
        with pytest.raises(RunError, match=f"none of {len(FRAMES)} frames could be labelled"):
            workshop.do([labelling], 1)
    assert [one.is_done() for one in label.frame_works(labelling)] == [False] * len(FRAMES)


def test_frames_that_have_jobs_are_labelled_by_no_process(project: Path) -> None:
    given = {"calculator": "emt"}
    (frame, *_) = label.frame_works(work(True, label=given))
    frame.prepare()
    (frame.part / "job.json").write_text("{}")
    with pytest.raises(InputError, match="given to a queue system, and is to be done by a process now"):
        carry_out(work(label=given))
