"""Restarts of whole runs that are killed, whose files are damaged, whose disk is full."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.io import read

from dphpc.core.errors import DataError, RunError
from dphpc.md.restart import read_restart
from dphpc.md.run import run_md
from dphpc.md.sealed import damage_of, previous_of
from dphpc.md.stages import Stage
from dphpc.parallel.comm import Communicator
from dphpc.plots.tables import read_table
from dphpc.potential.contract import Outputs
from tests.full_disk import full_disk
from tests.lennard_jones import IMPORT, LennardJones

pytestmark = pytest.mark.two_ranks

Make = Callable[..., dict[str, Any]]

PROGRAM = (
    IMPORT
    + """
import json
from dphpc.md.run import run_md
run_md(json.load(open(sys.argv[1])), potential=LennardJones(["Ar"], cutoff=6.5, cutoff_smooth=5.0))
"""
)


def rows_of(path: Path) -> np.ndarray:
    """The lines of a thermo file that are complete."""
    lines = path.read_text().splitlines(keepends=True)[1:]
    return np.array([line.split(",") for line in lines if line.endswith("\n")], float)


def step_of(path: Path) -> int:
    return read_restart(str(path))[1].step


def outputs(folder: Path, every: int = 1) -> dict[str, Any]:
    return {
        "thermo": {"every": every, "file": str(folder / "part.csv")},
        "trajectory": {"every": every, "file": str(folder / "part.extxyz")},
        "restart": {"every": every, "file": str(folder / "r.h5")},
    }


def frames_of(path: Path) -> list[int]:
    return [int(line.split("Step=")[1].split()[0]) for line in path.read_text().splitlines() if "Step=" in line]


def test_a_chain_of_runs_killed_at_any_moment(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    rng, every = random.Random(1), 3
    run = config(stages=[{"ensemble": "nve", "steps": 10**6}], **outputs(tmp_path, every))
    file, thermo = tmp_path / "r.h5", tmp_path / "part.csv"
    reached = [0]
    for _ in range(5):
        (tmp_path / "run.json").write_text(json.dumps(run))
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run.json")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            started = time.monotonic()
            while process.poll() is None and (not previous_of(file).exists() or step_of(file) <= reached[-1]):
                assert time.monotonic() - started < 120
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 0.1))
            process.kill()
            assert process.wait() == -signal.SIGKILL, process.communicate()
        source, checkpoint, warning = read_restart(str(file))
        assert warning is None
        assert np.isfinite(source.read(0, 48)["positions"]).all()
        assert 0 <= rows_of(thermo)[-1, 0] - checkpoint.step <= every
        # Both are one file where it was killed between keeping the old one and naming the new one.
        assert checkpoint.step - step_of(previous_of(file)) in (0, every)
        reached.append(checkpoint.step)
        run |= {"structure": str(file)}
        run.pop("replicate", None)
    run["stages"] = [{"ensemble": "nve", "steps": reached[-1] + every}]
    run_md(run, potential=argon)
    whole = {"thermo": {"every": every, "file": str(tmp_path / "whole.csv")}, "stages": run["stages"]}
    run_md(config(**whole), potential=argon)
    part = rows_of(thermo)
    assert part[:, 0].tolist() == list(range(0, reached[-1] + every + 1, every))
    assert frames_of(tmp_path / "part.extxyz") == part[:, 0].tolist()
    # The restarts sort atoms anew: rounding, which the dynamics lets grow.
    np.testing.assert_allclose(part[:60], rows_of(tmp_path / "whole.csv")[:60], rtol=1e-7, atol=1e-7)


def test_a_restart_of_a_bulk_may_become_a_slab(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """As the same atoms in another file."""
    restart, slab = str(tmp_path / "r.h5"), {"periodic": [True, True, False], "velocities": None}
    written = {"trajectory": {"every": 1000, "file": str(tmp_path / "t.extxyz")}}
    nve = [{"ensemble": "nve", "steps": 30}]
    run_md(config(stages=nve, restart={"every": 1000, "file": restart}, **written), potential=argon)
    energies = [
        run_md(config(structure=path, replicate=None, stages=nve, **slab), potential=argon).thermo["potential_eV"][0]
        for path in (restart, written["trajectory"]["file"])
    ]
    bulk = run_md(config(structure=restart, replicate=None, stages=nve), potential=argon).thermo["potential_eV"][0]
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)
    assert abs(energies[0] - bulk) > 0.1


def test_a_file_of_before_there_were_some_keys(
    config: Make, argon: LennardJones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, nve = config(**outputs(tmp_path)), {"ensemble": "nve", "steps": 4}
    with monkeypatch.context() as patch:
        dump = Stage.model_dump
        patch.setattr(Stage, "model_dump", lambda self: {k: v for k, v in dump(self).items() if "move" not in k})
        run_md(run | {"stages": [nve]}, potential=argon)
    again = run | {"stages": [{**nve, "steps": 6}], "structure": run["restart"]["file"], "replicate": [1, 1, 1]}
    assert run_md(again, potential=argon).steps == 2


@pytest.mark.mpi
def test_a_damaged_or_missing_restart_gives_way_to_the_one_before(
    comm: Communicator, config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(config()["structure"]).parent
    file, kept = folder / "r.h5", previous_of(folder / "r.h5")
    stages = [{"ensemble": "nvt", "thermostat": "langevin", "temperature_K": 60, "steps": 20}]
    run_md(config(stages=stages, **outputs(folder, 5)), comm=comm, potential=argon)
    whole = rows_of(folder / "part.csv")
    again = config(structure=str(file), replicate=None, stages=stages, **outputs(folder, 5))
    for damage in ("flipped", "missing"):
        if comm.rank == 0:
            assert step_of(kept) == 15
            content = bytearray(file.read_bytes())
            content[3000] ^= 1
            file.write_bytes(content)
            if damage == "missing":
                file.unlink()
        comm.barrier()
        capsys.readouterr()
        result = run_md(again, comm=comm, potential=argon)
        assert result.steps == 5
        out = capsys.readouterr().out
        assert (f"warning:   {file} cannot be used" in out) == (comm.rank == 0)
        assert (f"going on from the one before it, {kept}" in out) == (comm.rank == 0)
        if comm.rank == 0:
            np.testing.assert_allclose(rows_of(folder / "part.csv"), whole, rtol=1e-9, atol=1e-9)
            assert frames_of(folder / "part.extxyz") == [0, 5, 10, 15, 20]
            # The damaged one has not taken the place of the good one before it.
            assert (step_of(file), step_of(kept)) == (20, 15)
        comm.barrier()
    if comm.rank == 0:
        for path in (file, kept):
            path.write_bytes(path.read_bytes()[:-100])
    comm.barrier()
    with pytest.raises(DataError, match=r"(?s)neither.*damaged.*nor.*damaged") as caught:
        run_md(again, comm=comm, potential=argon)
    assert caught.value.speaks == (comm.rank == 0)


@pytest.mark.mpi
def test_a_new_run_does_not_keep_another_ones_restart(comm: Communicator, config: Make, argon: LennardJones) -> None:
    folder = Path(config()["structure"]).parent
    file, kept = folder / "r.h5", previous_of(folder / "r.h5")
    run_md(config(**outputs(folder, 5)), comm=comm, potential=argon)
    assert kept.exists()
    comm.barrier()
    run_md(config(stages=[{"ensemble": "nve", "steps": 5}], **outputs(folder, 5)), comm=comm, potential=argon)
    assert damage_of(file) is None
    assert not kept.exists()


@pytest.mark.parametrize("name", ["t.extxyz", "t.dump"])
def test_a_full_disk_leaves_whole_frames_and_lines(
    config: Make, argon: LennardJones, tmp_path: Path, name: str
) -> None:
    """Of a trajectory that is full after some frames, and of a table that is full after some lines."""
    long = {"stages": [{"ensemble": "nve", "steps": 200}]}
    with full_disk(12_000), pytest.raises(RunError, match="cannot be written"):
        run_md(config(**long, trajectory={"file": str(tmp_path / name), "every": 1}), potential=argon)
    frames = read(tmp_path / name, ":")
    assert 2 <= len(frames) < 12
    assert {len(frame) for frame in frames} == {48}
    with full_disk(12_000), pytest.raises(RunError, match="cannot be written"):
        run_md(config(**long, thermo={"file": str(tmp_path / "thermo.csv"), "every": 1}), potential=argon)
    table = read_table(tmp_path / "thermo.csv")
    assert np.array_equal(table["step"], np.arange(len(table["step"])))
    assert (tmp_path / "thermo.csv").read_bytes().endswith(b"\n")


class DiskFull:
    """A potential between two of whose calls the disk is full."""

    def __init__(self, inner: LennardJones, first: int, last: int) -> None:
        self.inner, self.cutoff, self.type_map = inner, inner.cutoff, inner.type_map
        self.first, self.last, self.calls = first, last, 0
        self.context = full_disk(12_000)

    def memory_per_atom(self) -> float:
        return 0.0

    def compute(self, state: Any, neighbors: Any, halo: Any, outputs: Outputs, centers: Any = None) -> None:
        self.calls += 1
        if self.calls == self.first:
            self.context.__enter__()
        if self.calls == self.last:
            self.context.__exit__(None, None, None)
        self.inner.compute(state, neighbors, halo, outputs, centers)


@pytest.mark.mpi
def test_a_disk_that_is_full_for_a_while_costs_one_restart(
    comm: Communicator, config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(config()["structure"]).parent
    file = folder / "r.h5"
    run = config(thermo={"every": 5, "file": None}, restart={"every": 5, "file": str(file)})
    capsys.readouterr()
    # Call 1 is step 0: the disk is full at step 10.
    result = run_md(run, comm=comm, potential=DiskFull(argon, 8, 14))
    assert result.steps == 20
    message = f"written: File too large; the run goes on, the last good restart is {file} (step 5)"
    assert (message in capsys.readouterr().out) == (comm.rank == 0)
    assert (step_of(file), step_of(previous_of(file))) == (20, 15)
    assert sorted(p.name for p in folder.iterdir() if "r." in p.name) == ["ar.extxyz", "r.h5", "r.previous.h5"]


@pytest.mark.mpi
def test_a_disk_that_stays_full_leaves_the_good_restarts(comm: Communicator, config: Make, argon: LennardJones) -> None:
    folder = Path(config()["structure"]).parent
    file = folder / "r.h5"
    run = config(thermo={"every": 5, "file": None}, restart={"every": 5, "file": str(file)})
    full = DiskFull(argon, 13, 10**6)
    try:
        with pytest.raises(RunError, match=r"(?s)restart file cannot be written.*too large.*check space"):
            run_md(run, comm=comm, potential=full)
        assert (step_of(file), step_of(previous_of(file))) == (10, 5)
        comm.barrier()
        # What cannot be written from the first is a mistake in the run file, and no reason to go on.
        elsewhere = {**run, "restart": {"every": 5, "file": str(folder / "s.h5")}}
        with pytest.raises(RunError, match=r"(?s)restart file cannot be written"):
            run_md(elsewhere, comm=comm, potential=argon)
        assert not (folder / "s.h5").exists()
        assert not (folder / ".s.h5.part").exists()
    finally:
        full.context.__exit__(None, None, None)


@pytest.mark.mpi
def test_a_restart_where_no_folder_can_be(comm: Communicator, config: Make, argon: LennardJones) -> None:
    inside_a_file = Path(config()["structure"]) / "r.h5"
    with pytest.raises(RunError, match=r"(?s)restart file cannot be written.*exists.*ar.extxyz/r.h5"):
        run_md(config(restart={"every": 5, "file": str(inside_a_file)}), comm=comm, potential=argon)


@pytest.mark.mpi
@pytest.mark.parametrize("suffix", ["csv", "extxyz", "h5md"])
def test_an_output_that_cannot_be_written_names_file_and_restart(
    comm: Communicator, config: Make, argon: LennardJones, suffix: str
) -> None:
    folder = Path(config()["structure"]).parent
    run = config(**outputs(folder, 1), stages=[{"ensemble": "nve", "steps": 200}])
    run["restart"]["every"] = 3
    what, other = ("thermo", "trajectory") if suffix == "csv" else ("trajectory", "thermo")
    run[what]["file"] = str(folder / f"part.{suffix}")
    run[other] = {"every": 1000, "file": str(folder / "other.extxyz")}
    full = DiskFull(argon, 5, 10**6)
    try:
        with pytest.raises(RunError, match=rf"(?s)output cannot be written.*{run[what]['file']}.*\(step 3\)") as caught:
            run_md(run, comm=comm, potential=full)
        assert caught.value.speaks == (comm.rank == 0) or comm.size == 1
    finally:
        full.context.__exit__(None, None, None)
    assert step_of(folder / "r.h5") == 3
    if suffix == "h5md":
        with h5py.File(folder / "part.h5md") as file:
            assert file["particles/all/position/step"][:].tolist() == [0, 1, 2, 3]
