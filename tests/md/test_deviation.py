"""A committee along a run, against `dphpc model-devi` on the same frames."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

from dphpc.cli.main import main
from dphpc.core.errors import DeviceError, DphpcError, InputError, RunError
from dphpc.md import setup as md_setup
from dphpc.md.run import run_md
from dphpc.md.sealed import previous_of
from dphpc.model.compress import compress
from dphpc.model.model_file import write_model
from dphpc.parallel.comm import Communicator
from dphpc.potential.contract import Outputs
from dphpc.potential.deep import DeepPotential
from dphpc.train.evaluate import model_devi
from tests.models import random_model, random_structure

pytestmark = pytest.mark.two_ranks

Make = Callable[..., dict[str, Any]]
HEADER = (
    "#       step         max_devi_v         min_devi_v         avg_devi_v"
    "         max_devi_f         min_devi_f         avg_devi_f\n"
)
"""As DeePMD-kit's LAMMPS plugin writes it: fields of 12 and 19 characters."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, comm: Communicator) -> Path:
    """A folder with a.dp, b.dp and c.dp, compressed, so that reading them is quick; one for all ranks."""
    path = comm.bcast(tmp_path_factory.mktemp("models"))
    if comm.rank == 0:
        for seed, name in enumerate("abc"):
            write_model(compress(random_model(seed, one_side=True))[0], path / f"{name}.dp")
    comm.barrier()
    return path


@pytest.fixture
def folder(tmp_path: Path, comm: Communicator) -> Path:
    """A folder with a structure; one for all ranks."""
    path = comm.bcast(tmp_path)
    if comm.rank == 0:
        positions, cell, types = random_structure(24, 7.0)
        write(path / "s.extxyz", Atoms(np.array(["O", "H"])[types], positions, cell=cell, pbc=True), parallel=False)
    comm.barrier()
    return path


@pytest.fixture
def config(folder: Path, models: Path) -> Make:
    def make(deviation: dict[str, Any], **changes: Any) -> dict[str, Any]:
        files = {"file": str(folder / "model_devi.out"), "candidates": str(folder / "candidates.extxyz")}
        base: dict[str, Any] = {
            "structure": str(folder / "s.extxyz"),
            "model": str(models / "a.dp"),
            "timestep_fs": 0.2,
            "velocities": {"temperature_K": 300},
            "stages": [{"ensemble": "nve", "steps": 20}],
            "thermo": {"every": 5, "file": None},
            "restart": {"every": 10, "file": str(folder / "r.h5")},
            "deviation": {"models": [str(models / f"{m}.dp") for m in "bc"], "every": 5} | files | deviation,
        }
        return base | changes

    return make


def table(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / "model_devi.out", ndmin=2)


@pytest.mark.mpi
def test_the_rows_are_those_of_model_devi(comm: Communicator, config: Make, folder: Path, models: Path) -> None:
    trajectory = {"every": 5, "file": str(folder / "t.h5md"), "unwrap": True}
    result = run_md(config({"mark_above": 0.0}, trajectory=trajectory), comm=comm)
    assert result.files["deviation"] == str(folder / "model_devi.out")
    assert result.files["candidates"] == str(folder / "candidates.extxyz")
    if comm.rank:
        return
    with h5py.File(folder / "t.h5md") as file:
        x = file["particles/all/position/value"][:]
    s = read(folder / "s.extxyz", parallel=False)
    data = folder / "data" / "set.000"
    data.mkdir(parents=True)
    np.savetxt(data.parent / "type.raw", [["O", "H"].index(name) for name in s.get_chemical_symbols()], fmt="%d")
    (data.parent / "type_map.raw").write_text("O\nH\n")
    np.save(data / "coord.npy", x.reshape(5, -1))
    np.save(data / "box.npy", np.tile(s.cell.array.ravel(), (5, 1)))
    wanted = model_devi([models / f"{m}.dp" for m in "abc"], str(data.parent), folder / "wanted.out")[:, :6]
    assert wanted.min() > 0
    rows = table(folder)
    assert rows[:, 0].tolist() == [0, 5, 10, 15, 20]
    # Seven digits are written.
    np.testing.assert_allclose(rows[:, 1:], wanted, rtol=1e-6)
    assert (folder / "model_devi.out").read_text().startswith(HEADER)
    frames = read(folder / "candidates.extxyz", index=":", parallel=False)
    assert [f.info["Step"] for f in frames] == [0, 5, 10, 15, 20]
    np.testing.assert_allclose([f.info["max_devi_f"] for f in frames], wanted[:, 3], rtol=1e-9)
    np.testing.assert_allclose([f.info["avg_devi_v"] for f in frames], wanted[:, 2], rtol=1e-9)


