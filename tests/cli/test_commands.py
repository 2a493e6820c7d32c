"""Every command, once in a process of its own as a user runs it: its output, its files, its messages."""

import json
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms

from dphpc import DeepPot, __version__
from dphpc.cli.main import main
from dphpc.core.errors import InputError
from dphpc.model.model_file import read_model, write_model
from dphpc.parallel.comm import world
from dphpc.plots.tables import read_table
from dphpc.potential.committee import Measure
from dphpc.train.evaluate import model_devi
from tests.cli.conftest import Run
from tests.full_disk import full_disk
from tests.models import random_model, random_structure

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three labelled frames of a small system in DeePMD-kit's npy format, and the model that labelled them."""
    model = random_model(seed=1)
    write_model(model, tmp_path / "model.dp")
    write_model(random_model(seed=2), tmp_path / "other.dp")
    positions, cell, types = random_structure()
    coords = positions[None] + np.random.default_rng(0).normal(scale=0.02, size=(3, *positions.shape))
    cells = np.repeat(cell[None], 3, axis=0)
    energy, force, virial = DeepPot(model).eval(coords, cells, types)
    system = tmp_path / "data" / "one"
    (system / "set.000").mkdir(parents=True)
    np.savetxt(system / "type.raw", types, fmt="%d")
    (system / "type_map.raw").write_text("O\nH\n")
    arrays = {"coord": coords, "box": cells, "energy": energy + 0.24, "force": force + 0.1, "virial": virial}
    for name, values in arrays.items():
        np.save(system / "set.000" / f"{name}.npy", values.reshape(3, -1))
    return system


TRAINING = {
    "model": {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_e2_a", "rcut": 4.0, "rcut_smth": 1.0, "sel": "auto", "neuron": [4, 8], "axis_neuron": 2,
            "seed": 1,
        },
        "fitting_net": {"neuron": [8, 8], "seed": 1},
    },
    "learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_steps": 10},
    "loss": {"type": "ener", "start_pref_e": 1, "limit_pref_e": 1, "start_pref_f": 100, "limit_pref_f": 1},
    "training": {
        "training_data": {"systems": ["data"], "batch_size": 1}, "numb_steps": 4, "disp_freq": 2, "save_freq": 2,
        "seed": 1,
    },
}  # fmt: skip


def test_train_freeze_and_compress(run: Run, process: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text(json.dumps(TRAINING))
    done = process("--pt", "train", "input.json", "-o", "full.json")
    assert "batch       4" in done.stderr
    assert read_table(tmp_path / "lcurve.out")["step"][-1] == 4
    assert json.loads((tmp_path / "full.json").read_text())["training"]["numb_steps"] == 4
    process("freeze", "-o", "frozen.dp")
    assert DeepPot(tmp_path / "frozen.dp").get_type_map() == ["O", "H"]
    assert "largest error" in process("compress", "-i", "frozen.dp", "-o", "compressed.dp").stdout
    table = next(line for line in run("show", "compressed.dp").stdout.splitlines() if "table" in line)
    assert "intervals" in table
    done = run("train", "input.json", "--restart", ".", status=1)
    assert "numb_steps" in done.stderr
    longer = TRAINING | {"training": TRAINING["training"] | {"numb_steps": 6}}
    (tmp_path / "input.json").write_text(json.dumps(longer))
    run("train", "input.json", "--restart", "model.ckpt", "--log-path", "train.log")
    assert read_table(tmp_path / "lcurve.out")["step"][-1] == 6
    assert "batch       6" in (tmp_path / "train.log").read_text()


def test_an_interrupted_training_says_so_by_its_status(data: Path, tmp_path: Path) -> None:
    endless = TRAINING | {"training": TRAINING["training"] | {"numb_steps": 10**7, "disp_freq": 10, "save_freq": 10**6}}
    (tmp_path / "input.json").write_text(json.dumps(endless))
    command = [sys.executable, "-m", "dphpc", "train", "input.json"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("batch      10") for line in process.stderr)
        process.terminate()
        process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.glob("model.ckpt-*.safetensors"))


