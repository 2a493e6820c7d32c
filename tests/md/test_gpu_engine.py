"""Runs whose atoms stay on a GPU: the host's results, whatever happens between two looks at it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dphpc.core.errors import InputError, RunError
from dphpc.md import gpu_engine, memory, run, trouble, window
from dphpc.md.engine import Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.md.gpu_ranks import RankEngine
from dphpc.md.integrators import Thermostat, VelocityVerlet
from dphpc.md.run import run_md
from dphpc.md.thermostats import Bussi, Langevin, NoseHoover
from dphpc.ops.energy import cuda, tiles
from dphpc.parallel.comm import Communicator, Serial
from dphpc.potential import deep
from dphpc.potential.deep import DeepPotential

pytestmark = pytest.mark.two_ranks

SILICON = Path(__file__).parents[2] / "examples" / "silicon" / "silicon.dp"
ROWS, MOST_ROWS = 4, 16

NVE = {"ensemble": "nve", "steps": 12}
ALL = [
    {"ensemble": "nvt", "thermostat": "langevin", "temperature_K": [1500, 900], "damping_fs": 50, "steps": 13},
    {"ensemble": "nvt", "thermostat": "nose-hoover", "temperature_K": [900, 1500], "damping_fs": 50, "steps": 13},
    {"ensemble": "nvt", "thermostat": "bussi", "temperature_K": 1500, "damping_fs": 50, "steps": 13},
    NVE,
]


class Runs:
    """Runs, of silicon unless otherwise told, as many as are asked for, with the engine of the last one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.engine: Any = None
        self.model = SILICON
        self.few_atoms = -1  # with wide blocks; emulated, half as many threads take half the time
        self.velocities = {"temperature_K": 1500, "seed": 3}
        if not (folder / "si.extxyz").exists():
            write(folder / "si.extxyz", bulk("Si", "diamond", a=5.43, cubic=True), parallel=False)

    def __call__(self, kind: type[Engine], device: Any, comm: Any = None, **changes: Any) -> dict[str, np.ndarray]:
        """Atoms of the last step and columns of thermo; in `kind`'s hands."""

        def made(*arguments: Any, **options: Any) -> Engine:
            more = {"gpu_aware_mpi": changes.get("gpu_aware_mpi", False)} if kind is not Engine else {}
            self.engine = kind(*arguments, **options, **more)
            return self.engine

        self.patch.setattr(run, "engine_for", lambda *_: made)
        self.patch.setattr(cuda, "tile_rows", lambda n: ROWS)
        self.patch.setattr(tiles, "MOST_ROWS", MOST_ROWS)
        self.patch.setattr(tiles, "FEWEST_ROWS", ROWS)
        self.patch.setattr(tiles, "FEW_ATOMS", self.few_atoms)
        self.potential = DeepPotential.from_file(self.model, device=device)
        if device is not None:
            self.potential.expect(np.zeros(len(self.potential.type_map), np.int64))  # as a GpuEngine does
        restart = self.folder / "restart.h5"
        settings = {
            "structure": str(self.folder / "si.extxyz"), "skin_A": 0.3, "n_threads": 1, "timestep_fs": 1.0,
            "velocities": self.velocities, "stages": [NVE], "thermo": {"every": 5, "file": None},
            "restart": {"every": 10**6, "file": str(restart)},
        }  # fmt: skip
        self.result = run_md(settings | changes, comm=comm or Serial(), potential=self.potential)
        with h5py.File(restart) as file:
            atoms = {k: item[:] for k, item in file["atoms"].items()}
        return atoms | {k: v for k, v in self.result.thermo.items() if k != "wall"}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, monkeypatch)


def runs_in_one_folder(comm: Communicator, folder: Path, patch: pytest.MonkeyPatch) -> Runs:
    """Of all ranks together; collective."""
    folder = Path(comm.bcast(str(folder)))
    if comm.rank == 0:
        Runs(folder, patch)  # writes the structure
    comm.barrier()
    return Runs(folder, patch)