def test_candidates_have_no_fixed_atoms(config: Make, folder: Path) -> None:
    """ASE would take their labels, the forces, for 0."""
    trajectory = {"every": 10, "file": str(folder / "t.extxyz")}
    run_md(config({"mark_above": 0.0}, trajectory=trajectory, fixed={"ids": [1, 2]}))
    assert len(read(folder / "t.extxyz").constraints) == 1
    assert not read(folder / "candidates.extxyz").constraints


@pytest.mark.mpi
def test_the_run_itself_does_not_change(comm: Communicator, config: Make) -> None:
    with_committee = run_md(config({"every": 1}), comm=comm).thermo
    alone = run_md({k: v for k, v in config({}).items() if k != "deviation"}, comm=comm).thermo
    assert np.array_equal(with_committee["total_eV"], alone["total_eV"])


@pytest.mark.mpi
def test_frames_between_two_levels_are_candidates(comm: Communicator, config: Make, folder: Path) -> None:
    run_md(config({"every": 1}), comm=comm)
    assert not (folder / "candidates.extxyz").exists()
    worst = table(folder)[:, 4]
    low, high = np.quantile(worst, [0.33, 0.68])  # between two rows
    inside = np.flatnonzero((worst > low) & (worst < high)).tolist()
    assert 0 < len(inside) < 20
    comm.barrier()
    run_md(config({"every": 1, "mark_above": low, "mark_below": high}), comm=comm)
    steps = [f.info["Step"] for f in read(folder / "candidates.extxyz", index=":", parallel=False)]
    assert steps == inside


