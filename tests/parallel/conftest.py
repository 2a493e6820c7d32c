"""Systems that are hard on a decomposition, and forces by all pairs to compare with."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.images import periodic_images
from dphpc.core.state import State
from dphpc.ops.neighbors.reference import build_neighbors
from dphpc.parallel.comm import Communicator, Mpi, world
from dphpc.potential.contract import Outputs
from tests.lennard_jones import LennardJones


class Patient(Mpi):
    """Ranks that sleep at a barrier, where many a test has one of them work alone: they may share a core with it."""

    def barrier(self) -> None:
        arrived = self.handle.Ibarrier()
        while not arrived.Test():
            time.sleep(1e-3)


STARTED = world()
RANKS = Patient(STARTED.handle) if isinstance(STARTED, Mpi) else STARTED


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.CallInfo, None]:
    """A test that fails on one of several ranks ends all of them: the others would wait for it."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and RANKS.size > 1:
        RANKS.abort(f"rank {RANKS.rank} of {RANKS.size}: {item.nodeid}\n{report.longreprtext}")


@pytest.fixture(scope="session")
def comm() -> Communicator:
    return RANKS


class Clock:
    """Stands in for the module `time`: its time passes in `sleep` alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one that work and messages are timed by."""
    clock = Clock()
    for module in ("dphpc.md.timers", "dphpc.parallel.flight"):
        monkeypatch.setattr(f"{module}.time", clock)
    return clock


@pytest.fixture(scope="session")
def potential() -> LennardJones:
    sigma = np.array([[3.4, 3.1], [3.1, 2.9]])
    return LennardJones(["Ar", "Ne"], 0.0104, sigma, cutoff=7.0, cutoff_smooth=5.5)


def lattice(box: Box, spacing: float, seed: int) -> np.ndarray:
    """Positions on a jittered grid that fills a box."""
    counts = np.maximum(1, (box.heights / spacing).astype(int))
    grid = np.stack(np.meshgrid(*(np.arange(c) / c for c in counts), indexing="ij"), axis=-1).reshape(-1, 3)
    jitter = np.random.default_rng(seed).uniform(-0.25, 0.25, grid.shape)
    return grid @ box.matrix + box.origin + jitter


def _systems() -> dict[str, tuple[Box, np.ndarray]]:
    cube = Box(np.eye(3) * 16.0)
    triclinic = Box(np.array([[15.0, 0, 0], [6.0, 13.0, 0], [-5.0, 4.0, 14.0]]), origin=np.array([3.0, -2.0, 1.0]))
    general = Box(np.array([[11.0, 3.0, 1.0], [-2.0, 12.0, 2.0], [1.0, -3.0, 13.0]]))
    tiny = Box(np.array([[4.2, 0, 0], [1.0, 4.0, 0], [0, 0.5, 4.4]]))
    one = Box(np.eye(3) * 3.9)
    needle = Box(np.diag([4.0, 4.0, 70.0]))
    slab = Box(np.diag([12.0, 12.0, 9.0]), (True, True, False))
    wire = Box(np.array([[12.0, 0, 0], [2.0, 11.0, 0], [0, 0, 14.0]]), (False, True, False))
    plain = {
        name: (box, lattice(box, 3.6, k))
        for k, (name, box) in enumerate(
            {"cube": cube, "triclinic": triclinic, "general": general, "tiny": tiny, "needle": needle,
             "slab": slab, "wire": wire}.items()
        )
    }  # fmt: skip
    plain["one atom"] = (one, np.array([[1.0, 2.0, 5.0]]))
    # Atoms outside the box: far off where it is open, wrapped where it repeats.
    box, x = plain["slab"]
    plain["slab"] = (box, x + np.where(np.arange(len(x)) % 2, 1, 0)[:, None] * np.array([24.0, -12.0, 11.0]))
    cluster = lattice(cube, 3.6, 9)[:50]
    plain["cluster"] = (Box.around(cluster), cluster)
    # All atoms in one corner of a wide box: most ranks are empty.
    wide = Box(np.eye(3) * 60.0)
    plain["corner"] = (wide, lattice(Box(np.eye(3) * 12.0), 3.6, 10) + 58.0)
    return plain


SYSTEMS = _systems()


@pytest.fixture(params=list(SYSTEMS))
def system(request: pytest.FixtureRequest) -> tuple[Box, np.ndarray, np.ndarray]:
    """Box, positions and types."""
    box, positions = SYSTEMS[request.param]
    return box, positions, (np.arange(len(positions)) % 3 == 0).astype(np.int32)


@pytest.fixture(scope="session")
def all_pairs(potential: LennardJones) -> Callable[..., Outputs]:
    """Energy, forces and virial of a whole system with images, without domains, halo or cells."""

    def evaluate(box: Box, positions: np.ndarray, types: np.ndarray) -> Outputs:
        positions = box.wrap(positions)
        owners, shifts = periodic_images(positions, box, potential.cutoff)
        n = len(positions)
        state = State(box, n)
        state.resize(n, len(owners))
        state.positions[:n], state.positions[n:] = positions, positions[owners] + shifts @ box.matrix
        state.types[:n], state.types[n:] = types, types[owners]
        neighbors = build_neighbors(state.positions, state.types, state.ids, n, potential.cutoff)
        outputs = Outputs.zeros(n, state.n_all)
        potential.compute(state, neighbors, None, outputs)
        np.add.at(outputs.forces, owners, outputs.forces[n:])
        outputs.forces = outputs.forces[:n]
        return outputs

    return evaluate


@pytest.fixture
def scattered(comm: Communicator) -> Callable[..., State]:
    """This rank's share of a system's atoms, dealt out like playing cards: nobody's are where they belong."""

    def deal(box: Box, positions: np.ndarray, types: np.ndarray, ranks: Communicator = comm) -> State:
        mine = np.arange(ranks.rank, len(positions), ranks.size)
        state = State(box, len(mine))
        state.ids[:], state.types[:], state.positions[:] = mine + 1, types[mine], positions[mine]
        return state

    return deal


@pytest.fixture(scope="session")
def mpirun() -> list[str]:
    """The command that starts ranks, as a user would from a fresh shell."""
    program = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "the test extra brings an MPI"
    if os.environ.get("PMI_SIZE") or os.environ.get("OMPI_COMM_WORLD_SIZE"):
        pytest.skip("mpirun cannot be started by a rank of another mpirun; `pytest` without it runs this test")
    return [program]
