"""Which frames are chosen: within the limits, without bias, the same ones each time."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from dphpc.active.config import Select
from dphpc.active.select import choose, count
from dphpc.core.errors import InputError

SELECT = Select(above=0.1, below=0.4, most=5)


def run(folder: Path, deviations: list[float], steps: int = 0) -> Path:
    """What a run leaves that deviated so, frame by frame; of so many steps, if it did not do all."""
    folder.mkdir()
    stage = {"ensemble": "nve", "steps": steps or 10 * (len(deviations) - 1)}
    (folder / "run.json").write_text(json.dumps({"stages": [stage], "deviation": {"every": 10}}))
    rows = [f"{10 * k:12d} 0 0 0 {value:.6e} 0 0\n" for k, value in enumerate(deviations)]
    (folder / "model_devi.out").write_text("# step a b c max_devi_f d e\n" + "".join(rows))
    for k, value in enumerate(deviations):
        if value > SELECT.above:
            frame = Atoms("Si2", [[0, 0, 0], [k * 0.01, 0, 2.3]], cell=[5, 5, 5], pbc=True)
            frame.info = {"Step": 10 * k, "max_devi_f": value, "energy": -3.0}
            ase.io.write(folder / "candidates.extxyz", frame, append=True)
    return folder


def test_frames_are_counted_by_the_limits(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", [0.05, 0.1, 0.2, 0.4, 0.9]), run(tmp_path / "b", [0.3, float("nan")])]
    counts = count(runs, SELECT)
    assert (counts.accurate, counts.candidate, counts.failed) == (2, 2, 3)  # the limits are accurate, and failed
    assert counts.frames == 7
    assert not counts.converged(SELECT)
    assert counts.converged(SELECT.updated(accurate=2 / 7))


def test_frames_that_a_run_did_not_reach_have_failed(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", [0.01] * 99), run(tmp_path / "b", [0.9], steps=985)]
    counts = count(runs, SELECT)
    assert (counts.accurate, counts.failed) == (99, 1 + 98)  # 0, 10, … 980
    assert not counts.converged(SELECT)  # as 99 of 100 would have
    given = json.loads((runs[1] / "run.json").read_text())
    given["stages"].append({"ensemble": "minimize", "steps": 1000})
    (runs[1] / "run.json").write_text(json.dumps(given))
    assert count(runs, SELECT).failed == 1


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [0.2, 0.3])
    with (folder / "model_devi.out").open("a") as file:
        file.write("          20 0 0 0 5.0")
    assert count([folder], SELECT).failed == 0


def test_only_candidates_are_chosen_and_models_results_are_forgotten(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [0.05, 0.2, 0.3, 0.7])
    frames = choose([folder], SELECT, seed=1)
    assert [frame.info["step"] for frame in frames] == [10, 20]
    assert frames[0].info == {"run": "a", "step": 10, "max_devi_f": 0.2}
    assert all(frame.calc is None for frame in frames)


def test_a_frame_of_several_runs_is_chosen_once(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, [0.2]) for name in "ab"]
    assert len(choose(runs, SELECT, seed=1)) == 1


def test_chances_are_equal_and_the_choice_is_the_seeds(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [0.1 + 0.01 * (k + 1) for k in range(20)])
    drawn = [[frame.info["step"] for frame in choose([folder], SELECT, seed)] for seed in range(100)]
    assert all(len(steps) == len(set(steps)) == SELECT.most for steps in drawn)
    assert drawn[7] == [frame.info["step"] for frame in choose([folder], SELECT, 7)]
    often = np.bincount(np.concatenate(drawn) // 10, minlength=20)
    expected = 100 * SELECT.most / 20  # 25; the spread of a binomial is 4.3
    assert often == pytest.approx(expected, abs=4 * 4.3)


def test_frames_before_one_that_was_cut_are_read(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [0.2, 0.3])
    text = (folder / "candidates.extxyz").read_text()
    (folder / "candidates.extxyz").write_text(text[: -len(text) // 5])
    assert [frame.info["step"] for frame in choose([folder], SELECT, 1)] == [0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n20 0 0 0 ", "\n2x 0 0 0 ", "line 4 of a run's deviations is damaged"),
        ("\n20 0 0 0 3.000000e-01", "\n20 0 0", "line 4 of a run's deviations is damaged"),
    ],
)
def test_deviations_that_are_damaged(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = run(tmp_path / "a", [0.05, 0.2, 0.3, 0.7])
    path = folder / "model_devi.out"
    text = path.read_text().replace("          20 ", "20 ")
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        count([folder], SELECT)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Step=20", "Step=x", "frame 1 is damaged"),
        ("2.3", "xx", "frame 0 is damaged"),
        ("2\n", "xx\n", "frame 0 is damaged"),
        ("2\n", "90\n", "0 frames can be read, and 3 deviate"),
        ("Step", "\0\0", "frame 0 is damaged"),
    ],
)
def test_candidates_that_are_damaged(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = run(tmp_path / "a", [0.05, 0.2, 0.3, 0.7])
    path = folder / "candidates.extxyz"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        choose([folder], SELECT, 1)