def test_a_wrong_training_input_is_explained(run: Run, data: Path, tmp_path: Path) -> None:
    wrong = json.loads(json.dumps(TRAINING))
    wrong["model"]["descriptor"]["rcutt"] = wrong["model"]["descriptor"].pop("rcut")
    (tmp_path / "input.json").write_text(json.dumps(wrong))
    message = run("train", "input.json", status=1).stderr
    assert "rcutt" in message
    assert "did you mean 'rcut'" in message
    (tmp_path / "input.json").write_text("{ no json")
    assert "input.json" in run("train", "input.json", status=1).stderr
    assert "nothing.json" in run("train", "nothing.json", status=1).stderr
    with pytest.raises(InputError):
        main(["train", str(tmp_path / "nothing.json"), "--debug"])


def test_test_and_model_devi(run: Run, process: Run, data: Path, tmp_path: Path) -> None:
    done = process("test", "-m", "model.dp", "-s", "data", "-n", "2", "-d", "detail")
    lines = [
        line.split()
        for line in done.stdout.splitlines()
        if "Energy RMSE/Natoms" in line or "Energy RMSE/natoms" in line
    ]
    assert float(lines[0][-2]) == pytest.approx(0.01)  # 0.24 eV over 24 atoms
    force = next(line for line in done.stdout.splitlines() if line.startswith("Force") and "RMSE" in line)
    assert float(force.split()[-2]) == pytest.approx(0.1)
    assert len(np.loadtxt(tmp_path / "detail.f.out")) == 2 * 24
    (tmp_path / "my data").symlink_to("data")
    (tmp_path / "systems.txt").write_text("my data/one\n\n")
    by_list = run("test", "-m", "model.dp", "-f", "systems.txt", "--shuffle-test", "-n", "3", "--device", "auto")
    assert "number of test data : 3" in by_list.stdout
    assert process("plot", "parity", "detail", "-o", "parity.png").stdout.strip() == "parity.png"
    process("model-devi", "-m", "model.dp", "other.dp", "-s", "data", "-o", "devi.out", "-f", "5")
    table = read_table(tmp_path / "devi.out")
    np.testing.assert_array_equal(table["step"], [0, 5, 10])
    assert table["max_devi_f"].min() > 0
    assert run("plot", "devi.out").stdout.strip() == "devi.png"
    assert "two or more" in run("model-devi", "-m", "model.dp", "-s", "data", status=1).stderr
    twice = run("model-devi", "-m", "model.dp", "./model.dp", "-s", "data", status=1)
    assert "'model.dp' is given twice" in twice.stderr
    for command, flag in (("test", "-n"), ("model-devi", "-f")):
        assert "greater than or" in run(command, "-m", "model.dp", flag, "-3", status=2).stderr
    for command in (["test", "-m", "model.dp"], ["model-devi", "-m", "model.dp", "other.dp"]):
        assert "unknown device 'gpu'" in run(*command, "-s", "data", "--device", "gpu", status=1).stderr


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("data convert data out", "out"),
        ("data convert data out.hdf5", "out.hdf5"),
        ("data convert data out.lmdb", "out.lmdb"),
        ("compress -i model.dp -o out.dp", "out.dp"),
        ("test -m model.dp -s data -d detail", "detail.e.out"),
        ("model-devi -m model.dp other.dp -s data -o devi.out", "devi.out"),
        ("plot lcurve.out -o out.png", "out.png"),
    ],
)
def test_a_full_disk_is_told_with_the_file_which_is_not_left_in_part(
    run: Run, data: Path, tmp_path: Path, command: str, written: str
) -> None:
    (tmp_path / "lcurve.out").write_text("# step rmse_f_trn lr\n1 0.5 1e-3\n2 0.4 1e-3\n")
    before = set(tmp_path.iterdir())
    with full_disk(100):
        said = run(*command.split(), status=1).stderr
    assert "cannot be written: " in said
    assert f"where:    {written}" in said
    assert "check space and permissions" in said
    assert ".part" not in said, "the name of the temporary file helps nobody"
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"devi.out"}  # grows as it is evaluated


