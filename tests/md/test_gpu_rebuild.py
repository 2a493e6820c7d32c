"""Lists that are built where the atoms are: the host's, and nothing that follows from them differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from dphpc.core.errors import RunError
from dphpc.core.state import FIELDS, State
from dphpc.md import window as md_window
from dphpc.md.engine import SORT_CELL, Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.md.integrators import VelocityVerlet
from dphpc.ops.energy.gpu import GpuSystem
from dphpc.ops.ghosts.cuda import rounded_up
from dphpc.ops.motion.cuda import CudaMoves
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.ops.neighbors.native import build_neighbors
from dphpc.parallel.comm import Serial
from dphpc.parallel.domain import Domain
from dphpc.parallel.halo import Halo
from dphpc.parallel.migrate import migrate, sort_spatially
from tests.md.test_gpu_engine import ALL, NVE, Runs, equal, host_steps, let_fly, looks
from tests.models import random_structure

GOLDEN = Path(__file__).parents[1] / "golden"


THREE_TYPES = ["H", "O", "C"]


def small() -> Atoms:
    """Eight atoms with several images."""
    return bulk("Si", "diamond", a=5.43, cubic=True)


def skewed() -> Atoms:
    """Two cells of two atoms, thinner than the list reaches."""
    return bulk("Si", "diamond", a=5.43).repeat((2, 1, 1))


def slab() -> Atoms:
    """Open along its second direction, where atoms may leave the box."""
    atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat((2, 1, 1))
    atoms.pbc = (True, False, True)
    return atoms


def mixed() -> Atoms:
    """Three types, one among the other."""
    positions, cell, types = random_structure(n_types=3)
    return Atoms([THREE_TYPES[t] for t in types], positions, cell=cell, pbc=True)


@pytest.fixture(params=[small, skewed, slab, mixed])
def runs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs of silicon, or of a model of three types, in a box of their own."""
    write(tmp_path / "si.extxyz", request.param(), parallel=False)
    made = Runs(tmp_path, monkeypatch)
    made.velocities = {"temperature_K": 40 if request.param is mixed else 3000, "seed": 3}
    if request.param is mixed:
        made.model = GOLDEN / "models" / "three_types.dp"
    return made


def go_on(engine: Engine, far_enough: Callable[[], bool]) -> None:
    for _ in range(100):
        if far_enough():
            return
        engine.advance(VelocityVerlet(), [0.0])
    pytest.fail("it never gets there")


def found_by_the_host(engine: GpuEngine) -> tuple[State, Neighbors]:
    """The atoms as they are, wrapped and ordered, with ghosts and neighbors."""
    old, comm = engine.state, Serial()
    state, domain = State(old.box, old.n_local), Domain.even(old.box, 1, 0)
    for f in FIELDS:
        getattr(state, f.name)[:] = getattr(old, f.name)[: old.n_local]
    migrate(state, domain, comm)
    forces = dict(zip(state.ids.tolist(), state.forces.copy(), strict=True))  # which do not migrate
    sort_spatially(state, domain, SORT_CELL)
    state.forces[:] = [forces[i] for i in state.ids.tolist()]
    Halo(domain, comm).build_ghosts(state, engine.reach)
    return state, build_neighbors(state.positions, state.types, state.ids, state.n_local, engine.reach)


def out_of_order(engine: GpuEngine) -> bool:
    """Whether some atom is to be wrapped or has left its cell."""
    engine.to_host()
    state, _ = found_by_the_host(engine)
    return not np.array_equal(state.positions[: state.n_local], engine.state.positions[: state.n_local])


def test_a_list_is_the_hosts_and_comes_about_on_the_gpu(runs, emulated):
    runs(GpuEngine, emulated, stages=[{**NVE, "steps": 40}], skin_A=1.2)
    moving = runs.engine
    go_on(moving, lambda: out_of_order(moving))
    state, neighbors = found_by_the_host(moving)
    down, up, n_rows = emulated.downloaded, emulated.uploaded, moving._n_rows
    moving._build_on_gpu()
    tries = 1 + (moving._n_rows > n_rows)
    assert emulated.downloaded - down == tries * (2 * 8 + (0 if moving._grid else 7 * 8))  # sizes, an open box's extent
    assert emulated.uploaded == up
    same_atoms(moving.gpu, state)
    assert len(moving.gpu.positions) == state.n_local + rounded_up(state.n_ghost)
    assert moving.n_pairs == neighbors.n_pairs
    same_rows(moving._system, moving.gpu, neighbors, state)