def kind_of(comm: Communicator) -> type[GpuEngine]:
    """The engine of so many ranks."""
    return GpuEngine if comm.size == 1 else RankEngine


def let_fly(patch: pytest.MonkeyPatch, step: int) -> None:
    """Atom 3 is pushed at the beginning of a step, beyond all bounds."""
    go = VelocityVerlet.step

    def push(integrator: VelocityVerlet, engine: Engine, temperature: float) -> None:
        if engine.step == step:
            atoms = engine.gpu if isinstance(engine, GpuEngine) else engine.state
            n = engine.state.n_local
            atoms.velocities[:n][atoms.ids[:n] == 3] = 1e5
        go(integrator, engine, temperature)

    patch.setattr(VelocityVerlet, "step", push)


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for name, values in a.items():
        assert np.array_equal(values, b[name], equal_nan=True), name


def test_nve_is_the_hosts(runs, device):
    gpu = runs(GpuEngine, device, stages=[{**NVE, "steps": 30}])
    assert runs.engine.rebuilds >= 1
    launched = runs(Engine, device, stages=[{**NVE, "steps": 30}])
    equal(gpu, launched)
    for name, values in runs(Engine, None, stages=[{**NVE, "steps": 30}]).items():
        np.testing.assert_allclose(gpu[name], values, rtol=1e-7, atol=1e-8, err_msg=name)  # measured 1e-10


def test_thermostats_are_the_hosts(runs, device):
    gpu, host = (runs(kind, device, stages=ALL) for kind in (GpuEngine, Engine))
    for name, values in host.items():
        # exp, log, sin and cos of two libraries
        np.testing.assert_allclose(gpu[name], values, rtol=1e-9, atol=1e-9, err_msg=name)  # measured 1e-13


@contextmanager
def looks(patch: pytest.MonkeyPatch, most: int, haste: float = window.HASTE) -> Iterator[None]:
    """Windows of at most so many steps, and how much faster atoms may become in them."""
    with patch.context() as p:
        p.setattr(gpu_engine, "most_steps", lambda n_atoms: most)
        p.setattr(window, "HASTE", haste)
        yield


def test_results_do_not_depend_on_the_windows(runs, emulated, monkeypatch):
    found, thrown_away = [], []
    for most, haste in ((1, 1.25), (3, 1.25), (16, 1.25), (16, 0.1)):
        with looks(monkeypatch, most, haste):
            found.append(runs(GpuEngine, emulated, stages=ALL, thermo={"every": 13, "file": None}))
        thrown_away.append(runs.engine.thrown_away)
    assert thrown_away[0] == 0
    assert thrown_away[3] >= 3, "lists that had their day are used: those windows are done again"
    for other in found[1:]:
        equal(other, found[0])


def test_a_step_moves_nothing_between_gpu_and_host(runs, emulated, monkeypatch):
    runs(GpuEngine, emulated, stages=[ALL[2]], velocities={"temperature_K": 20, "seed": 3})
    moving = runs.engine
    for integrator in (VelocityVerlet(), NoseHoover(21, 20.0, 0.1), Bussi(21, 0.1, 1)):
        moving.advance(integrator, [20.0])  # its numbers go up
        while moving.window.steps < 5:
            moving.advance(integrator, [20.0])
        seen: list[int] = []

        def repeat(moves: Callable[[Engine], None], seen: list[int] = seen) -> None:
            seen.append(traffic(emulated))
            GpuEngine.repeat(moving, moves)

        monkeypatch.setattr(moving, "repeat", repeat)
        launches = emulated.launched.count("exert")
        moving.advance(integrator, [20.0] * 5)
        assert emulated.launched.count("exert") - launches == 5
        assert len(set(seen)) == 1, "nothing goes up or comes down from the first step to the last"
        monkeypatch.undo()
        assert traffic(emulated) - seen[-1] == 8 * moving._report.size + sum(
            bath.scalars.nbytes for bath in integrator.baths
        )
        assert moving.thrown_away == 0


