"""Minimizations: where they end, when, and what comes after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write
from ase.optimize import BFGS

from dphpc.core.config import parse_config
from dphpc.core.units import ACCELERATION
from dphpc.interfaces.ase import DPHPC
from dphpc.md.config import MdConfig
from dphpc.md.engine import Engine
from dphpc.md.minimize import Fire
from dphpc.md.restart import read_restart
from dphpc.md.run import Run, run_md
from dphpc.parallel.comm import Communicator, Serial
from tests.lennard_jones import LennardJones
from tests.md.test_integrators import true_positions

pytestmark = pytest.mark.two_ranks

Make = Callable[..., dict[str, Any]]
SILICON = Path(__file__).parents[2] / "examples" / "silicon" / "silicon.dp"

MINIMIZE: dict[str, Any] = {"ensemble": "minimize", "steps": 400, "force_tolerance_eV_A": 1e-4}
NVT: dict[str, Any] = {"ensemble": "nvt", "thermostat": "bussi", "temperature_K": 60, "steps": 10}


@pytest.fixture
def rattled(config: Make, comm: Communicator) -> Make:
    """As `config`, of a crystal whose atoms are not in their places; with a restart file."""
    path = Path(config()["structure"]).with_name("rattled.extxyz")
    if comm.rank == 0:
        atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (3, 2, 2)
        atoms.rattle(0.2, seed=4)
        write(path, atoms, parallel=False)
    comm.barrier()

    def make(**changes: Any) -> dict[str, Any]:
        restart = {"every": 1000, "file": str(path.with_name("r.h5"))}
        own = {"structure": str(path), "replicate": None, "stages": [MINIMIZE], "restart": restart}
        return config(**own | changes)

    return make


def largest_force(atoms: Any) -> float:
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def velocities_of(config: dict[str, Any]) -> np.ndarray:
    source, _, _ = read_restart(config["restart"]["file"])
    return source.read(0, source.n_atoms)["velocities"]


@pytest.mark.mpi
def test_a_crystal_goes_back_to_its_places(
    comm: Communicator, config: Make, rattled: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(config()["structure"]).parent
    perfect = run_md(config(stages=[{"ensemble": "nve", "steps": 0}]), comm=comm, potential=argon)
    lattice = perfect.thermo["potential_eV"][0]
    trajectory = {"file": str(folder / "t.extxyz"), "every": 1000, "forces": True, "velocities": True}
    result = run_md(rattled(trajectory=trajectory), comm=comm, potential=argon)
    thermo = result.thermo
    assert thermo["potential_eV"][0] > lattice + 0.9
    assert thermo["potential_eV"][-1] == pytest.approx(lattice, abs=3e-6)  # measured 9e-7
    assert result.converged
    assert 20 < result.steps < MINIMIZE["steps"]
    assert thermo["step"][-1] == result.steps
    assert result.stopped_by == 0
    for column in ("time_ps", "temperature_K", "kinetic_eV"):
        assert not thermo[column].any(), "time stands still, and so do the atoms for all who look"
    assert np.array_equal(thermo["conserved_eV"], thermo["potential_eV"])
    assert result.ns_per_day == 0.0
    out = capsys.readouterr().out
    if comm.rank == 0:
        assert f"minimized: converged after {result.steps} steps: E_pot {thermo['potential_eV'][-1]:.6f} eV" in out
        assert "F_max" in out.split("stage 1 of 1: minimize (FIRE, to forces of 0.0001 eV/Å), at most 400 steps")[1]
        assert "ns/day" not in out.splitlines()[-5]
        first, last = read(folder / "t.extxyz", index=":", parallel=False)
        assert largest_force(first) > 0.1
        assert largest_force(last) <= 1e-4
        assert not last.get_velocities().any()
        assert not velocities_of(rattled()).any()


def test_silicon_ends_where_ase_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    atoms.rattle(0.1, seed=1)
    write("si.extxyz", atoms)
    stage = {"ensemble": "minimize", "steps": 200, "force_tolerance_eV_A": 1e-3}
    result = run_md({"structure": "si.extxyz", "model": str(SILICON), "timestep_fs": 1.0, "stages": [stage]})
    atoms.calc = DPHPC(SILICON)
    search = BFGS(atoms, logfile=None)
    search.run(fmax=1e-3, steps=200)
    assert result.converged
    assert result.steps < 150  # measured 86; ASE's BFGS takes 16
    assert result.thermo["potential_eV"][-1] == pytest.approx(atoms.get_potential_energy(), abs=2e-6)  # measured 2e-7


def test_where_it_is_converged_nothing_is_done(
    config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [MINIMIZE, {"ensemble": "nve", "steps": 3}]
    run = Run(parse_config(MdConfig, config(stages=stages)), Serial(), argon)
    result = run.go()
    assert run.screen.done == run.screen.n_steps, "no steps are left to be done"
    assert result.converged
    assert result.steps == 3
    assert result.time_ps == pytest.approx(0.012)
    assert result.thermo["kinetic_eV"][-1] > 0.1, "velocities are drawn"
    assert "velocities: drawn at" in capsys.readouterr().out


@pytest.mark.mpi
def test_what_has_not_converged_is_a_warning(
    comm: Communicator, rattled: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_md(rattled(stages=[{**MINIMIZE, "steps": 7}, NVT]), comm=comm, potential=argon)
    assert result.converged is False
    assert result.steps == 17
    assert result.time_ps == pytest.approx(0.04)
    warning = "warning:   the minimization has not converged after 7 steps: E_pot "
    assert (warning in capsys.readouterr().out) == (comm.rank == 0)


@pytest.mark.mpi
def test_dynamics_begin_with_velocities_drawn_then(
    comm: Communicator, rattled: Make, config: Make, argon: LennardJones
) -> None:
    wanted = {"temperature_K": 45, "seed": 7}
    nve = {"ensemble": "nve", "steps": 1}
    short = {"thermo": {"every": 1, "file": None}, "velocities": wanted, "timestep_fs": 1e-6}
    # Stages before the first of dynamics, whether minimized to the end or not.
    for steps in (3, 400):
        stages = [{**MINIMIZE, "steps": steps}, {**MINIMIZE, "steps": 2}, nve]
        result = run_md(rattled(stages=stages, **short), comm=comm, potential=argon)
        assert result.thermo["temperature_K"][-2:].tolist() == [0.0, pytest.approx(45.0, rel=1e-6)]
    drawn = velocities_of(rattled())
    run_md(config(stages=[nve], restart=rattled()["restart"], **short), comm=comm, potential=argon)
    np.testing.assert_allclose(velocities_of(rattled()), drawn, atol=1e-5)
    # Of a structure nothing is kept; after each minimization they are drawn.
    result = run_md(rattled(stages=[nve, {**MINIMIZE, "steps": 3}, nve], **short), comm=comm, potential=argon)
    assert result.thermo["temperature_K"].tolist()[1:] == [
        pytest.approx(45.0),
        0.0,
        0.0,
        0.0,
        pytest.approx(45.0),
    ]


@pytest.mark.mpi
def test_a_run_goes_on_from_a_minimum(comm: Communicator, rattled: Make, argon: LennardJones) -> None:
    """By another run file, and by more stages in the same; from the middle of a minimization, too."""
    restart = rattled()["restart"]["file"]
    nve = {"ensemble": "nve", "steps": 1}
    after = {"structure": restart, "thermo": {"every": 1, "file": None}, "timestep_fs": 1e-6}

    def temperature(
        begun: list[dict[str, Any]], stages: list[dict[str, Any]], velocities: dict[str, Any] | None
    ) -> float:
        run_md(rattled(stages=begun), comm=comm, potential=argon)
        result = run_md(rattled(**after, stages=stages, velocities=velocities), comm=comm, potential=argon)
        assert result.steps == 1
        return float(result.thermo["temperature_K"][-1])

    drawn = {"temperature_K": 45}
    for steps in (400, 6):
        stage = {**MINIMIZE, "steps": steps}
        for stages in ([nve], [stage, nve]):
            assert temperature([stage], stages, drawn) == pytest.approx(45.0, rel=1e-6)
            assert temperature([stage], stages, None) == pytest.approx(0.0, abs=1e-6)
        # With dynamics before the minimization, too.
        assert temperature([nve, stage], [nve, stage, nve], drawn) == pytest.approx(45.0, rel=1e-6)
        assert temperature([nve, stage], [nve], drawn) == pytest.approx(45.0, rel=1e-6)


@pytest.mark.mpi
def test_velocities_of_a_restart_are_lost_too(comm: Communicator, rattled: Make, argon: LennardJones) -> None:
    nve = {"ensemble": "nve", "steps": 1}
    run_md(rattled(stages=[nve]), comm=comm, potential=argon)
    after = {"structure": rattled()["restart"]["file"], "thermo": {"every": 1, "file": None}, "timestep_fs": 1e-6}
    stages = [{**MINIMIZE, "steps": 4}, nve]
    result = run_md(rattled(**after, stages=stages, velocities={"temperature_K": 45}), comm=comm, potential=argon)
    assert result.thermo["temperature_K"].tolist() == [0.0] * 5 + [pytest.approx(45.0, rel=1e-6)]


def test_the_minimum_is_written_whatever_is_due(rattled: Make, argon: LennardJones, tmp_path: Path) -> None:
    """Before dynamics goes on from it, and once."""
    outputs = {
        "thermo": {"every": 1000, "file": None},
        "trajectory": {"every": 1000, "file": str(tmp_path / "t.extxyz")},
    }
    result = run_md(rattled(stages=[MINIMIZE, NVT], **outputs), potential=argon)
    steps = result.thermo["step"].astype(int).tolist()
    assert steps == [0, result.steps - NVT["steps"], result.steps]
    assert result.thermo["potential_eV"][1] < result.thermo["potential_eV"][0]
    assert len(read(tmp_path / "t.extxyz", ":")) == 3


@pytest.mark.mpi
def test_the_minimum_stays_where_others_go_on_from_it(
    comm: Communicator, rattled: Make, argon: LennardJones, tmp_path: Path
) -> None:
    """By another run file, as by more stages in one; where the minimization itself goes on, its end does not stay."""
    folder = Path(comm.bcast(str(tmp_path)))

    def files(name: str) -> dict[str, Any]:
        return {
            "thermo": {"every": 1000, "file": str(folder / f"{name}.csv")},
            "trajectory": {"every": 1000, "file": str(folder / f"{name}.extxyz")},
            "restart": {"every": 1000, "file": str(folder / f"{name}.h5")},
        }

    def steps(name: str) -> list[int]:
        return [int(line.split(",")[0]) for line in (folder / f"{name}.csv").read_text().splitlines()[1:]]

    nve, short = {"ensemble": "nve", "steps": 4}, MINIMIZE | {"steps": 6}
    after = {"structure": str(folder / "two.h5"), "replicate": None}
    run_md(rattled(stages=[MINIMIZE, nve], **files("one")), comm=comm, potential=argon)
    run_md(rattled(stages=[short], **files("two")), comm=comm, potential=argon)
    assert steps("two") == [0, 6]
    for stages in ([MINIMIZE], [nve]):
        run_md(rattled(stages=stages, **files("two"), **after), comm=comm, potential=argon)
    comm.barrier()
    end = steps("one")[-1]
    assert steps("two") == [0, end - 4, end]
    for suffix in ("csv", "extxyz"):
        assert (folder / f"two.{suffix}").read_bytes() == (folder / f"one.{suffix}").read_bytes()


def test_no_atom_goes_farther_than_it_may(engine_of: Callable[..., Engine]) -> None:
    engine, fire = engine_of(n=2, temperature=0.0), Fire(1e-4, 0.03)
    engine.state.positions[0] += (0.8, 0.4, 0.0)  # close to another atom
    engine.update_forces()
    fire.begin(engine)
    before, farthest = true_positions(engine), 0.0
    while not fire.converged and fire.steps < 300:
        fire.step(engine, 0.0)
        after = true_positions(engine)
        farthest, before = max(farthest, np.linalg.norm(after - before, axis=1).max()), after
    assert fire.converged
    assert farthest == pytest.approx(0.03, rel=1e-9)


def test_downhill_it_speeds_up_and_uphill_it_turns_back(engine_of: Callable[..., Engine]) -> None:
    engine, fire = engine_of(n=2, temperature=0.0), Fire(1e-9, 0.5)
    fire.begin(engine)
    state, n = engine.state, engine.n_atoms
    slower, faster = 0, 0
    while fire.steps < 120:
        x, v, f = (array[:n].copy() for array in (state.positions, state.velocities, state.forces))
        moved, pace, saved = fire.moved, fire.pace, fire.save()
        fire = Fire(1e-9, 0.5)
        fire.load(saved)
        fire.step(engine, 0.0)
        faster += fire.pace > pace
        if np.sum(v * f) < 0.0:
            np.testing.assert_allclose(state.positions[:n] - x, -0.5 * moved * v, atol=1e-12)
            assert not state.velocities[:n].any()
            assert (fire.alpha, fire.downhill) == (0.25, 0)
            slower += fire.pace == 0.5 * pace
        else:
            push = fire.alpha * np.linalg.norm(v) / np.linalg.norm(f)
            mixed = (1 - fire.alpha) * (v + fire.pace * engine.timestep * ACCELERATION / 39.95 * f) + push * f
            np.testing.assert_allclose(state.velocities[:n], mixed, atol=1e-10)  # measured 1.2e-11
            np.testing.assert_allclose(state.positions[:n] - x, fire.moved * mixed, atol=1e-12)
    assert engine.rebuilds == 1, "atoms stand where they stood in memory"
    assert slower >= 1
    assert faster >= 10