@pytest.mark.parametrize("runs", [small, skewed], indirect=True)
def test_what_was_recorded_for_fewer_ghosts_is_not_replayed(runs, emulated):
    runs(GpuEngine, emulated, stages=[{**NVE, "steps": 3}], skin_A=1.2)
    moving = runs.engine
    moving.to_host()
    state, neighbors = found_by_the_host(moving)
    for n_rows in (512, 512, 64, 64, 64):  # the first makes room for all
        moving._n_rows = n_rows
        moving._build_on_gpu()
        assert n_rows == 512 or state.n_ghost > n_rows
        assert len(moving.gpu.positions) == state.n_local + max(n_rows, rounded_up(state.n_ghost))
        same_rows(moving._system, moving.gpu, neighbors, state)


def same_atoms(gpu: CudaMoves, state: State) -> None:
    for f in FIELDS:
        assert np.array_equal(getattr(gpu, f.name)[: state.n_local], getattr(state, f.name)[: state.n_local]), f.name


def same_rows(on_gpu: GpuSystem, gpu: CudaMoves, neighbors: Neighbors, state: State) -> None:
    """Ghosts may stand in another order."""
    assert np.array_equal(on_gpu.offsets, neighbors.offsets)
    for name in ("ids", "types", "positions"):
        there, here = getattr(gpu, name)[on_gpu.indices], getattr(state, name)[neighbors.indices]
        assert np.array_equal(there, here), name


def test_the_host_follows(runs, emulated):
    """What it knows after a list of the GPU's is what it would know had it built the list."""
    runs(GpuEngine, emulated, stages=[{**NVE, "steps": 40}])
    moving = runs.engine
    moving._build_on_gpu()
    built_at = moving.gpu.built_at.copy()
    moving.advance(VelocityVerlet(), [0.0] * 2)
    for lists in (False, True):
        moving.to_host(lists=lists)
        same_atoms(moving.gpu, moving.state)
    assert moving._since == 2, "it is still the GPU's list"
    same_rows(moving._system, moving.gpu, moving.neighbors, moving.state)
    moved = moving.state.positions[: moving.state.n_local] - built_at
    assert np.array_equal(moving.host.moved2(), np.einsum("ij,ij->i", moved, moved))
    assert moved.any()


def test_runs_and_their_files_are_the_hosts(runs, emulated, tmp_path):
    found, files = [], []
    for kind in (GpuEngine, Engine):
        shutil.copy(runs.model, tmp_path / "other.dp")
        plan = {
            "stages": [{**NVE, "steps": 60}], "thermo": {"every": 30, "file": None},
            "trajectory": {"every": 7, "file": str(tmp_path / "t.extxyz"), "velocities": True, "forces": True},
            "deviation": {
                "models": [str(tmp_path / "other.dp")], "every": 11, "file": str(tmp_path / "devi.out"),
            },
        }  # fmt: skip
        on_gpu = emulated.launched.count("wrap")
        found.append(runs(kind, emulated, **plan))
        assert (emulated.launched.count("wrap") - on_gpu >= 2) == (kind is GpuEngine)
        files.append([(tmp_path / name).read_bytes() for name in ("t.extxyz", "devi.out")])
        assert np.loadtxt(tmp_path / "devi.out")[:, 4].max() < 1e-6
        (tmp_path / "restart.h5").unlink()
    equal(*found)
    assert files[0] == files[1]


