"""Argon: a cheap material with everything a run needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dphpc.core.box import Box
from dphpc.core.fixing import number_of
from dphpc.core.state import State
from dphpc.md.engine import Engine
from dphpc.md.velocities import draw_velocities
from dphpc.parallel.comm import Communicator, Serial
from dphpc.parallel.domain import Domain
from tests.lennard_jones import LennardJones
from tests.parallel.conftest import comm, mpirun, pytest_runtest_makereport  # noqa: F401

A = 5.4
"""Å, lattice constant."""


@pytest.fixture(scope="session")
def argon() -> LennardJones:
    return LennardJones(["Ar"], cutoff=6.5, cutoff_smooth=5.0)


@pytest.fixture
def crystal(tmp_path: Path, comm: Communicator) -> str:  # noqa: F811
    """A file with 4 atoms of solid argon; one for all ranks."""
    path = comm.bcast(str(tmp_path / "ar.extxyz"))
    if comm.rank == 0:
        write(path, bulk("Ar", "fcc", a=A, cubic=True), parallel=False)
    comm.barrier()
    return path


@pytest.fixture
def config(crystal: str) -> Callable[..., dict[str, Any]]:
    """A run file's mapping with outputs beside the structure."""
    folder = Path(crystal).parent

    def make(**changes: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "structure": crystal,
            "replicate": [3, 2, 2],
            "timestep_fs": 4.0,
            "velocities": {"temperature_K": 60, "seed": 3},
            "stages": [{"ensemble": "nve", "steps": 20}],
            "thermo": {"every": 5, "file": str(folder / "thermo.csv")},
            "skin_A": 0.6,
        }
        base.update(changes)
        return {k: v for k, v in base.items() if v is not None}

    return make


@pytest.fixture
def engine_of(argon: LennardJones) -> Callable[..., Engine]:
    """An engine of n³ cells of argon on one rank, atoms jittered and moving, but the first `n_fixed`, where `held`."""

    def make(
        n: int = 3,
        temperature: float = 60.0,
        timestep: float = 4e-3,
        potential: Any = argon,
        n_fixed: int = 0,
        held: str = "xyz",
    ) -> Engine:
        box = Box(np.eye(3) * A * n)
        cell = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
        corners = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
        positions = ((corners + cell) * A).reshape(-1, 3)
        state = State(box, len(positions))
        state.ids[:] = np.arange(len(positions)) + 1
        state.positions[:] = positions + np.random.default_rng(5).normal(0, 0.05, positions.shape)
        state.fixed[:n_fixed] = number_of(held)
        engine = Engine(state, Domain.even(box, 1, 0), Serial(), potential, np.array([39.95]), timestep, skin=0.6)
        if temperature:
            draw_velocities(engine, temperature, seed=1)
        engine.update_forces()
        return engine

    return make