def test_a_step_is_a_graph_with_new_lists_too(runs, emulated):
    runs(GpuEngine, emulated, velocities={"temperature_K": 600, "seed": 3}, stages=[{**NVE, "steps": 60}])
    moving, rebuilds, first = runs.engine, runs.engine.rebuilds, len(emulated.asked)
    for _ in range(40):
        before, ahead, thrown_away = len(emulated.asked), moving.window.steps, moving.thrown_away
        moving.advance(VelocityVerlet(), [0.0] * max(ahead, 1))
        if ahead > 1 and moving.thrown_away == thrown_away:
            assert emulated.asked[before:] == ["graph"] * (1 + ahead)
    asked = emulated.asked[first:]
    assert moving.rebuilds - rebuilds >= 6
    before = len(emulated.asked)
    moving._build_on_gpu()
    assert emulated.asked[before:] == ["graph"], "nor is what builds a list"
    assert asked.count("graph") >= 60
    assert "last_layer" not in asked, "what a window launches is not launched one by one again"


@pytest.mark.parametrize(
    ("integrator", "step"),
    [
        (NoseHoover(21, 600.0, 0.1), ["nose_hoover", "scale", "graph", "add_kinetic", "nose_hoover", "scale"]),
        (Bussi(21, 0.1, 1), ["graph", "add_kinetic", "bussi", "scale"]),
        (Langevin(0.1, 1), ["graph", "randomize", "graph"]),
    ],
)
def test_of_a_thermostats_step_a_graph_is_what_is_always_the_same(runs, emulated, integrator, step):
    runs(GpuEngine, emulated, velocities={"temperature_K": 600, "seed": 3}, stages=[{**NVE, "steps": 60}])
    moving = runs.engine
    windows = 0
    while windows < 8:
        before, ahead = len(emulated.asked), moving.window.steps
        moving.advance(integrator, [600.0] * max(ahead, 1))
        windows += ahead > 1
    assert emulated.asked[-len(step) * ahead :] == step * ahead
    assert emulated.asked[before:].count("exert") == 0


def test_a_step_of_another_length_is_another_graph(runs, emulated):
    runs(GpuEngine, emulated, velocities={"temperature_K": 50, "seed": 3}, stages=[{**NVE, "steps": 20}])
    moving = runs.engine
    for timestep in (1e-3, 5e-4, 1e-3, 5e-4):
        moving.timestep = timestep
        x, v = moving.gpu.positions.copy(), moving.gpu.velocities.copy()
        moving.advance(VelocityVerlet(), [0.0] * 4)
        moved, expected = moving.gpu.positions - x, 2.0 * timestep * (v + moving.gpu.velocities)
        np.testing.assert_allclose(moved[: len(v)], expected, rtol=0, atol=0.1 * np.abs(expected).max())
    assert moving.thrown_away == 0


def traffic(device: Any) -> int:
    return device.uploaded + device.downloaded


def host_steps(patch: pytest.MonkeyPatch) -> list[Engine]:
    """Grows by one for each step that the host takes from here on."""
    steps: list[Engine] = []
    evaluate = Engine._evaluate

    def counted(engine: Engine, refresh: Any) -> None:
        steps.append(engine)
        evaluate(engine, refresh)

    patch.setattr(Engine, "_evaluate", counted)
    return steps


def test_the_host_takes_a_step_to_build_a_list_and_seldom_else(runs, emulated, monkeypatch):
    steps = host_steps(monkeypatch)
    plan = {"stages": [{**NVE, "steps": 90}], "skin_A": 0.6, "thermo": {"every": 1000, "file": None}}
    runs(GpuEngine, emulated, **plan, velocities={"temperature_K": 3000, "seed": 3})
    assert runs.engine.rebuilds >= 3
    assert runs.engine.thrown_away <= 1
    assert len(steps) <= runs.engine.rebuilds + 3 + 16 * runs.engine.thrown_away  # measured 6 of 90, 4 rebuilds


