"""Runs that go on from restarts: by another plan, with what other runs left, and killed at awkward moments."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import pytest

from dphpc.core.errors import AstrayError, DataError, InputError, RunError
from dphpc.core.files import claimed
from dphpc.md import restart
from dphpc.md.integrators import Integrator
from dphpc.md.restart import read_restart
from dphpc.md.run import Run, run_md
from dphpc.md.sealed import previous_of
from dphpc.parallel.comm import Communicator, agree
from dphpc.potential.contract import Outputs
from tests.lennard_jones import LennardJones

Make = Callable[..., dict[str, Any]]

NVE = {"ensemble": "nve", "steps": 10}


def nvt(thermostat: str, steps: int = 10) -> dict[str, Any]:
    return {"ensemble": "nvt", "thermostat": thermostat, "temperature_K": 80, "steps": steps}


pytestmark = pytest.mark.two_ranks


def files(folder: Path, suffix: str = "extxyz", every: int = 1000) -> dict[str, Any]:
    return {
        "thermo": {"every": 3, "file": str(folder / "t.csv")},
        "trajectory": {"every": 3, "file": str(folder / f"t.{suffix}")},
        "restart": {"every": every, "file": str(folder / "r.h5")},
    }


def rows(folder: Path) -> list[int]:
    """Steps in the thermo file."""
    return [int(line.split(",")[0]) for line in (folder / "t.csv").read_text().splitlines()[1:]]


def same(one: Path, other: Path) -> bool:
    """Whether two runs wrote the same thermo and trajectory files."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("t.csv", "t.extxyz"))


@pytest.mark.mpi
@pytest.mark.parametrize("thermostat", ["bussi", "nose-hoover", "langevin"])
def test_a_new_plan_keeps_what_the_old_ones_thermostat_took(
    comm: Communicator, config: Make, argon: LennardJones, thermostat: str
) -> None:
    folder = Path(config()["structure"]).parent
    one, two = files(folder / "one"), files(folder / "two")
    run_md(config(stages=[nvt(thermostat, 9), NVE], **one), comm=comm, potential=argon)
    run_md(config(stages=[nvt(thermostat, 9)], **two), comm=comm, potential=argon)
    again = {"structure": two["restart"]["file"], "replicate": None}
    run_md(config(stages=[NVE], **two, **again), comm=comm, potential=argon)
    comm.barrier()
    assert rows(folder / "two") == [0, 3, 6, 9, 12, 15, 18, 19]
    assert same(folder / "one", folder / "two")


@pytest.mark.mpi
@pytest.mark.parametrize("suffix", ["extxyz", "h5md"])
def test_outputs_that_a_restart_does_not_know_are_begun_anew(
    comm: Communicator, config: Make, argon: LennardJones, suffix: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Those of a first try in another folder than the restart's, longer than those that the restart counts."""
    folder = Path(config()["structure"]).parent
    names = files(Path(), suffix)

    def run(place: str, steps: int, **changes: Any) -> None:
        if comm.rank == 0:
            (folder / place).mkdir(exist_ok=True)
        comm.barrier()
        monkeypatch.chdir(folder / place)
        stages = [nvt("bussi" if place == "eq" else "langevin", steps)]
        run_md(config(stages=stages, **{**names, **changes}), comm=comm, potential=argon)

    start = {"structure": "../eq/r.h5", "replicate": None}
    run("eq", 9)
    run("once", 15, seed=2, **start)
    run("twice", 30, seed=3, restart=None, **start)
    capsys.readouterr()
    run("twice", 15, seed=2, **start)
    out = capsys.readouterr().out
    for name in ("t.csv", f"t.{suffix}"):
        line = f"restart:   {name} is not the file that it left (another run wrote it, or it was changed), and is begun"
        assert (line in out) == (comm.rank == 0)
    assert rows(folder / "twice") == [9, 12, 15, 18, 21, 24]
    if suffix == "extxyz":
        assert same(folder / "once", folder / "twice")
    elif comm.rank == 0:
        with h5py.File("t.h5md") as one, h5py.File("../once/t.h5md") as other:
            assert one["particles/all/position/step"][:].tolist() == [9, 12, 15, 18, 21, 24]
            assert (one["particles/all/position/value"][:] == other["particles/all/position/value"][:]).all()
    comm.barrier()


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content + b"more of another run")


