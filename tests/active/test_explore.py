"""Runs of an exploration: what they are given, and what counts as explored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dphpc.active.config import LearnConfig
from dphpc.active.explore import conditions, deviations, explorations
from dphpc.active.result import LearnResult
from dphpc.active.work import Work, Workshop
from dphpc.core.config import parse_config
from dphpc.core.errors import RunError
from tests.active.conftest import RUN, settings

NPT = {
    "ensemble": "npt", "thermostat": "bussi", "temperature_K": [10, 300], "pressure_bar": 0, "steps": 20,
    "compressibility_per_bar": 1e-6,
}  # fmt: skip


def works(models: list[Path], **changes: Any) -> list[Work]:
    """The runs of the first entry of `rounds`."""
    explore = {"md": "explore.json", "structures": "si8.poscar", "every": 5} | changes
    config = parse_config(LearnConfig, settings(rounds=[{"explore": [explore]}]))
    return explorations(config, 0, config.rounds[0], models)


def test_a_run_for_each_structure_temperature_and_pressure(project: Path) -> None:
    run = RUN | {
        "stages": [*RUN["stages"], NPT, {"ensemble": "nve", "steps": 5}],
        "trajectory": {"every": 10, "file": "/elsewhere/liquid.dump"},
        "thermo": {"every": 7, "file": "elsewhere.csv"},
    }
    (project / "explore.json").write_text(json.dumps(run))
    (project / "other.poscar").write_text((project / "si8.poscar").read_text())
    models = [Path("learn/round-00/train") / k / "model.dp" for k in "012"]
    grid = {"structures": ["si8.poscar", "other.poscar"], "temperature_K": [300, 900], "pressure_bar": 1e4}
    runs = works(models, **grid)
    assert [work.folder.name for work in runs] == [
        "00-si8-300K-10000bar", "01-si8-900K-10000bar", "02-other-300K-10000bar", "03-other-900K-10000bar",
    ]  # fmt: skip
    settings = runs[1].settings
    assert [stage.get("temperature_K") for stage in settings["stages"]] == [900, 900, None]
    assert [stage.get("pressure_bar") for stage in settings["stages"]] == [None, 1e4, None]
    assert settings["velocities"]["temperature_K"] == 900
    assert settings["structure"] == "../../../../si8.poscar"
    assert settings["model"] == "../../train/0/model.dp"
    assert settings["deviation"]["models"] == ["../../train/1/model.dp", "../../train/2/model.dp"]
    assert settings["trajectory"]["file"] == "liquid.dump"
    assert settings["thermo"] == {"every": 7, "file": "thermo.csv"}
    seeds = {work.settings["seed"] for work in runs} | {work.settings["velocities"]["seed"] for work in runs}
    assert len(seeds) == 8


def test_without_temperatures_the_run_files_are_taken(project: Path) -> None:
    (work,) = works([Path("a.dp"), Path("b.dp")])
    assert work.settings["stages"] == RUN["stages"]
    assert work.settings["velocities"]["temperature_K"] == 600
    config = parse_config(LearnConfig, settings())
    (condition,) = conditions(config.rounds[0])
    assert condition.name == "si8"


@pytest.fixture
def models(finished: tuple[Path, LearnResult], project: Path) -> list[Path]:
    return [finished[0] / "round-01" / "train" / k / "model.dp" for k in "01"]


def explore(work: Work) -> None:
    workshop = Workshop(Path("learn"))
    with workshop.alone():
        workshop.do([work], 1)


def test_a_run_with_a_restart_file_is_gone_on_with(project: Path, models: list[Path]) -> None:
    (project / "explore.json").write_text(json.dumps(RUN | {"restart": {"every": 20}}))
    (work,) = works(models)
    explore(work)
    found, text = deviations(work.folder), (work.folder / "log").read_text()
    assert len(found) == 9
    work.folder.rename(work.part)  # all steps were done when it was cut
    explore(work)
    assert (work.folder / "log").read_text() == text
    # It was cut after 20 steps.
    work.folder.rename(work.part)
    (work.part / "restart.h5").unlink()
    assert (work.part / "restart.previous.h5").is_file()
    explore(work)
    assert "restart:   at step 20" in (work.folder / "log").read_text()
    assert deviations(work.folder) == found


def test_a_run_that_dies_is_explored_as_far_as_it_went(
    project: Path, models: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    tossed = NPT | {"pressure_bar": 1e6, "compressibility_per_bar": 1.0}  # its first move is too large
    (project / "explore.json").write_text(json.dumps(RUN | {"stages": [tossed]}))
    (work,) = works(models, every=1)
    explore(work)
    assert [step for step, _ in deviations(work.folder)] == list(range(10))
    assert "ended early, and is explored as far as it went" in caplog.text


def test_a_run_that_cannot_write_is_an_error(project: Path, models: list[Path]) -> None:
    # Its trajectory grows until the disk is full; what it explored until then says nothing of the models.
    (project / "explore.json").write_text(json.dumps(RUN | {"trajectory": {"every": 1, "file": "traj.extxyz"}}))
    (work,) = works(models, every=1)
    begin = work.begin

    def limited(part: Path) -> list[str] | None:
        return ["/bin/sh", "-c", 'ulimit -f 32; trap "" XFSZ; exec "$@"', "sh", *(begin(part) or [])]

    with pytest.raises(RunError, match=r"exploration 0 \(si8\) ended with status 1") as caught:
        explore(replace(work, begin=limited))
    assert "the output cannot be written: File too large" in str(caught.value)
    assert len(deviations(work.part)) > 2
    assert not work.folder.exists()


def test_a_run_that_cannot_begin_is_an_error(project: Path, models: list[Path]) -> None:
    (work,) = works([models[0], Path("no.dp")])
    with pytest.raises(RunError, match=r"exploration 0 \(si8\) ended with status 1") as caught:
        explore(work)
    assert "no.dp" in str(caught.value)  # what the run itself says
    assert not work.folder.exists()
