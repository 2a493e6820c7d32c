"""Labels by calculators and commands, and frames that get none."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones
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


def work(by_frames: bool = False, **changes: Any) -> Work:
    config = parse_config(LearnConfig, settings(hold_out=0.0, **changes))
    frames = [bare(atoms) for atoms in FRAMES]
    return label.labelling(config, "labelling", Path("learn/label"), lambda: frames, ["Si"], by_frames=by_frames)


def bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def carry_out(work: Work) -> None:
    workshop = Workshop(Path("learn"))
    with workshop.alone():
        workshop.do([work], 1)


def do(work: Work) -> System:
    """The system that a labelling makes."""
    carry_out(work)
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
ase.io.write(sys.argv[2], frames, format="extxyz")
"""


def test_a_command_labels(project: Path) -> None:
    Path("a script.py").write_text(SCRIPT)
    system = do(work(label={"command": f"'{sys.executable}' 'a script.py' {{frames}} {{labelled}} | cat"}))
    assert system.n_frames == len(FRAMES)
    assert system.labels == {"energy", "forces", "virial"}
    assert system.frame(2).forces == pytest.approx(FRAMES[2].get_forces(), abs=1e-6)


def labelled(change: str = "", of: list[Atoms] = FRAMES, by: Callable[[], Calculator] = tersoff) -> list[Atoms]:
    """Frames with labels, after a change of the list `frames`."""
    scope = {"frames": [bare(atoms) for atoms in of]}
    exec(change, scope)
    for atoms in scope["frames"]:
        atoms.calc = by()
        atoms.get_forces()
    return scope["frames"]


def answer(frames: list[Atoms]) -> dict[str, Any]:
    """A command that answers with these, whatever it is asked."""
    ase.io.write("given.extxyz", frames)
    return {"command": "cp given.extxyz {labelled} # {frames}"}


def test_a_command_may_leave_frames_out(project: Path) -> None:
    assert do(work(label=answer(labelled()[1:3]))).n_frames == 2