def test_test_of_atomic_energies(run: Run, data: Path, tmp_path: Path) -> None:
    command = "test", "-m", "model.dp", "-s", "data", "-d", "detail", "-a"
    assert "no atom_ener.npy" in run(*command, status=1).stderr
    np.save(data / "set.000" / "atom_ener.npy", np.zeros((3, 24)))
    assert "Atomic ener RMSE" in run(*command).stdout
    assert np.loadtxt(tmp_path / "detail.ae.out").shape == (3 * 24, 2)
    assert run("plot", "detail").stdout.strip() == "parity.png"


def test_measures_of_model_devi(run: Run, data: Path, tmp_path: Path) -> None:
    flags = "--atomic", "--relative", "0.5", "--relative_v", "0.1", "--real_error"
    models = "model.dp", "other.dp"
    assert run("model-devi", "-m", *models, "-s", "data", *flags).stdout.strip() == "model_devi.out"
    measure = Measure(atomic=True, relative=0.5, relative_v=0.1, real_error=True)
    rows = model_devi([tmp_path / m for m in models], str(data), tmp_path / "api.out", measure=measure)
    written = np.loadtxt(tmp_path / "model_devi.out")
    assert written.shape == (3, 8 + 24)
    assert written[:, 1:8] == pytest.approx(rows, rel=1e-5)
    assert written[:, 8:].max(axis=1) == pytest.approx(rows[:, 3], rel=1e-5)
    assert run("plot", "model_devi.out").stdout.strip() == "devi.png"


def test_one_rank_does_the_work_of_one(data: Path, tmp_path: Path, mpirun: list[str]) -> None:
    command = [*mpirun, "-n", "2", sys.executable, "-m", "dphpc", "test", "-m", "model.dp", "-s", "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# testing system : ") == 1
    assert done.stderr.count("2 ranks were started: one does the work") == 1


def test_change_bias(run: Run, process: Run, data: Path, tmp_path: Path) -> None:
    before = read_model(tmp_path / "model.dp").energy_bias
    done = process("--pt", "change-bias", "model.dp", "-s", "data")
    assert done.stdout.strip() == "model_updated.dp"
    assert "energy bias of O H in eV" in done.stderr
    after = read_model(tmp_path / "model_updated.dp").energy_bias
    assert after == pytest.approx(before + 0.01, abs=1e-9)  # 0.24 eV over 24 atoms
    run("change-bias", "model.dp", "-s", "data/one", "data", "-n", "1", "-m", "change", "-o", "twice.yaml")
    assert read_model(tmp_path / "twice.yaml").energy_bias == pytest.approx(after, abs=1e-9)
    (tmp_path / "systems.txt").write_text("data/one\n")
    run("change-bias", "model.dp", "-f", "systems.txt", "-m", "set", "-o", "set.dp")
    assert read_model(tmp_path / "set.dp").energy_bias != pytest.approx(after, abs=1e-3)
    run("change-bias", "model.dp", "-b", "-93.57", "-.5", "-o", "given.dp")
    assert np.array_equal(read_model(tmp_path / "given.dp").energy_bias, [-93.57, -0.5])
    assert "2 finite numbers" in run("change-bias", "model.dp", "-b", "-93.57", status=1).stderr
    assert "shift" in run("change-bias", "model.dp", "-s", "data", "-m", "shift", status=2).stderr
    (data / "set.000/energy.npy").unlink()
    assert "no energy.npy" in run("change-bias", "model.dp", "-s", "data", status=1).stderr


def test_finetune(run: Run, data: Path, tmp_path: Path) -> None:
    begin = json.loads(json.dumps(TRAINING)) | {"model": {"type_map": ["O", "H"], "descriptor": {}}}
    begin["training"]["numb_steps"] = 0
    (tmp_path / "input.json").write_text(json.dumps(begin))
    done = run("--pt", "train", "input.json", "-t", "model.dp", "--use-pretrain-script")
    assert "energy bias of O H in eV" in done.stderr
    run("freeze", "-o", "f.dp")
    old, new = (read_model(tmp_path / name).energy_bias for name in ("model.dp", "f.dp"))
    assert new == pytest.approx(old + 0.01, abs=1e-9)
    message = run("train", "input.json", "--finetune", "model.dp", "--init-model", "model.dp", status=1).stderr
    assert "exclude each other" in message