# The small one has its test beside the engine's.
@pytest.mark.parametrize("runs", [skewed, pytest.param(slab, marks=pytest.mark.slow)], indirect=True)
def test_windows_and_lists_change_no_bit(runs, emulated, monkeypatch):
    found, thrown_away, on_gpu = [], [], []
    plan = {"stages": ALL, "thermo": {"every": 13, "file": None}}
    for most, haste in ((1, 1.25), (16, 1.25), (16, 0.1)):
        before = emulated.launched.count("wrap")
        with looks(monkeypatch, most, haste):
            found.append(runs(GpuEngine, emulated, **plan))
        on_gpu.append(emulated.launched.count("wrap") - before)
        thrown_away.append(runs.engine.thrown_away)
    assert on_gpu[0] <= 3, "without a window the host builds all lists but the first"
    assert min(on_gpu[1:]) >= 2 + on_gpu[0]
    assert thrown_away[2] >= 2
    for other in found[1:]:
        equal(other, found[0])


@pytest.mark.parametrize("runs", [skewed], indirect=True)
@pytest.mark.parametrize("of", ["ghosts", "search"])
def test_what_was_recorded_is_not_replayed_where_arrays_have_moved(runs, emulated, monkeypatch, of):
    plan = {"stages": [{**NVE, "steps": 60}], "thermo": {"every": 60, "file": None}}
    expected = runs(GpuEngine, emulated, **plan)
    build, kept = GpuEngine._build_on_gpu, []

    def elsewhere(engine: GpuEngine) -> None:
        buffers = getattr(engine, of).buffers
        kept.append(dict(buffers._kept))  # so that none gets the same place again
        buffers._kept.clear()
        buffers.growths += 1
        build(engine)

    monkeypatch.setattr(GpuEngine, "_build_on_gpu", elsewhere)
    equal(runs(GpuEngine, emulated, **plan), expected)
    assert len(kept) >= 2


@pytest.mark.parametrize("runs", [skewed], indirect=True)
@pytest.mark.parametrize(("far", "thrown_away"), [(0.7, 1), (3.0, 5)], ids=["a new list does", "half the steps"])
def test_a_list_that_is_outrun_is_built_anew_and_no_host_takes_over(runs, emulated, monkeypatch, far, thrown_away):
    runs(GpuEngine, emulated, stages=[{**NVE, "steps": 40}], skin_A=0.5)
    moving = runs.engine
    window, before = moving.window, moving.thrown_away
    go_on(moving, lambda: window.moved >= 0.7 * window.reach)
    steps, step = host_steps(monkeypatch), moving.step
    monkeypatch.setattr(md_window, "HASTE", 1e-3)
    n = int(far * window.reach / window.pace)
    moving.advance(VelocityVerlet(), [0.0] * n)
    assert moving.thrown_away - before == thrown_away
    assert moving.step - step == n
    assert not steps


@pytest.mark.parametrize("runs", [skewed], indirect=True)
@pytest.mark.parametrize("thermostat", ["nose-hoover", "langevin"])
def test_a_thermostat_goes_back_with_the_window_that_is_thrown_away(runs, emulated, monkeypatch, thermostat):
    """To where the windows before have left it, some of which were of the same steps that were asked for."""
    stage = {"ensemble": "nvt", "thermostat": thermostat, "temperature_K": 3000, "damping_fs": 50, "steps": 30}
    plan = {"stages": [stage], "skin_A": 0.5, "thermo": {"every": 30, "file": None}}
    expected = runs(GpuEngine, emulated, **plan)
    steps = host_steps(monkeypatch)
    monkeypatch.setattr(md_window, "HASTE", 1e-3)
    equal(runs(GpuEngine, emulated, **plan), expected)
    assert runs.engine.thrown_away >= 3
    assert not steps


@pytest.mark.parametrize("runs", [small], indirect=True)
def test_an_atom_that_flies_away_is_named_in_its_step(runs, emulated, monkeypatch):
    let_fly(monkeypatch, 41)
    said = []
    for kind in (GpuEngine, Engine):
        on_gpu = emulated.launched.count("wrap")
        with pytest.raises(RunError) as caught:
            runs(kind, emulated, stages=[{**NVE, "steps": 60}])
        assert (emulated.launched.count("wrap") > on_gpu) == (kind is GpuEngine)
        said.append((caught.value.what, caught.value.where))
    assert said[0] == said[1]
    assert "atom 3 flew" in said[0][0]
    assert "step 42" in said[0][1]
