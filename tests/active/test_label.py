"""Labels by calculators and commands, and frames that get none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from dphpc.active import calculator, label
from dphpc.active.config import Label, LearnConfig
from dphpc.active.work import Work, Workshop
from dphpc.core.config import parse_config
from dphpc.core.errors import InputError, RunError
from dphpc.train.data import System, open_systems
from tests.active.conftest import rattled, settings, tersoff

FAILS = "tests.active.conftest:tersoff_fails"
FRAMES = rattled(5, 0.05)
GOOD = [atoms for atoms in FRAMES if atoms.positions[0, 0] >= 0]
assert 0 < len(GOOD) < len(FRAMES)


def work(**changes: Any) -> Work:
    config = parse_config(LearnConfig, settings(hold_out=0.0, **changes))
    return label.labelling(config, "labelling", Path("learn/label"), lambda: [bare(a) for a in FRAMES], ["Si"])


def bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def do(work: Work) -> System:
    """The system that a labelling makes."""
    workshop = Workshop(Path("learn"))
    with workshop.alone():
        workshop.do([work], 1)
    (system,) = open_systems([str(work.folder / "data")], ["Si"])
    return system


def test_frames_that_fail_are_left_out(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    system = do(work(label={"calculator": FAILS, "parameters": {"often": "now and then"}}, at_once={"label": 2}))
    assert system.n_frames == len(GOOD)
    for i, atoms in enumerate(GOOD):
        assert system.frame(i).energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    failed = len(FRAMES) - len(GOOD)
    assert f"{failed} of {len(FRAMES)} frames have no labels and are left out" in caplog.text
    assert (project / "learn/label/log").read_text().count("RuntimeError: SCF has not converged") == failed


def test_a_calculator_that_ends_its_process_costs_its_frame_only(project: Path) -> None:
    system = do(work(label={"calculator": FAILS, "parameters": {"often": "crash"}}))
    assert system.n_frames == len(GOOD)
    assert "the calculation ended with status 9" in (project / "learn/label/log").read_text()


def test_if_all_frames_fail_the_loop_ends(project: Path) -> None:
    with pytest.raises(RunError, match="SCF has not converged") as caught:
        do(work(label={"calculator": FAILS, "parameters": {"often": "always"}}))
    assert f"none of {len(FRAMES)} frames could be labelled" in str(caught.value)
    assert not (project / "learn/label").exists()


SCRIPT = """
import sys, ase.io
from tests.active.conftest import tersoff
frames = ase.io.read(sys.argv[1], index=":")
for atoms in frames:
    assert atoms.calc is None, "what a model says is no label"
    atoms.calc = tersoff()
    atoms.get_forces()
ase.io.write(sys.argv[2], {frames}, format="extxyz")
"""


def by_script(frames: str) -> dict[str, Any]:
    Path("a script.py").write_text(SCRIPT.replace("{frames}", frames))
    return {"command": f"'{sys.executable}' 'a script.py' {{frames}} {{labelled}} | cat"}


def test_a_command_labels(project: Path) -> None:
    system = do(work(label=by_script("frames")))
    assert system.n_frames == len(FRAMES)
    assert system.labels == {"energy", "forces", "virial"}
    assert system.frame(2).forces == pytest.approx(FRAMES[2].get_forces(), abs=1e-6)


def test_a_command_may_leave_frames_out(project: Path) -> None:
    assert do(work(label=by_script("frames[1:3]"))).n_frames == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false {frames} {labelled}", "labelling ended with status 1"),
        ("true {frames} {labelled}", "the labelling has ended and has written no labels"),
        ("cp {frames} {labelled}", "none of 5 frames has both energy and forces"),
    ],
)
def test_a_command_that_gives_no_labels(project: Path, command: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        do(work(label={"command": command}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"calculator": "espreso"}, "did you mean 'espresso'"),
        ({"calculator": "no_such_module:Make"}, "No module named 'no_such_module'"),
        ({"calculator": "math:Make"}, "has no attribute 'Make'"),
        ({"calculator": FAILS, "parameters": {"frequently": 1}}, "unexpected keyword argument 'frequently'"),
        ({"calculator": "lj", "parameters": {"profile": {"command": "pw.x"}}}, "it takes no 'profile'"),
        ({"command": "no-such-program {frames} {labelled}"}, "there is no program 'no-such-program'"),
    ],
)
def test_labels_that_cannot_be_made_are_told_before(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        label.check(parse_config(Label, given))


def test_a_calculator_is_told_of_its_program() -> None:
    profile = {"command": "pw.x", "pseudo_dir": "pseudo"}
    parameters = {"profile": profile, "input_data": {"system": {"ecutwfc": 20}}, "pseudopotentials": {"Si": "Si.upf"}}
    espresso = calculator.make_calculator(Label(calculator="espresso", parameters=parameters))
    assert espresso.profile.command == "pw.x"


def test_a_calculation_that_has_not_converged_is_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unconverged(_: Label) -> Any:
        tried = tersoff()
        tried.converged = False
        return tried

    monkeypatch.setattr(calculator, "make_calculator", unconverged)
    with pytest.raises(Exception, match="has not converged"):
        calculator.label_frame(Label(calculator="x:y"), bare(FRAMES[0]), tmp_path)


def test_files_of_a_calculator_go_to_the_frames_folder(tmp_path: Path) -> None:
    labelled = calculator.label_frame(Label(calculator="lj"), bare(FRAMES[0]), tmp_path / "0000")
    assert (tmp_path / "0000").is_dir()  # ASE makes it
    assert labelled.get_stress().shape == (6,)


def test_a_cluster_has_no_stress(tmp_path: Path) -> None:
    isolated = Atoms("Ar2", [[0, 0, 0], [0, 0, 1.2]], cell=[20, 20, 20])
    results = calculator.label_frame(Label(calculator="lj"), isolated, tmp_path / "0000").calc.results
    assert {"energy", "forces"} <= results.keys()
    assert "stress" not in results


@pytest.mark.parametrize("labels", [True, False])
def test_the_first_label_is_compared_with_the_datas(
    project: Path, labels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sample = project / "check", bare(FRAMES[0])
    folder.mkdir()
    ase.io.write(folder / "frames.extxyz", sample)
    labelled = sample.copy()
    labelled.calc = tersoff()
    results = {"energy": labelled.get_potential_energy(), "forces": labelled.get_forces()}
    ase.io.write(folder / "labelled.extxyz", labelled)
    if labels:
        sample.calc = SinglePointCalculator(sample, energy=results["energy"] - 0.8, forces=results["forces"] + 0.25)
    said = label.compare(folder, sample)
    assert ("by 100 meV/atom and 0.25 eV/Å" in said) == labels