def test_neighbor_stat_takes_several_types(run: Run, process: Run, data: Path) -> None:
    done = process("neighbor-stat", "-s", "data", "-r", "4.0", "-t", "O", "H")
    counts = next(line for line in done.stdout.splitlines() if line.startswith("max_nbor_size"))
    assert len(counts.split(":")[1].strip(" []").split()) == 2
    for flag in ("--mixed-type", "--one-type"):
        mixed = run("neighbor-stat", "-s", "data", "-r", "4.0", flag).stdout.splitlines()[-1]
        assert len(mixed.split(":")[1].strip(" []").split()) == 1
    assert "does not exist" in run("neighbor-stat", "-s", "nowhere", "-r", "4.0", status=1).stderr


def test_results_go_into_the_log_file(run: Run, data: Path, tmp_path: Path) -> None:
    for command in (["test", "-m", "model.dp"], ["neighbor-stat", "-r", "4.0"]):
        done = run(*command, "-s", "data", "-l", f"{command[0]}.log")
        logged = [line.partition(" INFO    ")[2] for line in (tmp_path / f"{command[0]}.log").read_text().splitlines()]
        assert logged == [line for line in done.stdout.splitlines() if line]
        assert done.stdout.splitlines()[-1] not in done.stderr
    for arguments in (["show", "model.dp"], ["md", "run.yaml"]):
        done = run(*arguments, "-l", "nothing/a.log", status=1)
        assert "the file cannot be written" in done.stderr
        assert not done.stdout


def test_show(run: Run, process: Run, data: Path, tmp_path: Path) -> None:
    assert "type-map  O H" in process("show", "model.dp").stdout
    assert run("show", "model.dp", "type-map", "sel").stdout.splitlines() == ["type-map: O H", "sel: 24 24"]
    assert "did you mean 'type-map'" in run("show", "model.dp", "type_map", status=1).stderr
    (tmp_path / "broken.dp").write_bytes(b"no model")
    assert "broken.dp" in run("show", "broken.dp", status=1).stderr
    assert "nothing.dp" in run("show", "nothing.dp", status=1).stderr


RUN_FILE = """
structure: start.poscar
model: model.dp
timestep_fs: 0.1
velocities: {temperature_K: 50, seed: 1}
stages:
  - {ensemble: nve, steps: 4}
thermo: {every: 2, file: thermo.csv}
trajectory: {every: 2, file: traj.extxyz}
"""


def write_md_inputs(folder: Path) -> None:
    """A model, a structure and a run file."""
    write_model(random_model(seed=1), folder / "model.dp")
    positions, cell, types = random_structure()
    atoms = Atoms([("O", "H")[t] for t in types], positions=positions, cell=cell, pbc=True)
    ase.io.write(folder / "start.poscar", atoms, format="vasp", parallel=False)
    (folder / "run.yaml").write_text(RUN_FILE)


def test_md(run: Run, process: Run, tmp_path: Path) -> None:
    write_md_inputs(tmp_path)
    process("md", "run.yaml")
    table = read_table(tmp_path / "thermo.csv")
    np.testing.assert_array_equal(table["step"], [0, 2, 4])
    assert len(ase.io.read(tmp_path / "traj.extxyz", ":")) == 3
    assert run("plot", "thermo", "thermo.csv").stdout.strip() == "thermo.png"
    assert run("plot", "traj.extxyz", "--pair", "O", "H", "--rmax", "8", "-o", "oh.csv").stdout.strip() == "oh.csv"
    assert read_table(tmp_path / "oh.csv")["r_A"][-1] == 7.975
    assert "--continue, from another one by" in run("md", "run.yaml", "--restart", "r.h5", status=2).stderr
    done = run("md", "run.yaml")
    assert "warning:   files of an earlier run are replaced: thermo.csv, traj.extxyz; to keep" in done.stdout
    for name in ("thermo.csv", "traj.extxyz"):
        (tmp_path / name).unlink()
    done = run("md", "run.yaml", "-l", "md.log", "-v", "WARNING")
    assert not done.stdout + done.stderr
    assert not (tmp_path / "md.log").read_text()
    for name in ("thermo.csv", "traj.extxyz"):
        (tmp_path / name).unlink()
    done = run("md", "run.yaml", "-l", "md.log")
    assert done.stderr == ""
    for line in (line for line in done.stdout.splitlines() if line):
        assert f"dphpc.md.output INFO    {line}\n" in (tmp_path / "md.log").read_text()
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("timestep_fs", "timestep"))
    assert "did you mean 'timestep_fs'" in run("md", "run.yaml", status=1).stderr