@pytest.mark.mpi
def test_a_run_ends_above_the_limit_and_can_be_taken_up(
    comm: Communicator, config: Make, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_md(config({"every": 1, "mark_above": 0.0}), comm=comm)
    whole = table(folder)
    worst = whole[:, 4]
    limit = (worst[0] + worst.max()) / 2
    first = int(np.argmax(worst > limit))
    assert 0 < first < 20
    comm.barrier()
    capsys.readouterr()
    result = run_md(config({"every": 1, "mark_above": 0.0, "stop_above": limit}), comm=comm)
    assert comm.allgather(result.steps) == [first] * comm.size
    assert result.stopped_above == pytest.approx(worst[first], rel=1e-6)
    assert result.stopped_by == 0
    restart = str(folder / "r.h5")
    message = f"after {first} of 20 steps; go on with structure: {restart} (step {first})"
    out = capsys.readouterr().out
    assert (f"stopped by max_devi_f = {worst[first]:.4g} eV/Å {message}" in out) == (comm.rank == 0)
    assert table(folder)[:, 0].tolist() == list(range(first + 1))
    comm.barrier()
    rest = run_md(config({"every": 1, "mark_above": 0.0}, structure=restart), comm=comm)
    assert (rest.steps, rest.stopped_above) == (20 - first, None)
    np.testing.assert_allclose(table(folder), whole, rtol=2e-6)
    frames = read(folder / "candidates.extxyz", index=":", parallel=False)
    assert [f.info["Step"] for f in frames] == list(range(21))


@pytest.mark.mpi
def test_a_first_frame_above_the_limit_ends_the_run_before_its_first_step(
    comm: Communicator, config: Make, folder: Path
) -> None:
    result = run_md(config({"stop_above": 1e-6}), comm=comm)
    assert result.steps == 0
    assert result.stopped_above is not None
    assert (folder / "r.h5").exists()


@pytest.mark.mpi
def test_going_on_from_an_earlier_restart_cuts_the_files_back(comm: Communicator, config: Make, folder: Path) -> None:
    run = config({"mark_above": 0.0})
    run_md(run, comm=comm)
    whole = table(folder)
    comm.barrier()
    again = str(previous_of(folder / "r.h5"))  # step 10
    if comm.rank == 0:
        with (folder / "model_devi.out").open("a") as file:
            file.write("x" * 1000)
    run_md({**run, "structure": again}, comm=comm)
    np.testing.assert_allclose(table(folder), whole, rtol=2e-6)
    frames = read(folder / "candidates.extxyz", index=":", parallel=False)
    assert [f.info["Step"] for f in frames] == [0, 5, 10, 15, 20]


@pytest.mark.mpi
def test_mistakes_are_found_by_all_before_the_run(comm: Communicator, config: Make, folder: Path, models: Path) -> None:
    if comm.rank == 0:
        far = random_model(5)
        write_model(replace(far, descriptor=replace(far.descriptor, rcut=5.0)), folder / "far.dp")
        write_model(random_model(5, n_types=1), folder / "other.dp")
    comm.barrier()
    for deviation, message in [
        ({"models": [str(folder / "far.dp")]}, r"(?s)as far as 5 Å.*far\.dp.*at most 4\.5 Å.*largest cutoff"),
        ({"models": [str(folder / "other.dp")]}, r"(?s)type map O\n.*other\.dp.*O H, as in .*a\.dp"),
        ({"models": ["none.dp"]}, "no file 'none.dp'"),
        ({"models": []}, "at least 1 item"),
        ({"models": [str(models / "a.dp")]}, "in the committee twice"),
        ({"mark_below": 1.0}, "mark_above"),
        ({"mark_above": 2.0, "mark_below": 1.0}, "mark_above"),
        ({"file": str(folder / "r.h5")}, "two outputs"),
        ({"file": str(models / "b.dp")}, "overwrite the input"),
        ({"stop_abov": 1.0}, "did you mean 'stop_above'"),
    ]:
        with pytest.raises(InputError, match=message):
            run_md(config(deviation), comm=comm)
    assert not (folder / "model_devi.out").exists()


class Failing:
    """A model that fails at its second call, on the last rank."""

    def __init__(self, inner: DeepPotential, mine: bool) -> None:
        self.inner, self.cutoff, self.type_map, self.mine, self.calls = inner, inner.cutoff, inner.type_map, mine, 0

    def memory_per_atom(self) -> float:
        return 0.0

    def compute(self, state: Any, neighbors: Any, halo: Any, outputs: Outputs, centers: Any = None) -> None:
        self.calls += 1
        if self.calls == 2 and self.mine:
            raise RunError("failed by the test", where="atom 7")
        self.inner.compute(state, neighbors, halo, outputs, centers)


@pytest.mark.mpi
def test_a_model_that_fails_ends_the_run_on_all_ranks(
    comm: Communicator, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = md_setup.load_potential

    def failing(path: str, *others: Any) -> Any:
        model = load(path, *others)
        return Failing(model, comm.rank == comm.size - 1) if path.endswith("c.dp") else model

    monkeypatch.setattr(md_setup, "load_potential", failing)
    with pytest.raises(
        RunError, match=r"(?s)failed by the test.*step 5; model .*c\.dp of 'deviation'; atom 7"
    ) as caught:
        run_md(config({}), comm=comm)
    assert caught.value.speaks == (comm.rank == comm.size - 1)


def test_the_commands_status_tells_a_run_that_went_astray(
    config: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status(settings: dict[str, Any]) -> Any:
        (folder / "run.json").write_text(json.dumps(settings))
        with pytest.raises(SystemExit) as caught:
            main(["md", str(folder / "run.json")])
        return caught.value.code

    def fails(error: DphpcError) -> None:
        class Broken(Failing):
            def compute(self, *_: Any) -> None:
                raise error

        monkeypatch.setattr(md_setup, "load_potential", lambda path, *others: Broken(load(path, *others), True))

    load = md_setup.load_potential
    assert status(config({}) | {"thermo": {"file": str(folder / "s.extxyz" / "thermo.csv")}}) == 1
    assert status(config({}) | {"velocities": {"temperature_K": 1e12, "seed": 1}}) == 4
    fails(RunError("atoms are too near"))
    assert status(config({})) == 4
    fails(DeviceError("the memory is full"))
    assert status(config({})) == 1
    fails(InputError("no parameters are given"))
    assert status(config({})) == 1


def test_the_command_has_a_status_of_its_own(config: Make, folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps(config({"stop_above": 1e-6})))
    with pytest.raises(SystemExit) as caught:
        main(["md", str(folder / "run.json")])
    assert caught.value.code == 3