@pytest.mark.parametrize(("more", "n_bytes"), [({}, 48), ({"forces": True}, 72)])
def test_outputs_bring_down_what_they_need(runs, emulated, tmp_path, more, n_bytes):
    downloaded = {}
    for every in (1000, 5):
        before = emulated.downloaded
        trajectory = {"every": every, "file": str(tmp_path / f"{every}.extxyz"), **more}
        runs(GpuEngine, emulated, velocities={"temperature_K": 50, "seed": 1}, trajectory=trajectory)
        downloaded[every] = emulated.downloaded - before
    assert downloaded[5] - downloaded[1000] == 2 * 8 * n_bytes  # steps 5 and 10, eight atoms


@pytest.mark.parametrize("thermostat", ["nose-hoover", "bussi", "langevin"])
def test_restarts_go_from_host_to_gpu_and_back(runs, emulated, tmp_path, thermostat):
    stage = {"ensemble": "nvt", "thermostat": thermostat, "temperature_K": 1500, "damping_fs": 50}
    whole = runs(GpuEngine, emulated, stages=[{**stage, "steps": 13}])
    for first, second in ((GpuEngine, GpuEngine), (Engine, GpuEngine), (GpuEngine, Engine)):
        runs(first, emulated, stages=[{**stage, "steps": 6}])
        (tmp_path / "restart.h5").rename(tmp_path / "half.h5")
        found = runs(second, emulated, stages=[{**stage, "steps": 13}], structure=str(tmp_path / "half.h5"))
        for name in ("positions", "velocities"):
            np.testing.assert_allclose(found[name], whole[name], rtol=0, atol=1e-9)  # measured 1e-13
            assert first is not second or np.array_equal(found[name], whole[name])
        assert found["conserved_eV"][-1] == pytest.approx(whole["conserved_eV"][-1], abs=1e-9)


def test_a_run_that_is_continued_has_the_same_bits(runs, emulated, monkeypatch, tmp_path):
    plan = {"stages": ALL[1:3], "thermo": {"every": 2, "file": None}}
    whole = runs(GpuEngine, emulated, **plan)
    (tmp_path / "restart.h5").unlink()
    step = Thermostat.step

    def interrupted(integrator: Thermostat, moving: Engine, temperature: float) -> None:
        if moving.step == 8:
            os.kill(os.getpid(), signal.SIGUSR1)
        step(integrator, moving, temperature)

    with monkeypatch.context() as patch:
        patch.setattr(Thermostat, "step", interrupted)
        runs(GpuEngine, emulated, **plan)
    assert runs.result.stopped_by == signal.SIGUSR1
    assert 9 <= runs.result.steps <= 11, "the next look at the GPU ends the run"
    (tmp_path / "restart.h5").rename(tmp_path / "stopped.h5")
    rest = runs(GpuEngine, emulated, **plan, structure=str(tmp_path / "stopped.h5"))
    for name in ("positions", "velocities", "images"):
        assert np.array_equal(rest[name], whole[name])


@pytest.mark.parametrize("what", ["force", "overlap"])
def test_what_ends_a_run_ends_it_in_the_same_step(runs, emulated, monkeypatch, what):
    if what == "force":
        for module in (trouble, gpu_engine):
            monkeypatch.setattr(module, "FORCE_LIMIT", 2.0)
    else:
        short_table(monkeypatch)
        monkeypatch.setattr(deep, "R_OVERLAP", 2.25)
    said = []
    for kind in (GpuEngine, Engine):
        with pytest.raises(RunError) as caught:
            runs(kind, emulated, stages=[{**NVE, "steps": 60}], velocities={"temperature_K": 3000, "seed": 3})
        said.append((caught.value.what, caught.value.where))
        if kind is GpuEngine:
            assert runs.engine.thrown_away > 0
    assert said[0] == said[1]
    assert ("eV/Å" if what == "force" else "nearer than 2.25 Å") in said[0][0]