@pytest.mark.parametrize(
    ("command", "name", "words"),
    [
        ("md", "input.json", "a training input: it has the keys learning_rate, training"),
        ("train", "run.yaml", "a run file of molecular dynamics: it has the keys stages, structure"),
        ("md", "learn.yaml", "a run file of active learning: it has the keys label, rounds, train"),
        ("train", "learn.yaml", "a run file of active learning: it has the keys label, rounds, train"),
        ("learn", "input.json", "a training input"),
        ("learn", "run.yaml", "a run file of molecular dynamics"),
    ],
)
def test_another_commands_input_is_known(run: Run, tmp_path: Path, command: str, name: str, words: str) -> None:
    right, keys = {
        "input.json": ("train", ["model", "learning_rate", "training"]),
        "run.yaml": ("md", ["structure", "stages"]),
        "learn.yaml": ("learn", ["train", "rounds", "label"]),
    }[name]
    (tmp_path / name).write_text(json.dumps({key: {} for key in keys}))
    message = run(command, name, status=1).stderr
    assert f"the file seems to be {words}" in message
    assert f"use dphpc {right}" in message
    assert "not a known key" not in message


@pytest.mark.mpi
@pytest.mark.two_ranks
def test_md_on_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    comm = world()
    folder = comm.bcast(tmp_path)
    if comm.rank == 0:
        write_md_inputs(folder)
    comm.barrier()
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(["md", "run.yaml"])
    assert ended.value.code == 0
    assert bool(capsys.readouterr().out) == (comm.rank == 0)
    np.testing.assert_array_equal(read_table(folder / "thermo.csv")["step"], [0, 2, 4])
    comm.barrier()
    with pytest.raises(SystemExit) as ended:
        main(["md", "nothing.yaml"])
    assert ended.value.code == 1
    messages = comm.allgather(capsys.readouterr().err)
    assert sum("nothing.yaml" in message for message in messages) == 1  # one rank speaks for all
    with pytest.raises(SystemExit) as ended:
        main(["md", "run.yaml", "-l", "nothing/a.log"])
    assert ended.value.code == 1
    messages = comm.allgather(capsys.readouterr().err)
    assert sum("nothing/a.log" in message for message in messages) == 1


def test_data_convert(run: Run, process: Run, tmp_path: Path) -> None:
    atoms = Atoms("OH", positions=[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], cell=5.0 * np.eye(3), pbc=True)
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=np.array([[0.0, 0.0, 0.2], [0.0, 0.0, -0.2]]))
    ase.io.write(tmp_path / "frames.extxyz", [atoms, atoms])
    process("data", "convert", "frames.extxyz", "system")
    assert np.load(next((tmp_path / "system").rglob("energy.npy"))).ravel().tolist() == [-1.5, -1.5]
    run("data", "convert", "frames.extxyz", "frames.extxyz", "system.hdf5", "-t", "H", "O")
    with h5py.File(tmp_path / "system.hdf5") as file:
        found: list[str] = []
        file.visit(found.append)
        forces = next(name for name in found if name.endswith("set.000/force.npy"))
        assert file[forces].shape == (4, 6)
    assert "nothing.xyz" in run("data", "convert", "nothing.xyz", "out", status=1).stderr


def test_doctor(process: Run) -> None:
    done = process("doctor")
    for word in ("Python", "memory", "native kernels", "MPI library", "GPU", "torch", "HDF5", "this run"):
        assert word in done.stdout
    assert "1 rank × 1 thread on" in " ".join(done.stdout.split())
    assert f"dphpc           {__version__}" in done.stdout or __version__ in done.stdout


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def show(*_: object) -> str:
        return str(np.empty(2**59))

    monkeypatch.setattr("dphpc.model.show.show", show)
    with pytest.raises(SystemExit) as ended:
        main(["show", "model.dp"])
    assert ended.value.code == 1
    assert "error: the memory of this machine does not suffice: Unable to allocate 4" in capsys.readouterr().err


