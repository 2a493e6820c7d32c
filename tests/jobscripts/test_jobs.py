"""Jobs on a real Slurm that are stopped, go back into the queue and finish as if they had not been."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

import dphpc
from dphpc.model.model_file import write_model
from dphpc.parallel.jobscript import mpi_library, srun_plugin
from dphpc.train.convert import convert
from tests.active.conftest import RUN as EXPLORE
from tests.active.conftest import TRAINING, rattled, settings
from tests.jobscripts.cluster import Cluster, cluster, missing, until
from tests.models import random_model, random_structure
from tests.train.systems import small_input, write_systems

pytestmark = pytest.mark.slow

RUN = {
    "structure": "start.extxyz",
    "model": "model.dp",
    "replicate": [6, 6, 6],
    "timestep_fs": 0.02,
    "velocities": {"temperature_K": 50, "seed": 1},
    "stages": [{"ensemble": "nve", "steps": 800}],
    "thermo": {"every": 10, "file": "thermo.csv"},
    "restart": {"every": 1000, "file": "restart.h5"},
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing():
        pytest.skip(f"no Slurm to test with: {', '.join(missing())} not found (Debian: apt install slurm-wlm munge)")
    if os.geteuid():
        pytest.skip("slurmd has to be started by root")
    with cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="module")
def srun_works(slurm: Cluster) -> bool:
    """Whether this Slurm's srun can load what this environment's MPI needs (Debian's loads pmix with libpmix-dev)."""
    words = ["srun", f"--mpi={srun_plugin(mpi_library())}", "true"]
    return subprocess.run(words, env=slurm.environment, capture_output=True, timeout=60).returncode == 0


@pytest.fixture
def mpi(request: pytest.FixtureRequest, srun_works: bool) -> str:
    """The value of --mpi: what `dphpc slurm` chooses if that works here, or mpirun; a test may ask for either."""
    wanted = getattr(request, "param", "auto" if srun_works else "mpirun")
    if wanted == "auto" and not srun_works:
        pytest.skip(f"srun cannot load --mpi={srun_plugin(mpi_library())}")
    return wanted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything for a run and a training, and in it the test."""
    monkeypatch.chdir(tmp_path)
    write_model(random_model(seed=1), tmp_path / "model.dp")
    positions, cell, types = random_structure()
    atoms = Atoms([("O", "H")[t] for t in types], positions=positions, cell=cell, pbc=True)
    ase.io.write(tmp_path / "start.extxyz", atoms, parallel=False)
    (tmp_path / "run.yaml").write_text(json.dumps(RUN))
    write_systems(tmp_path)
    return tmp_path


def submit(slurm: Cluster, folder: Path, *words: str) -> str:
    """Number of a job that `dphpc slurm … --submit` sends off."""
    command = [sys.executable, "-m", "dphpc", "slurm", "--submit", "--log-path", "submit.log", *words]
    slurm(*command, cwd=folder)
    found = re.search(r"Submitted batch job (\d+)", (folder / "submit.log").read_text())
    assert found
    return found.group(1)


def column(path: Path, name: str) -> np.ndarray:
    if path.suffix == ".csv":
        return np.genfromtxt(path, delimiter=",", names=True)[name]
    return np.genfromtxt(path, names=True)[name]


def n_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("mpi", ["auto", "mpirun"], ids=["srun", "mpirun"], indirect=True)
def test_md_goes_on_after_a_signal(slurm: Cluster, folder: Path, mpi: str) -> None:
    job = submit(slurm, folder, "md", "run.yaml", "--ntasks-per-node", "2", "--time", "10", "--mpi", mpi)
    log = folder / f"dphpc-md-{job}.log"
    until(lambda: n_lines(folder / "thermo.csv") > 5, 120, f"output of job {job}")
    slurm("scancel", "--signal=USR1", "--batch", job)
    end = slurm.finished(job)
    text = log.read_text()
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), text
    assert re.search(r"stopped by SIGUSR1 after \d+ of 800 steps", text), text
    assert "going on in stage 1" in text
    assert text.count("2 ranks × 1 thread") == 2
    (folder / "whole").mkdir()
    whole = dphpc.md({**RUN, "thermo": {"every": 10, "file": "whole/thermo.csv"}, "restart": None})
    assert whole.steps == 800
    assert column(folder / "thermo.csv", "step").tolist() == list(range(0, 801, 10))
    # Measured: 6e-16 and 3e-15.
    for name in ("potential_eV", "kinetic_eV"):
        np.testing.assert_allclose(
            column(folder / "thermo.csv", name), column(folder / "whole/thermo.csv", name), rtol=1e-10, err_msg=name
        )


def test_training_goes_on_after_its_time_limit(slurm: Cluster, folder: Path) -> None:
    given = small_input(numb_steps=10**7, disp_freq=100, save_freq=10**7)
    (folder / "input.json").write_text(json.dumps(given))
    # The template's two minutes before the end of one minute are now; Slurm looks every half minute.
    job = submit(slurm, folder, "train", "input.json", "--time", "1", "--cpus-per-task", "1")
    checkpoint = folder / "checkpoint"  # a slow machine may meet the first limit before training begins
    until(lambda: slurm.job(job)["Restarts"] != "0" and checkpoint.exists(), 300, f"the time limit of job {job}")
    done = int(re.findall(r"\d+", checkpoint.read_text())[0])
    given["training"]["numb_steps"] = last = done - done % 100 + 200  # what is left for the second part
    (folder / "input.json").write_text(json.dumps(given))
    end = slurm.finished(job)
    text = (folder / f"dphpc-train-{job}.log").read_text()
    assert end["JobState"] == "COMPLETED", text
    assert re.search(rf"train from step \d+ to step {last}", text), text  # at `done`, or a part later
    assert column(folder / "lcurve.out", "step").tolist() == [1, *range(100, last + 1, 100)]


def test_a_loop_goes_on_after_a_signal(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("first.extxyz", rattled(4, 0.05))
    convert("first.extxyz", "data", type_map=["Si"])
    rattled(1, 0.0)[0].write("si8.poscar", format="vasp")
    training = TRAINING["training"] | {"numb_steps": 1500, "disp_freq": 100, "save_freq": 10**6}
    Path("input.json").write_text(json.dumps(TRAINING | {"training": training}))
    Path("explore.json").write_text(json.dumps(EXPLORE))
    loop = settings(
        rounds=[{"explore": [{"md": "explore.json", "structures": "si8.poscar"}]}],
        select={"above": 1e-4, "below": 50, "stop_above": 50, "most": 3},
        label={"calculator": "lj", "parameters": {"sigma": 2.1, "epsilon": 0.1}},
        launch={"md": "srun -n 1 --exact --mpi=none"},
    )
    Path("learn.json").write_text(json.dumps(loop))
    job = submit(slurm, tmp_path, "learn", "learn.json", "--cpus-per-task", "2", "--time", "10")
    lcurve = tmp_path / "learn/round-00/train/0.part/lcurve.out"
    until(lambda: n_lines(lcurve) > 3, 120, f"output of job {job}")
    slurm("scancel", "--signal=USR1", "--batch", job)
    end = slurm.finished(job)
    text = (tmp_path / f"dphpc-learn-{job}.log").read_text()
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), text
    assert "stopped by SIGUSR1; the same command goes on from there" in text
    assert "models, trained on all data: learn/round-01" in text
    assert re.search(r"train from step \d+ to step 1500", (tmp_path / "learn/round-00/train/0/log").read_text())
    assert column(tmp_path / "learn" / "rounds.csv", "labelled") == 3


@pytest.mark.parametrize("back_end", ["mpi", "torch", "horovod"], ids="by_{}".format)
def test_training_on_ranks_goes_on_after_a_signal(slurm: Cluster, folder: Path, mpi: str, back_end: str) -> None:
    if back_end == "horovod" and find_spec("horovod") is None:
        pytest.skip("Horovod is not installed (dphpc horovod install)")
    given = small_input(numb_steps=2000, disp_freq=100, save_freq=100000)
    (folder / "input.json").write_text(json.dumps(given))
    words = ["train", "input.json", "--ntasks-per-node", "2", "--cpus-per-task", "1", "--time", "10"]
    job = submit(slurm, folder, *words, "--mpi", mpi, "--", "--data-parallel", back_end)
    until(lambda: n_lines(folder / "lcurve.out") > 3, 120, f"output of job {job}")
    slurm("scancel", "--signal=USR1", "--batch", job)
    end = slurm.finished(job)
    text = (folder / f"dphpc-train-{job}.log").read_text()
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), text
    assert "data-parallel: 2 ranks" in text
    assert re.search(r"train from step \d+ to step 2000", text), text
    steps = column(folder / "lcurve.out", "step")
    assert steps.tolist() == [1, *range(100, 2001, 100)]


@pytest.mark.parametrize("mpi", ["auto", "mpirun"], ids=["srun", "mpirun"], indirect=True)
def test_a_rank_for_each_gpu(slurm: Cluster, folder: Path, mpi: str) -> None:
    (folder / "run.yaml").write_text(json.dumps({**RUN, "stages": [{"ensemble": "nve", "steps": 20}]}))
    # Slurm believes that there are GPUs; the last --device counts.
    words = ["md", "run.yaml", "--gpus", "2", "--cpus-per-task", "1", "--time", "10", "--mpi", mpi]
    job = submit(slurm, folder, *words, "--", "--device", "cpu")
    assert "gpu:2" in slurm.job(job)["TresPerNode"]
    end = slurm.finished(job)
    text = (folder / f"dphpc-md-{job}.log").read_text()
    assert end["JobState"] == "COMPLETED", text
    assert "2 ranks × 1 thread" in text


def test_training_on_ranks_that_no_mpi_joins(slurm: Cluster, folder: Path) -> None:
    (folder / "input.json").write_text(json.dumps(small_input(numb_steps=3)))
    words = ["srun", "--mpi=none", "--ntasks=2", sys.executable, "-m", "dphpc", "train", "input.json"]
    slurm(*words, "--data-parallel", "torch", "--log-path", "train.log", cwd=folder)
    text = (folder / "train.log").read_text()
    assert "2 ranks divide each step's batch; gradients by torch.distributed (Gloo)" in text
    assert column(folder / "lcurve.out", "step").tolist() == [1, 3]


def test_scaling(slurm: Cluster, folder: Path, mpi: str) -> None:
    (folder / "run.yaml").write_text(json.dumps({**RUN, "stages": [{"ensemble": "nve", "steps": 20}]}))
    job = submit(slurm, folder, "md", "run.yaml", "--scaling", "--ntasks-per-node", "2", "--mpi", mpi)
    until(lambda: not slurm("squeue", "--noheader", "--job", job), 120, f"the end of job {job}")
    for task, ranks in enumerate(("1 rank ×", "2 ranks ×")):
        text = (folder / f"dphpc-scaling-{job}-{task}.log").read_text()
        assert ranks in text
        assert "atom-steps/s" in text