def test_a_table_is_extended_in_the_step_that_needs_it(runs, emulated, monkeypatch):
    short_table(monkeypatch)
    found, uppers = [], []
    for kind in (GpuEngine, Engine):
        found.append(runs(kind, emulated, stages=[{**NVE, "steps": 20}]))
        uppers.append(runs.potential._table.upper)
        if kind is GpuEngine:
            assert runs.engine.thrown_away > 0
    equal(*found)
    assert uppers[0] == uppers[1] > runs.potential.model.descriptor.s_range(deep.R_TABLE)[1]


def short_table(patch: pytest.MonkeyPatch) -> None:
    """Tables that reach from 2.3 Å on: atoms are 2.35 Å apart and come nearer."""
    read = deep.read_model
    patch.setattr(deep, "R_TABLE", 2.3)
    patch.setattr(deep, "read_model", lambda path: replace(read(path), table=None))


def test_the_gpus_memory_is_what_was_said(runs, emulated, capsys):
    runs(GpuEngine, emulated, replicate=[3, 3, 2], stages=[{**NVE, "steps": 2}])
    said = re.search(
        r"GPU: +(\S+) GB of GPU memory free for each rank, (\S+) kB/atom: room for about", capsys.readouterr().out
    )
    assert said
    assert float(said[1]) == pytest.approx((emulated.free_memory() - memory.GPU_BYTES) / 1e9, abs=0.06)
    of_tiles = ("moments", "inputs", "slope", "value", "adjoint")
    moving, kept = runs.engine, runs.potential._energy_ops.workspace.buffers._kept
    moving._build_on_gpu()
    moving.update_forces()  # as the host does where something has to be looked at: with lists of its own
    taken = sum(a.nbytes for k, a in kept.items() if not k.startswith(of_tiles))
    taken += moving.gpu_halo.gpu_nbytes
    taken += sum(keeper.buffers.nbytes for keeper in (moving.gpu.room, moving.ghosts, moving.search))
    # measured 1.06
    assert 0.6 < taken / (1e3 * float(said[2]) * moving.n_atoms) < 1.15


def test_a_run_that_does_not_fit_onto_the_gpu(runs, emulated, monkeypatch):
    monkeypatch.setattr(emulated, "free_memory", lambda: memory.GPU_BYTES + 12_000)
    with pytest.raises(InputError, match="8 atoms do not fit into the GPUs' memory") as caught:
        runs(GpuEngine, emulated)
    assert "at most about 2 atoms on these GPUs" in str(caught.value)
    runs(GpuEngine, emulated, ignore_memory_limit=True, stages=[{**NVE, "steps": 1}])


@pytest.mark.mpi
@pytest.mark.parametrize("gpu_aware_mpi", [False, True])
def test_any_number_of_ranks_gives_the_same_bits(comm, emulated, tmp_path, monkeypatch, gpu_aware_mpi):
    several = runs_in_one_folder(comm, tmp_path, monkeypatch)
    if gpu_aware_mpi:  # with the layers of many atoms, too
        monkeypatch.setattr(tiles, "FEW_ROWS", 0)
    else:
        several.few_atoms = tiles.FEW_ATOMS
    plan = {"stages": ALL, "replicate": [2, 1, 1]}
    found = several(kind_of(comm), emulated, comm, gpu_aware_mpi=gpu_aware_mpi, **plan)
    assert (several.engine.gpu_halo.host_nbytes < 100) == (gpu_aware_mpi or comm.size == 1)
    assert several.engine.thrown_away < 4
    if comm.rank == 0:
        equal(found, several(GpuEngine, emulated, **plan))
    comm.barrier()