def test_frames_and_atoms_may_come_in_another_order(project: Path) -> None:
    # And moved by whole cells, rounded.
    swap = "frames = [a[::-1] for a in frames[::-1]]\nfor a in frames: a.positions = (a.positions + a.cell[0]).round(4)"
    system = do(work(label=answer(labelled(swap))))
    assert system.n_frames == len(FRAMES)
    for i, atoms in enumerate(FRAMES):
        assert system.frame(i).forces == pytest.approx(atoms.get_forces(), abs=0.02)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("frames[1].pbc = False", "not periodic"),
        ("frames[1].rattle(1.0)", r"atom \d is \d\.\d+ Å away"),
        ("frames[1] = frames[1][:-1]", "7 atoms in place of 8"),
        ("frames[1].symbols[3] = 'C'", "other species"),
        ("frames[1].set_cell(frames[1].cell * 1.01, scale_atoms=True)", "its cell differs by 0.0543 Å"),
        ("frames[1].positions[3] = frames[1].positions[4] + 0.1", r"atom 3 is \d\.\d+ Å away"),
    ],
)
def test_labels_of_other_frames_are_left_out(
    project: Path, change: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = labelled(change, by=lambda: LennardJones(rc=4))
    assert do(work(label=answer(frames))).n_frames == len(FRAMES) - 1
    assert re.search(f"labelled frame 1 is none that was asked for: {reason}", caplog.text)
    assert "1 of 5 frames have no labels and are left out" in caplog.text


def test_a_virial_that_is_none_is_told(project: Path) -> None:
    with pytest.raises(RunError, match=r"the labels cannot be read: .*expecting special 3x3 matrix"):
        do(work(label=answer(labelled("frames[1].info['virial'] = [1.0, 2.0, 3.0]"))))


def test_a_frame_that_is_labelled_twice_counts_once(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert do(work(label=answer(labelled("frames += frames[3:]")))).n_frames == len(FRAMES)
    assert "labelled frame 5 is there twice" in caplog.text
    assert "have no labels" not in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "n_frames", "message"),
    [
        ("stress", "nan", 5, "frame 2: its virial is left out"),
        ("stress", "1e300", 5, "frame 2: its virial is left out"),
        ("forces", "1e300", 4, "frame 2: its force is none, not finite, or beyond anything physical"),
        ("energy", "nan", 4, "frame 2: its energy is none, not finite"),
    ],
)
def test_what_is_no_result_is_left_out(
    project: Path, name: str, value: str, n_frames: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = labelled()
    results = {key: frames[2].calc.results[key] for key in ("energy", "forces", "stress")}
    results[name] = 0 * results[name] + float(value)
    frames[2].calc = SinglePointCalculator(frames[2], **results)
    carry_out(work(label=answer(frames)))
    systems = open_systems(["learn/label/data"], ["Si"])
    assert sum(system.n_frames for system in systems) == n_frames
    assert message in caplog.text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false {frames} {labelled}", "labelling ended with status 1"),
        ("true {frames} {labelled}", "the labelling has ended and has written no labels"),
        ("cp {frames} {labelled}", "none of 5 frames has both energy and forces"),
        ("echo garbage > {labelled}; true {frames}", "the labels cannot be read: ASE cannot read this as extxyz"),
    ],
)
def test_a_command_that_gives_no_labels(project: Path, command: str, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        do(work(label={"command": command}))
    assert "--format" not in str(caught.value)  # an option that `dphpc learn` lacks
    assert not Path("learn/label").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"calculator": "espreso"}, "did you mean 'espresso'"),
        ({"calculator": "no_such_module:Make"}, "No module named 'no_such_module'"),
        ({"calculator": "math:Make"}, "has no attribute 'Make'"),
        ({"calculator": "sys:exit"}, "the calculator 'sys:exit' cannot be made: SystemExit"),
        ({"calculator": FAILS, "parameters": {"frequently": 1}}, "unexpected keyword argument 'frequently'"),
        ({"calculator": "lj", "parameters": {"profile": {"command": "pw.x"}}}, "it takes no 'profile'"),
        ({"command": "no-such-program {frames} {labelled}"}, "there is no program 'no-such-program'"),
        ({"command": "A=1 B='2 3' no-such-program {frames} {labelled}"}, "there is no program 'no-such-program'"),
        ({"command": "(./label.sh {frames} {labelled})"}, "there is no program './label.sh'"),
        ({"command": "(true {frames} {labelled}"}, "the shell cannot read the command"),
    ],
)
def test_labels_that_cannot_be_made_are_told_before(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        label.check(parse_config(Label, given))


@pytest.mark.parametrize(
    "command",
    [
        "OMP_NUM_THREADS=1 python3 {frames} {labelled}",
        "cd /tmp && python3 {frames} {labelled}",
        "(cd /tmp; python3 a.py {frames} {labelled})",
        "{ true {frames}; } ; echo {labelled}",
        "if true; then cp {frames} {labelled}; fi",
        "$HOME/label.sh {frames} {labelled}",
        "~/label.sh {frames} {labelled}",
        "< {frames} cat > {labelled}",
        "cp {frames} {labelled} # it's",
    ],
)
def test_a_command_may_be_anything_that_a_shell_knows(command: str) -> None:
    label.check(parse_config(Label, {"command": command}))


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
    project: Path, labels: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sample, frame = bare(FRAMES[0]), FRAMES[0]
    if labels:
        given = {"energy": frame.get_potential_energy() - 0.8, "forces": frame.get_forces() + 0.25}
        sample.calc = SinglePointCalculator(sample, **given)
    first(sample, label=answer(labelled("frames[0] = frames[0][::-1]", FRAMES[:1])))
    assert ("by 100 meV/atom and 0.25 eV/Å" in caplog.text) == labels


def first(sample: Atoms, **changes: Any) -> None:
    """Do the labelling of a first frame."""
    carry_out(label.first_label(parse_config(LearnConfig, settings(**changes)), CHECK, sample, ["Si"]))


CHECK = Path("learn/check")


@pytest.mark.parametrize("change", ["frames[0].rattle(1.0)", "frames[0] = frames[0][:-1]"])
def test_a_first_label_of_another_frame_is_no_label(project: Path, change: str) -> None:
    for _ in range(2):  # the check is not done by that, and comes again
        with pytest.raises(
            RunError, match=r"none of 1 frames has .*\n  \| labelled frame 0 is none that was asked for"
        ):
            first(bare(FRAMES[0]), label=answer(labelled(change, FRAMES[:1])))
        assert not CHECK.exists()
