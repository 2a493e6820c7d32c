"""Runs that begin on the GPU: the first list and forces are the host's, and so is what is said of a bad structure."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from ase.io import write

from dphpc.core.errors import RunError
from dphpc.core.state import State
from dphpc.md import engine, gpu_engine, run, trouble
from dphpc.md.engine import Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.potential import deep
from tests.md.test_gpu_engine import NVE, equal, host_steps, short_table
from tests.md.test_gpu_rebuild import mixed, runs, skewed, slab, small

__all__ = ["runs"]


def host_searches(patch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each list that the host builds from here on."""
    searches: list[int] = []
    search = engine.build_neighbors

    def counted(*arguments):
        searches.append(len(searches))
        return search(*arguments)

    patch.setattr(engine, "build_neighbors", counted)
    return searches


@pytest.mark.parametrize("runs", [small, skewed, slab, mixed], indirect=True)
def test_the_host_need_not_search(runs, emulated, monkeypatch, tmp_path):
    plan = {
        "stages": [{**NVE, "steps": 30}], "thermo": {"every": 1, "file": None},
        "trajectory": {"every": 10, "file": str(tmp_path / "t.extxyz")},
    }  # fmt: skip
    searches, steps = host_searches(monkeypatch), host_steps(monkeypatch)
    gpu = runs(GpuEngine, emulated, **plan)
    on_gpu = (tmp_path / "t.extxyz").read_bytes()
    assert runs.engine.rebuilds >= 1
    assert not searches
    assert not steps
    (tmp_path / "restart.h5").unlink()
    equal(gpu, runs(Engine, emulated, **plan))
    assert searches
    assert (tmp_path / "t.extxyz").read_bytes() == on_gpu


def test_a_start_brings_down_a_few_numbers(runs, emulated, monkeypatch):
    monkeypatch.setattr(GpuEngine, "_sample", lambda _: (None, None))
    monkeypatch.setattr(deep.DeepPotential, "look_over", lambda *_: None)
    begin, brought = GpuEngine._begin, []

    def counted(moving: GpuEngine) -> bool:
        before = emulated.downloaded
        stands = begin(moving)
        brought.append(emulated.downloaded - before - moving._report.nbytes)
        return stands

    monkeypatch.setattr(GpuEngine, "_begin", counted)
    runs(GpuEngine, emulated, stages=[{**NVE, "steps": 1}])
    assert 0 < brought[0] <= 3 * (2 * 8 + 7 * 8) + 7 * 8, "sizes and extents of three tries, and of the grid"


def not_finite(state: State) -> None:
    state.positions[5, 1] = np.nan


def one_on_another(state: State) -> None:
    state.positions[5] = state.positions[2]


def nearer_than_allowed(state: State) -> None:
    state.positions[5] = state.positions[2] + (0.0, 0.01, 0.0)


def near(state: State) -> None:
    state.positions[5] = state.positions[2] + (0.0, 0.4, 0.0)


SAID = {
    not_finite: "not finite",
    one_on_another: "nearer than",
    nearer_than_allowed: "nearer than",
    near: "eV/Å",  # FORCE_LIMIT
}


@pytest.mark.parametrize("runs", [small, slab], indirect=True)
@pytest.mark.parametrize("spoil", SAID)
@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, on the host
def test_what_is_wrong_with_a_structure_is_said_as_by_the_host(runs, emulated, monkeypatch, spoil):
    deal = run.deal_atoms

    def spoiled(*arguments) -> State:
        state = deal(*arguments)
        spoil(state)
        return state

    monkeypatch.setattr(run, "deal_atoms", spoiled)
    for module in (trouble, gpu_engine):
        monkeypatch.setattr(module, "FORCE_LIMIT", 1.0)
    said = []
    for kind in (GpuEngine, Engine):
        with pytest.raises(RunError) as caught:
            runs(kind, emulated)
        said.append((caught.value.what, caught.value.where, caught.value.remedy))
    assert said[0] == said[1]
    assert SAID[spoil] in said[0][0]


@pytest.mark.parametrize("runs", [small], indirect=True)
def test_a_table_that_is_too_short_from_the_start_is_extended(runs, emulated, monkeypatch):
    short_table(monkeypatch)
    atoms = small()
    atoms.rattle(0.2, seed=2)
    write(runs.folder / "si.extxyz", atoms, parallel=False)
    searches, found, uppers = host_searches(monkeypatch), [], []
    for kind in (GpuEngine, Engine):
        found.append(runs(kind, emulated))
        uppers.append(runs.potential._table.upper)
    assert searches
    equal(*found)
    assert uppers[0] == uppers[1] > runs.potential.model.descriptor.s_range(deep.R_TABLE)[1]


@pytest.mark.parametrize("runs", [skewed, mixed], indirect=True)
def test_more_neighbors_than_sel_are_spoken_of(runs, emulated, monkeypatch, caplog):
    read = deep.read_model

    def with_few_slots(path):
        model = read(path)
        sel = [3] * len(model.descriptor.sel)
        return replace(model, descriptor=replace(model.descriptor, sel=sel))

    monkeypatch.setattr(deep, "read_model", with_few_slots)
    said = []
    for kind in (GpuEngine, Engine):
        with caplog.at_level(logging.WARNING, deep.__name__):
            runs(kind, emulated, stages=[{**NVE, "steps": 3}])
        said.append([record.getMessage() for record in caplog.records if record.name == deep.__name__])
        caplog.clear()
    assert said[0] == said[1]
    assert len(said[0]) == 1
    assert "sel is 3" in said[0][0]


def test_what_is_looked_over_is_some_atoms_with_their_neighbors(runs, emulated, monkeypatch):
    runs(GpuEngine, emulated, stages=[{**NVE, "steps": 1}])
    moving: GpuEngine = runs.engine
    moving._build_on_gpu()
    for n in (3, 10**6):
        monkeypatch.setattr(gpu_engine, "SAMPLE", n)
        state, neighbors = moving._sample()
        n = min(n, moving.gpu.n_local)
        assert state.n_local == n
        assert np.array_equal(neighbors.offsets, moving._system.offsets[: n + 1])
        listed = moving._system.indices[: neighbors.n_pairs]
        for name in ("ids", "types", "positions"):
            array = getattr(moving.gpu, name)
            assert np.array_equal(getattr(state, name)[:n], array[:n])
            assert np.array_equal(getattr(state, name)[neighbors.indices], array[listed])