def fewer_frames(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in ("step", "time", "value"):
            file["particles/all/position"][name].resize(2, axis=0)


def other_positions(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["particles/all/position/value"][-1, 0] += 0.5


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("t.csv", shortened, r"it has [\d,]+ bytes, not [\d,]+"),
        ("t.extxyz", changed, "another run wrote it, or it was changed"),
        ("t.h5md", shortened, "it cannot be read"),
        ("t.h5md", fewer_frames, "it has 2 frames, not 4"),
        ("t.h5md", other_positions, "another run wrote it, or it was changed"),
    ],
)
def test_a_run_does_not_go_on_with_an_output_that_is_not_its_own(
    comm: Communicator, config: Make, argon: LennardJones, name: str, damage: Callable[[Path], None], message: str
) -> None:
    folder = Path(config()["structure"]).parent
    run = config(stages=[NVE], **files(folder, "h5md" if name == "t.h5md" else "extxyz"))
    run_md(run | {"stages": [NVE | {"steps": 9}]}, comm=comm, potential=argon)
    if comm.rank == 0:
        damage(folder / name)
    comm.barrier()
    before = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    with pytest.raises(DataError, match=rf"(?s)as the restart file left it: {message}.*{name}.*move it away") as caught:
        run_md(run, resume=True, comm=comm, potential=argon)
    assert caught.value.speaks == (comm.rank == 0)
    assert {path: path.read_bytes() for path in sorted(folder.iterdir())} == before
    comm.barrier()
    if comm.rank == 0:
        (folder / name).unlink()
    comm.barrier()
    assert run_md(run, resume=True, comm=comm, potential=argon).steps == 1


