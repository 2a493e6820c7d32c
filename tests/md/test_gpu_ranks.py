"""Several ranks whose atoms live on GPUs: the bits of one rank, with lists and forces of the GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dphpc.core.errors import RunError
from dphpc.core.state import GHOSTED, MIGRATING, State
from dphpc.md import engine, memory
from dphpc.md.engine import OWN_PAIRS, SORT_CELL, Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.md.gpu_ranks import BORDER, FIRST, LAST, RankEngine
from dphpc.md.integrators import VelocityVerlet
from dphpc.ops.neighbors.native import build_neighbors
from dphpc.parallel.comm import Communicator
from dphpc.parallel.domain import Domain
from dphpc.parallel.halo import Halo
from dphpc.parallel.migrate import migrate, sort_spatially
from tests.md.test_gpu_engine import NVE, ROWS, Runs, equal, kind_of, let_fly, runs_in_one_folder, short_table
from tests.ops.emulation.device import EmulatedDevice

pytestmark = [pytest.mark.mpi, pytest.mark.two_ranks]

LONG = {"replicate": [1, 1, 6], "stages": [{**NVE, "steps": 12}]}
"""Bricks of two ranks have atoms that no ghost of the other is near."""


@pytest.fixture
def runs(comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return runs_in_one_folder(comm, tmp_path, monkeypatch)


def assert_the_lists_are_the_hosts(engine: RankEngine) -> None:
    engine.to_host(lists=True)
    state = engine.state
    state.positions[: state.n_local] = engine.gpu.built_at
    engine.halo.refresh_ghosts(state)
    expected = build_neighbors(state.positions, state.types, state.ids, state.n_local, engine.reach)
    assert np.array_equal(engine.neighbors.offsets, expected.offsets)
    assert np.array_equal(engine.neighbors.indices, expected.indices)
    assert np.array_equal(engine.work, np.diff(expected.offsets) + float(OWN_PAIRS))


def assert_the_gpus_memory_is_what_was_said(engine: RankEngine, device: EmulatedDevice) -> None:
    said = memory.estimate(engine.n_atoms, engine.domain, engine.potential, engine.reach, engine.comm, device=device)
    assert said.gpu is not None
    taken = sum(kept.buffers.nbytes for kept in (engine.gpu.room, engine.ghosts, engine.search))
    taken += engine.gpu_halo.gpu_nbytes
    taken = int(engine.comm.allreduce(np.array([taken]))[0])
    assert 0.6 < taken / (said.gpu.per_atom * engine.n_atoms) < 1.1  # but for the model's own; measured 0.69 to 0.77


def test_inner_atoms_are_evaluated_while_messages_are_under_way(
    runs: Runs, comm: Communicator, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = runs(kind_of(comm), emulated, comm, **LONG)
    engine = runs.engine
    assert engine.rebuilds >= 1
    if comm.size > 1:
        assert_the_lists_are_the_hosts(engine)
        assert_the_gpus_memory_is_what_was_said(engine, emulated)
        done: list[object] = []
        launch, land = engine._launch_part, engine._land
        monkeypatch.setattr(engine, "_launch_part", lambda part: (done.append(part), launch(part)))
        monkeypatch.setattr(engine, "_land", lambda flight: (done.append("land"), land(flight)))
        engine.advance(VelocityVerlet(), [0.0] * engine.steps_ahead(1))
        assert done[-5:] == [FIRST, "land", BORDER, LAST, "land"]
        placed = engine.potential._placed
        assert all(group.n % group.net.rows == 0 for part in (FIRST, LAST) for group in placed[part])
        assert sum(group.n for part in placed for group in part) == engine.state.n_local
        engine.to_host()
        Engine._divide(engine)
        n_inner = sum(len(part) for part in engine.inner)
        assert bool(placed[FIRST]) == (n_inner >= ROWS)
        assert comm.size > 2 or placed[FIRST]
    if comm.rank == 0:
        equal(found, runs(GpuEngine, emulated, **LONG))
    comm.barrier()


def dealt_out_by_the_host(engine: RankEngine) -> tuple[State, Halo]:
    """The atoms as they are, each where it belongs, in order, with ghosts; collective."""
    engine.to_host()
    old = engine.state
    state, halo = State(old.box), Halo(engine.domain, engine.comm)
    state.append_local(old.rows(MIGRATING, np.arange(old.n_local)))
    migrate(state, engine.domain, engine.comm)
    sort_spatially(state, engine.domain, SORT_CELL)
    halo.build_ghosts(state, engine.reach)
    return state, halo


@pytest.mark.parametrize("replicate", [[1, 1, 6], [2, 2, 1]])
def test_a_list_is_dealt_out_on_the_gpu(
    runs: Runs, comm: Communicator, emulated: EmulatedDevice, replicate: list[int]
) -> None:
    """With what leaves and what is near a face alone on its way between it and the host."""
    if comm.size == 1:
        pytest.skip("one rank deals nothing out")
    runs.velocities = {"temperature_K": 3000, "seed": 3}
    runs(RankEngine, emulated, comm, replicate=replicate, stages=[{**NVE, "steps": 30}], skin_A=0.8)
    engine = runs.engine
    for _ in range(100):
        engine.to_host()
        before = set(engine.state.ids[: engine.state.n_local].tolist())
        state, halo = dealt_out_by_the_host(engine)
        leave = before - set(state.ids[: state.n_local].tolist())
        if comm.allreduce(np.array([len(leave)]))[0]:
            break
        engine.advance(VelocityVerlet(), [0.0])
    else:
        pytest.fail("none leaves")
    come = state.n_local - len(before) + len(leave)
    near = engine.domain.outside(
        state.positions[: state.n_local], engine.domain.interior(engine.reach, images=True)
    ).sum()
    down, up = emulated.downloaded, emulated.uploaded
    engine._build()
    down, up = emulated.downloaded - down, emulated.uploaded - up
    assert 0 <= down - 80 * len(leave) - (36 + 4) * near < 250, "numbers of atoms, pairs and parts come down, too"
    assert up == 80 * come + 36 * state.n_ghost + 4 * len(halo.routes.send) + 24 * state.n_ghost
    assert_the_lists_are_the_hosts(engine)
    engine.to_host(lists=True)
    assert (engine.state.n_local, engine.state.n_all) == (state.n_local, state.n_all)
    for f in MIGRATING:
        n = state.n_all if f in GHOSTED else state.n_local
        assert np.array_equal(getattr(engine.state, f.name)[:n], getattr(state, f.name)[:n]), f.name


def test_a_table_that_has_to_be_extended(
    runs: Runs, comm: Communicator, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host evaluates the step in which pairs come nearer than the table reaches."""
    short_table(monkeypatch)
    plan = {**LONG, "stages": [{**NVE, "steps": 6}]}
    found = runs(kind_of(comm), emulated, comm, **plan)
    assert (
        comm.allreduce(np.array([runs.potential._table.upper]), "max") > runs.potential.model.descriptor.s_range(2.3)[1]
    )
    if comm.rank == 0:
        equal(found, runs(GpuEngine, emulated, **plan))
    comm.barrier()


def test_planes_move_while_atoms_are_on_the_gpus(
    runs: Runs, comm: Communicator, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BALANCE_EVERY", 1)
    monkeypatch.setattr(engine, "UNBALANCED", -1.0)
    found = runs(kind_of(comm), emulated, comm, **LONG)
    if comm.size > 1:
        own, even = runs.engine.domain, Domain.even(runs.engine.domain.box, comm.size, comm.rank)
        assert not all(map(np.array_equal, own.cuts, even.cuts))
        assert_the_lists_are_the_hosts(runs.engine)
    if comm.rank == 0:
        equal(found, runs(GpuEngine, emulated, **LONG))
    comm.barrier()


def test_an_atom_that_flies_away_is_named_on_all_ranks(
    runs: Runs, comm: Communicator, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_fly(monkeypatch, 11)
    with pytest.raises(RunError, match="atom 3 flew") as caught:
        runs(kind_of(comm), emulated, comm, **LONG)
    assert "step 12" in caught.value.where