def test_help_version_and_wrong_usage(run: Run, process: Run) -> None:
    commands = (
        "train",
        "freeze",
        "compress",
        "test",
        "md",
        "neighbor-stat",
        "model-devi",
        "show",
        "ipi",
        "data",
        "plot",
        "slurm",
        "doctor",
    )
    listing = run("--help").stdout
    assert all(name in listing for name in commands)
    assert process("--version").stdout.split() == ["dphpc", __version__]
    assert "No such command" in run("trian", status=2).stderr
    assert "INPUT" in run("train", status=2).stderr


def test_paragraphs_of_help_are_filled(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    lines = [line.strip() for line in run("md", "--help").stdout.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("SIGINT"))
    paragraph = lines[start : lines.index("", start)]
    assert len(paragraph) > 2
    assert all(len(line) + len(after.split()[0]) > 70 for line, after in pairwise(paragraph))


def test_eval_desc(run: Run, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "more" / "two")
    run("eval-desc", "-m", "model.dp", "-s", "data")
    found = np.load(tmp_path / "desc" / "one.npy")
    coords, cells = (np.load(data / "set.000" / f"{name}.npy") for name in ("coord", "box"))
    types = np.loadtxt(data / "type.raw", dtype=int)
    np.testing.assert_array_equal(found, DeepPot(tmp_path / "model.dp").eval_descriptor(coords, cells, types))
    (tmp_path / "systems.txt").write_text("data/one\nmore/two\n")
    said = run("eval-desc", "-m", "model.dp", "-f", "systems.txt", "-o", "d32", "--dtype", "fp32").stdout
    assert said == "d32/one.npy\nd32/two.npy\n"
    np.testing.assert_array_equal(np.load(tmp_path / "d32" / "two.npy"), found.astype(np.float32))
    shutil.move(tmp_path / "more" / "two", tmp_path / "more" / "one")
    assert "two systems are named 'one'" in run("eval-desc", "-m", "model.dp", status=1).stderr


def test_models_of_pytorch(run: Run, tmp_path: Path) -> None:
    trained = GOLDEN / "trained.pt"
    assert run("convert-backend", str(trained), "a.dp").stdout == "a.dp\n"
    shutil.copy(trained, tmp_path / "model.ckpt-2.pt")
    (tmp_path / "checkpoint").write_text("model.ckpt-2.pt")
    assert run("--pt", "freeze", "-o", "b.dp").stdout == "b.dp\n"
    run("change-bias", "model.ckpt-2.pt", "-b", "1", "2")
    one, other, moved = (read_model(tmp_path / name) for name in ("a.dp", "b.dp", "model.ckpt-2_updated.dp"))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one.parameters(), other.parameters(), strict=True))
    assert moved.energy_bias.tolist() == [1.0, 2.0]
    assert "--init-model model.ckpt-2.pt" in run("train", "in.json", "--restart", "model.ckpt-2.pt", status=1).stderr
    assert "dp convert-backend a.dp a.pth" in run("convert-backend", "a.dp", "a.pth", status=1).stderr


def test_models_of_tensorflow(run: Run, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "exclude_two_sided.pb", tmp_path / "graph.pb")
    run("--tf", "compress", "-i", "graph.pb", "-o", "small.dp")
    assert read_model(tmp_path / "small.dp").table is not None
    run("--tf", "change-bias", "graph.pb", "-b", "1", "2")
    assert read_model(tmp_path / "graph_updated.dp").energy_bias.tolist() == [1.0, 2.0]
    assert "two-sided" in run("show", "graph.pb", "descriptor").stdout
    assert "dp convert-backend b.dp b.pb" in run("convert-backend", "graph.pb", "b.pb", status=1).stderr


def test_deepmd_kits_other_commands_are_told(run: Run) -> None:
    assert "which dphpc reads" in run("--pt", "convert-from", "-i", "a.pb", "-o", "b.pb", status=2).stderr
    assert "no counterpart" in run("gui", status=2).stderr


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "h5py", "ase", "matplotlib", "pydantic", "mpi4py")
    code = (
        "import sys\nfrom dphpc.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("module", ["typer", "dphpc.cli.doctor", "numpy"])
def test_ctrl_c_while_modules_are_imported(module: str, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupter:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupter())\n"
        "from dphpc.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "train", "input.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
