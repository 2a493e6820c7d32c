"""Frames that are written while the GPU is at the steps that follow: the same files, whatever happens in those."""

from __future__ import annotations

import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dphpc.core.device import Device
from dphpc.core.errors import RunError
from dphpc.md import gather, gpu_engine, memory, run
from dphpc.md.deferred import Deferred
from dphpc.md.engine import Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.md.integrators import VelocityVerlet
from dphpc.md.restart import Checkpoint
from dphpc.md.trajectory import ExtxyzWriter as Extxyz
from dphpc.md.trajectory import Frame, TextWriter
from dphpc.parallel.comm import Communicator
from tests.md.test_gpu_engine import NVE, Runs, kind_of, let_fly, looks, runs_in_one_folder
from tests.ops.emulation.device import EmulatedDevice

pytestmark = pytest.mark.two_ranks

NAMES = ["t.extxyz", "t.dump", "t.h5md"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Of eight atoms, which are written three at a time."""
    monkeypatch.setattr(gather, "slabs", partial(gather.slabs, chunk=3))
    return Runs(tmp_path, monkeypatch)


def asked(runs: Runs, name: str = "t.extxyz", every: int = 7, steps: int = 42) -> dict[str, Any]:
    trajectory = {"every": every, "file": str(runs.folder / name), "velocities": True, "forces": True}
    return {"trajectory": trajectory, "stages": [{**NVE, "steps": steps}], "thermo": {"every": 1000, "file": None}}


def written(runs: Runs, name: str = "t.extxyz") -> bytes:
    """What a run left, which the next one is not to find."""
    (runs.folder / "restart.h5").unlink(missing_ok=True)
    return (runs.folder / name).rename(runs.folder / "seen").read_bytes()


def log(patch: pytest.MonkeyPatch, runs: Runs) -> list[tuple[str, int, int]]:
    """Grows by what is done with a frame, the frame's step, and up to which step the GPU has been told."""
    done: list[tuple[str, int, int]] = []
    begin, add, end = Extxyz.begin, Extxyz.add, TextWriter.end

    def begins(writer: Extxyz, frame: Frame) -> None:
        done.append(("begin", frame.step, runs.engine.step))
        begin(writer, frame)

    def goes_on(writer: Extxyz, *part: Any) -> None:
        done.append(("add", done[-1][1], runs.engine.step))
        add(writer, *part)

    def ends(writer: Extxyz) -> None:
        done.append(("end", done[-1][1], runs.engine.step))
        end(writer)

    for name, replacement in (("begin", begins), ("add", goes_on), ("end", ends)):
        patch.setattr(Extxyz, name, replacement)
    return done


@pytest.mark.parametrize("name", NAMES)
def test_files_have_the_same_bytes(runs: Runs, device: Device, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(gpu_engine, "Deferred", lambda timers, at_once: Deferred(timers))
        runs(GpuEngine, device, **asked(runs, name))
        found.append(written(runs, name))
    for haste in (1.25, 0.1):
        with looks(monkeypatch, 16, haste):
            runs(GpuEngine, device, **asked(runs, name))
        assert runs.engine.rebuilds >= 2
        assert runs.engine.thrown_away >= (3 if haste < 1 else 0), "steps behind a frame are done again"
        found.append(written(runs, name))
    runs(Engine, device, **asked(runs, name))
    found.append(written(runs, name))
    assert len(found[0]) > 7 * 8 * 100
    assert all(other == found[0] for other in found[1:])


def test_a_frame_is_written_while_the_gpu_goes_on(
    runs: Runs, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = log(monkeypatch, runs)
    runs.velocities = {"temperature_K": 50, "seed": 3}
    monkeypatch.setattr(gpu_engine, "most_steps", lambda n_atoms: 16)
    runs(GpuEngine, emulated, **asked(runs, every=32, steps=96))
    assert [what[:2] for what in done] == [
        (what, step) for step in (0, 32, 64, 96) for what in ("begin", "add", "add", "add", "end")
    ]
    first, last = [entry for entry in done if entry[1] == 32], [entry for entry in done if entry[1] == 96]
    # The emulated GPU is done when it is asked a second time: each window of 16 has time for one piece.
    assert [told for *_, told in first] == [48, 48, 64, 64, 64], "the rest when the next frame is due"
    assert {told for *_, told in last} == {96}


def test_of_many_atoms_it_is_written_between_steps(
    runs: Runs, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.velocities = {"temperature_K": 50, "seed": 3}
    runs(GpuEngine, emulated, **asked(runs, every=32, steps=64))
    expected = written(runs)
    done = log(monkeypatch, runs)
    monkeypatch.setattr(gpu_engine, "MOST_RECORDED", 0)
    runs(GpuEngine, emulated, **asked(runs, every=32, steps=64))
    assert [told for _, step, told in done if step == 32] == [32, 32, 33, 34, 35], "a piece a step, before its end"
    assert written(runs) == expected


def test_what_ends_a_run_leaves_the_frames_before_it(
    runs: Runs, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_fly(monkeypatch, 11)
    found = []
    for kind in (GpuEngine, Engine):
        with pytest.raises(RunError, match="atom 3 flew"):
            runs(kind, emulated, **asked(runs, every=5))
        found.append(written(runs))
    assert found[0] == found[1]
    assert found[0].count(b"Lattice") == 3


def test_a_signal_leaves_whole_frames_and_a_restart_that_counts_them(
    runs: Runs, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(GpuEngine, emulated, **asked(runs, every=5, steps=20))
    whole = written(runs)
    step, write_restart = VelocityVerlet.step, run.write_restart
    sizes: list[tuple[int, int, int]] = []

    def interrupted(integrator: VelocityVerlet, moving: Engine, temperature: float) -> None:
        if moving.step == 12:
            os.kill(os.getpid(), signal.SIGUSR1)
        step(integrator, moving, temperature)

    def noted(path: str, engine: Engine, checkpoint: Checkpoint, *rest: Any) -> None:
        file = runs.folder / "t.extxyz"
        sizes.append((checkpoint.step, checkpoint.files[str(file)].at, file.read_bytes().count(b"Lattice")))
        write_restart(path, engine, checkpoint, *rest)

    monkeypatch.setattr(run, "write_restart", noted)
    with monkeypatch.context() as patch:
        patch.setattr(VelocityVerlet, "step", interrupted)
        restart = {"every": 10, "file": str(runs.folder / "restart.h5")}
        runs(GpuEngine, emulated, **asked(runs, every=5, steps=20), restart=restart)
    assert runs.result.stopped_by == signal.SIGUSR1
    assert sizes[0] == (10, [m.start() for m in re.finditer(b"8\nLattice", whole)][3], 3)
    last = runs.result.steps
    assert 12 < last <= 15
    assert sizes[1][0] == last
    assert sizes[1][2] == last // 5 + 1 + (last % 5 > 0)  # with the last one, which a run that goes on leaves out
    (runs.folder / "restart.h5").rename(runs.folder / "stopped.h5")
    runs(GpuEngine, emulated, **asked(runs, every=5, steps=20), structure=str(runs.folder / "stopped.h5"))
    assert written(runs) == whole


def test_pinned_memory_is_what_was_said(runs: Runs, emulated: EmulatedDevice) -> None:
    runs(GpuEngine, emulated, **asked(runs, steps=14))
    said, kept = memory.SNAPSHOT_BYTES * runs.engine.n_atoms, runs.engine.gpu._pinned
    assert 0.9 * said < kept.nbytes < 1.2 * said
    assert kept.growths == 6, "for the first frame, and never again"


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a file that cannot be closed
def test_a_full_disk_ends_the_run_on_all_ranks_and_names_the_frame(
    comm: Communicator, emulated: EmulatedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = of_all_ranks(comm, tmp_path, monkeypatch)
    if comm.rank == 0:
        (runs.folder / "t.extxyz").symlink_to("/dev/full")
    comm.barrier()
    with pytest.raises(RunError, match="No space left on device") as caught:
        runs(kind_of(comm), emulated, comm, **asked(runs, every=10), replicate=[1, 1, 4])
    assert caught.value.where.endswith("t.extxyz, step 0")
    assert runs.engine.step > 0
    assert caught.value.speaks == (comm.rank == 0) or comm.size == 1


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["t.extxyz", "t.h5md"])
def test_ranks_write_the_frames_of_one(
    comm: Communicator, emulated: EmulatedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runs = of_all_ranks(comm, tmp_path, monkeypatch)
    done = log(monkeypatch, runs)
    plan = {**asked(runs, name, every=6, steps=12), "replicate": [1, 1, 4]}
    runs(kind_of(comm), emulated, comm, **plan)
    assert runs.engine.rebuilds >= 1
    comm.barrier()  # all have read its restart file
    if comm.rank == 0:
        if comm.size > 1 and done:
            of_six = [told for _, step, told in done if step == 6]
            assert of_six == [6, 6, 7, 8, 9, 10, 11], "a piece a step, before its end"
        found = written(runs, name)
        runs(GpuEngine, emulated, **plan)
        assert written(runs, name) == found
    comm.barrier()


def of_all_ranks(comm: Communicator, folder: Path, patch: pytest.MonkeyPatch) -> Runs:
    """32 atoms, written seven at a time."""
    patch.setattr(gather, "slabs", partial(gather.slabs, chunk=7))
    return runs_in_one_folder(comm, folder, patch)
