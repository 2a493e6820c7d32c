"""A small loop on silicon: real trainings and runs, with labels that Tersoff's potential gives."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.io import write

import dphpc
from dphpc.active.result import LearnResult
from dphpc.train.convert import convert
from tests.parallel.conftest import mpirun  # noqa: F401

SILICON = TersoffParameters(
    m=3.0, gamma=1.0, lambda3=0.0, c=1.0039e5, d=16.217, h=-0.59825, n=0.78734, beta=1.1e-6, lambda2=1.7322,
    B=471.18, R=2.85, D=0.15, lambda1=2.4799, A=1830.8,
)  # fmt: skip
"""Tersoff, Phys. Rev. B 39, 5566 (1989)."""


def tersoff() -> Tersoff:
    return Tersoff({("Si", "Si", "Si"): SILICON})


def tersoff_fails(often: str) -> Tersoff:
    """Fails on crystals whose first atom lies below x = 0, or always."""
    calculator = tersoff()
    calculate = calculator.calculate

    def checked(atoms: Atoms, *arguments: Any) -> None:
        if often == "always" or atoms.positions[0, 0] < 0:
            if often == "crash":
                os._exit(9)
            raise RuntimeError("SCF has not converged")
        calculate(atoms, *arguments)

    calculator.calculate = checked
    return calculator


def rattled(n: int, size: float, seed: int = 0) -> list[Atoms]:
    """Labelled crystals of eight atoms with displacements of `size` Å."""
    frames = []
    for k in range(n):
        atoms = bulk("Si", "diamond", a=5.432, cubic=True)
        atoms.positions += np.random.default_rng((seed, k)).normal(scale=size, size=(8, 3))
        atoms.calc = tersoff()
        atoms.get_forces(), atoms.get_stress()
        frames.append(atoms)
    return frames


TRAINING: dict[str, Any] = {
    "model": {
        "type_map": ["Si"],
        "descriptor": {
            "type": "se_e2_a", "rcut": 4.0, "rcut_smth": 1.0, "sel": "auto", "neuron": [4, 8], "axis_neuron": 2,
        },
        "fitting_net": {"neuron": [12, 12]},
    },
    "learning_rate": {"type": "exp", "start_lr": 0.01, "stop_lr": 1e-4, "decay_steps": 10},
    "loss": {"type": "ener", "start_pref_e": 1, "limit_pref_e": 1, "start_pref_f": 100, "limit_pref_f": 10},
    "training": {
        "training_data": {"systems": ["data"], "batch_size": 1}, "numb_steps": 60, "disp_freq": 20, "save_freq": 20,
    },
}  # fmt: skip
RUN: dict[str, Any] = {
    "timestep_fs": 1.0,
    "velocities": {"temperature_K": 600},
    "stages": [{"ensemble": "nvt", "thermostat": "bussi", "temperature_K": 300, "steps": 40}],
}

ROOT = Path(__file__).parents[2]


def settings(**changes: Any) -> dict[str, Any]:
    """What stands in a run file of two rounds."""
    base: dict[str, Any] = {
        "train": "input.json",
        "models": 2,
        "rounds": [{"explore": [{"md": "explore.json", "structures": ["si8.poscar"], "every": 5}], "repeat": 2}],
        "select": {"above": 0.02, "below": 2.0, "most": 3},
        "label": {"calculator": "tests.active.conftest:tersoff"},
        "hold_out": 0.4,
        "at_once": {"train": 2},
    }
    return base | changes


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that `settings` names."""
    folder = tmp_path_factory.mktemp("files")
    write(folder / "frames.extxyz", rattled(8, 0.03))
    convert(folder / "frames.extxyz", folder / "data", type_map=["Si"])
    write(folder / "si8.poscar", bulk("Si", "diamond", a=5.432, cubic=True), format="vasp")
    (folder / "input.json").write_text(json.dumps(TRAINING))
    (folder / "explore.json").write_text(json.dumps(RUN))
    return folder


@pytest.fixture
def project(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder; it is the working one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes that label
    return Path(shutil.copytree(files, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LearnResult]:
    """The folder of a loop that has done its two rounds, and what it returned; one for all processes that test."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "loop"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "learn").exists():
            shutil.copytree(files, folder, dirs_exist_ok=True)
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        return folder / "learn", dphpc.learn(settings())


@pytest.fixture
def copy(finished: tuple[Path, LearnResult], project: Path) -> Path:
    """A copy of that folder in the test's own project."""
    return Path(shutil.copytree(finished[0], project / "learn")).relative_to(project)