def test_a_file_has_one_format(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    run = config(stages=[NVE], **files(tmp_path))
    run["trajectory"]["format"] = "extxyz"
    run_md(run | {"stages": [NVE | {"steps": 9}]}, potential=argon)
    before = (tmp_path / "t.extxyz").read_bytes()
    run["trajectory"]["format"] = "lammps"
    again = run | {"structure": run["restart"]["file"], "replicate": [1, 1, 1], "restart": None}
    for changes in (run, again):  # also where another run goes on with the file
        with pytest.raises(DataError, match=r"(?s)another format than lammps.*t.extxyz.*expected: extxyz"):
            run_md(changes, resume=changes is run, potential=argon)
    assert (tmp_path / "t.extxyz").read_bytes() == before


def test_an_output_goes_on_under_another_name_of_it(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    run = config(stages=[NVE], **files(tmp_path))
    run_md(run | {"stages": [NVE | {"steps": 9}]}, potential=argon)
    run["thermo"]["file"] = str(tmp_path / ".." / tmp_path.name / "t.csv")
    run_md(run, resume=True, potential=argon)
    assert rows(tmp_path) == [0, 3, 6, 9, 10]


def test_an_older_restart_tells_lengths_alone(
    config: Make, argon: LennardJones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = restart._fill

    def older(file: h5py.File, engine: Any, meta: dict[str, Any], saved: Any) -> None:
        lengths = {name: extent["at"] for name, extent in meta["files"].items()}
        meta = {key: value for key, value in meta.items() if key not in ("ends", "account")}
        fill(file, engine, meta | {"files": lengths}, saved)

    for suffix in ("extxyz", "h5md"):
        folder = tmp_path / suffix
        run = config(stages=[NVE], **files(folder, suffix))
        with monkeypatch.context() as patch:
            patch.setattr(restart, "_fill", older)
            run_md(run | {"stages": [NVE | {"steps": 9}]}, potential=argon)
        run_md(run, resume=True, potential=argon)
        assert rows(folder) == [0, 3, 6, 9, 10]


@pytest.mark.mpi
@pytest.mark.parametrize(("before", "message"), [(False, "has no velocities"), (True, "has velocities")])
def test_fields_of_an_h5md_file_stay(
    comm: Communicator, config: Make, argon: LennardJones, before: bool, message: str
) -> None:
    folder = Path(config()["structure"]).parent
    run = config(stages=[NVE], **files(folder, "h5md"))
    run["trajectory"]["velocities"] = before
    run_md(run | {"stages": [NVE | {"steps": 9}]}, comm=comm, potential=argon)
    run["trajectory"] = run["trajectory"] | {"velocities": not before}
    expected = rf"(?s){message}.*t.h5md.*expected: velocities: {str(before).lower()}"
    with pytest.raises(DataError, match=expected):
        run_md(run, resume=True, comm=comm, potential=argon)
    assert rows(folder) == [0, 3, 6, 9]


@pytest.mark.mpi
@pytest.mark.parametrize("every", [1000, 5])
def test_a_run_that_fails_before_its_last_rows_writes_them_when_it_goes_on(
    comm: Communicator, config: Make, argon: LennardJones, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a restart is due at the last step."""
    folder = Path(config()["structure"]).parent
    write = Run._write

    def failing(self: Run, integrator: Integrator, first: bool = False, last: bool = False) -> None:
        if last:
            agree(self.comm, RunError("the disk is full"))
        write(self, integrator, first, last)

    whole, part = (config(stages=[NVE], **files(folder / name, every=every)) for name in ("whole", "part"))
    run_md(whole, comm=comm, potential=argon)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_write", failing)
        with pytest.raises(RunError, match="the disk is full"):
            run_md(part, comm=comm, potential=argon)
    run_md(part, resume=True, comm=comm, potential=argon)
    comm.barrier()
    assert rows(folder / "part") == [0, 3, 6, 9, 10]
    assert same(folder / "whole", folder / "part")
    with pytest.raises(InputError, match="the run is complete"):
        run_md(part, resume=True, comm=comm, potential=argon)


@pytest.mark.mpi
def test_a_new_run_that_ends_before_its_first_restart_begins_anew(
    comm: Communicator, config: Make, argon: LennardJones
) -> None:
    """It does not go on from another run's restart file under the same name."""
    folder = Path(config()["structure"]).parent
    run, file = config(stages=[NVE], **files(folder)), folder / "r.h5"
    run_md(run | {"stages": [NVE | {"steps": 8}], "restart": run["restart"] | {"every": 4}}, comm=comm, potential=argon)
    before = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    comm.barrier()
    with pytest.raises(InputError, match="no file"):
        run_md(run | {"structure": "nowhere.extxyz"}, comm=comm, potential=argon)
    with pytest.raises(RunError, match="failed by the test"):
        run_md(run, comm=comm, potential=Failing(argon, 1))
    assert {path: path.read_bytes() for path in sorted(folder.iterdir())} == before, "it had not begun"
    comm.barrier()
    with pytest.raises(RunError, match="failed by the test"):
        run_md(run, comm=comm, potential=Failing(argon, 6))
    assert not file.exists()
    assert not previous_of(file).exists()
    assert run_md(run, resume=True, comm=comm, potential=argon).steps == 10
    assert rows(folder) == [0, 3, 6, 9, 10]


@pytest.mark.mpi
def test_files_that_a_new_run_replaces_are_named(
    comm: Communicator, config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(config()["structure"]).parent
    run, warning = config(stages=[NVE], **files(folder, every=5)), "warning:   files of an earlier run are replaced: "

    def said(**changes: Any) -> list[str]:
        resume = changes.pop("resume", False)
        run_md(run | changes, resume=resume, comm=comm, potential=argon)
        comm.barrier()
        return [line.removeprefix(warning) for line in capsys.readouterr().out.splitlines() if warning in line]

    outputs, restarts = f"{folder / 't.csv'}, {folder / 't.extxyz'}", f"{folder / 'r.h5'}, {folder / 'r.previous.h5'}"
    move = "; to keep them: move them away"
    here = comm.rank == 0
    assert said() == []
    assert said() == [f"{outputs}, {restarts}; to go on from its restart file: --continue{move}"] * here
    assert said(resume=True, stages=[NVE | {"steps": 20}]) == []
    other = {"file": str(folder / "other.csv")}
    if here:
        Path(other["file"]).write_text("of another run")
    comm.barrier()
    assert said(resume=True, stages=[NVE | {"steps": 30}], thermo=other) == [f"{other['file']}{move}"] * here


@pytest.mark.mpi
def test_a_run_that_goes_astray_names_the_restart_from_which_it_went_on(
    comm: Communicator, config: Make, argon: LennardJones
) -> None:
    folder = Path(config()["structure"]).parent
    run, file = config(stages=[NVE], **files(folder)), folder / "r.h5"
    run_md(run, comm=comm, potential=argon)
    longer, fast = run | {"stages": [NVE | {"steps": 40}]}, {"timestep_fs": 4000.0}
    message = rf"(?s)step 11,.*the last good restart is {file} \(step 10\), from which the run went on$"
    with pytest.raises(AstrayError, match=message):
        run_md(longer | fast, resume=True, comm=comm, potential=argon)
    assert read_restart(str(file))[1].step == 10


@pytest.mark.mpi
def test_what_a_run_starts_from_stays(comm: Communicator, config: Make, argon: LennardJones) -> None:
    folder = Path(config()["structure"]).parent
    run, file = config(stages=[NVE], **files(folder, every=5)), folder / "r.h5"
    kept = previous_of(file)
    run_md(run, comm=comm, potential=argon)
    for start, exists, then in ((file, True, 10), (kept, False, 5)):
        again = run | {"structure": str(start), "replicate": [1, 1, 1], "stages": [nvt("bussi")]}
        with pytest.raises(RunError, match="failed by the test"):
            run_md(again, comm=comm, potential=Failing(argon, 4))
        assert file.exists() == exists
        assert read_restart(str(start))[1].step == then
        assert read_restart(str(kept))[1].step == 5
        comm.barrier()
    run_md(again, comm=comm, potential=argon)
    assert (read_restart(str(file))[1].step, read_restart(str(kept))[1].step) == (15, 10)


@pytest.mark.mpi
def test_a_restart_of_elsewhere_is_not_the_one_before(comm: Communicator, config: Make, argon: LennardJones) -> None:
    """Nor is what another run has left here."""
    folder = Path(config()["structure"]).parent
    here, there = files(folder / "here"), files(folder / "there")
    file = folder / "here" / "r.h5"
    run_md(config(stages=[NVE], **there), comm=comm, potential=argon)
    run_md(config(stages=[NVE | {"steps": 40}], **files(folder / "here", every=20)), comm=comm, potential=argon)
    start = {"structure": there["restart"]["file"], "replicate": None, "stages": [nvt("bussi", 4)]}
    run_md(config(**here, **start), comm=comm, potential=argon)
    assert read_restart(str(file))[1].step == 14
    assert not previous_of(file).exists()


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["r.h5", "../{folder}/r.h5"])
def test_a_plan_from_the_own_restart_is_done_once(
    comm: Communicator, config: Make, argon: LennardJones, name: str
) -> None:
    """Under whatever name; also where it was killed before its first restart, and after."""
    folder = Path(config()["structure"]).parent
    run = config(stages=[NVE], **files(folder))
    run_md(run, comm=comm, potential=argon)
    start = str(folder / name.format(folder=folder.name))
    run |= {"structure": start, "replicate": [1, 1, 1], "stages": [nvt("bussi", 12)]}
    with pytest.raises(RunError, match="failed by the test"):
        run_md(run, resume=True, comm=comm, potential=Failing(argon, 5))
    assert run_md(run, resume=True, comm=comm, potential=argon).steps == 12
    with pytest.raises(InputError, match="the run is complete"):
        run_md(run, resume=True, comm=comm, potential=argon)
    run["stages"] = [nvt("bussi", 14)]
    assert run_md(run, resume=True, comm=comm, potential=argon).steps == 2
    assert rows(folder) == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert run_md(run, comm=comm, potential=argon).steps == 14, "without --continue once more"


def test_what_has_changed_in_the_stages_is_named(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    ramp = nvt("bussi") | {"temperature_K": [60, 90]}
    run = config(stages=[NVE, ramp], **files(tmp_path))
    run_md(run, potential=argon)
    for stages, message in [
        ([NVE, ramp], r"(?s)the run is complete.*remedy:   add a stage; for a new plan"),
        ([NVE, ramp | {"steps": 20}], r"(?s)other stages.*stage 2: steps\n.*ramp that is longer is another.*leave"),
        ([NVE | {"steps": 12}, ramp], r"(?s)other stages.*stage 1: steps\n"),
        ([NVE, nvt("langevin"), NVE], r"(?s)other stages.*stage 2: thermostat, temperature_K\n"),
        ([NVE], r"(?s)other stages.*stage 2: missing\n"),
    ]:
        with pytest.raises(InputError, match=message):
            run_md(run | {"stages": stages}, resume=True, potential=argon)
    assert run_md(run | {"stages": [NVE, ramp, NVE]}, resume=True, potential=argon).steps == 10


def test_another_runs_restart_file_is_not_continued(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    run = config(stages=[NVE], **files(tmp_path))
    run_md(run, potential=argon)
    longer, other = {"stages": [NVE | {"steps": 12}]}, tmp_path / "other.extxyz"
    other.write_bytes(Path(run["structure"]).read_bytes())
    for changes, message in [
        (
            {"structure": str(other)},
            rf"(?s)its structure is {Path(run['structure']).name}, the run file's other.extxyz",
        ),
        ({"replicate": [1, 1, 1]}, r"(?s)its replicate is .*, the run file's \[1, 1, 1\].*remedy:   move it away"),
    ]:
        with pytest.raises(InputError, match=message):
            run_md(run | longer | changes, resume=True, potential=argon)
    moved = tmp_path / "moved" / Path(run["structure"]).name
    moved.parent.mkdir()
    moved.write_bytes(other.read_bytes())
    assert run_md(run | longer | {"structure": str(moved)}, resume=True, potential=argon).steps == 2


@pytest.mark.parametrize("resume", [False, True])
def test_a_restart_is_not_replicated(config: Make, argon: LennardJones, tmp_path: Path, resume: bool) -> None:
    run = config(stages=[NVE], **files(tmp_path))
    run_md(run, potential=argon)
    with pytest.raises(InputError, match="a restart cannot be replicated"):
        run_md(run | {"structure": str(tmp_path / "r.h5")}, resume=resume, potential=argon)


class Failing:
    """A potential that fails at one of its calls."""

    def __init__(self, inner: LennardJones, call: int) -> None:
        self.inner, self.cutoff, self.type_map, self.left = inner, inner.cutoff, inner.type_map, call
        self.memory_per_atom = inner.memory_per_atom

    def compute(self, state: Any, neighbors: Any, halo: Any, outputs: Outputs, centers: Any = None) -> None:
        self.left -= 1
        if self.left < 1:
            raise RunError("failed by the test")
        self.inner.compute(state, neighbors, halo, outputs, centers)


class Curious(LennardJones):
    """Notes which files nobody else may write now."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(["Ar"], cutoff=6.5, cutoff_smooth=5.0)
        self.paths, self.found = paths, set[str]()

    def compute(self, *arguments: Any) -> None:
        super().compute(*arguments)
        self.found |= {path.name for path in self.paths if path.exists() and not is_free(path)}


def is_free(path: Path) -> bool:
    try:
        with claimed([path]):
            return True
    except InputError:
        return False


@pytest.mark.mpi
@pytest.mark.parametrize("suffix", ["extxyz", "h5md"])
def test_a_second_run_leaves_the_files_of_one_that_goes_on(comm: Communicator, config: Make, suffix: str) -> None:
    folder = Path(config()["structure"]).parent
    outputs = files(folder, suffix)
    names = ["t.csv", f"t.{suffix}", "r.h5"]
    argon = Curious([folder / name for name in names if comm.rank == 0])  # two ranks would find each other's claims
    run_md(config(stages=[NVE], **outputs), comm=comm, potential=argon)
    assert argon.found == ({"t.csv", "t.extxyz"} & {*names} if comm.rank == 0 else set())
    before = [(folder / name).read_bytes() for name in names]
    comm.barrier()
    longer = config(stages=[{**NVE, "steps": 20}], **outputs)
    with claimed([folder / "t.csv"]) if comm.rank == 0 else nullcontext():
        for resume in (False, True):
            with pytest.raises(InputError, match="another run that has not ended"):
                run_md(longer, comm=comm, potential=argon, resume=resume)
    assert [(folder / name).read_bytes() for name in names] == before
    comm.barrier()
    run_md(longer, comm=comm, potential=argon, resume=True)
    assert rows(folder) == [0, 3, 6, 9, 12, 15, 18, 20]
