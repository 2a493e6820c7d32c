"""Fixed atoms: which they are, that they stay, and that the others move as physics has it beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.md.verlet import VelocityVerlet as AseVerlet
from ase.optimize import BFGS

from dphpc.core.config import parse_config
from dphpc.core.errors import InputError
from dphpc.core.fixing import FixedAtoms
from dphpc.core.state import RESTARTED
from dphpc.core.units import BOLTZMANN_EV_PER_K
from dphpc.interfaces.ase import DPHPC
from dphpc.md import restart
from dphpc.md.config import MdConfig
from dphpc.md.engine import Engine
from dphpc.md.ensembles import integrator_of
from dphpc.md.groups import Groups
from dphpc.md.integrators import VelocityVerlet
from dphpc.md.minimize import Fire
from dphpc.md.run import run_md
from dphpc.md.stages import Stage
from dphpc.parallel.comm import Communicator
from tests.lennard_jones import LennardJones
from tests.md.test_deterministic import SILICON, THERMOSTATS, atoms_of, compared, written  # noqa: F401
from tests.md.test_integrators import run

Make = Callable[..., dict[str, Any]]
EngineOf = Callable[..., Engine]

NVE: dict[str, Any] = {"ensemble": "nve", "steps": 10}
MINIMIZE: dict[str, Any] = {"ensemble": "minimize", "steps": 24}
STAGES = {name: [stage] for name, stage in THERMOSTATS.items() if stage["ensemble"] != "npt"}
STAGES["minimize"] = [NVE, MINIMIZE]  # of the crystal itself no force is to be minimized

LAYERS = {"below_A": {"x": 5.39}, "ids": [3]}
"""Of argon; at the bound there are atoms that go to and fro."""


@pytest.fixture
def hot(config: Make) -> Make:
    """As `config`, of a crystal that is as hot as it can be, and some of it fixed; with a restart file."""
    restart = {"every": 1000, "file": str(Path(config()["structure"]).with_name("r.h5"))}

    def make(**changes: Any) -> dict[str, Any]:
        own = {"replicate": [6, 2, 2], "velocities": {"temperature_K": 160}, "fixed": LAYERS, "restart": restart}
        return config(**own | changes)

    return make


def end_of(config: dict[str, Any], **options: Any) -> dict[str, np.ndarray]:
    """Every atom at the end of a run."""
    run_md(config, **options)
    return atoms_of(config["restart"]["file"])


def fixed_ids(atoms: dict[str, np.ndarray]) -> list[int]:
    return atoms["atoms/ids"][atoms["atoms/fixed"] != 0].tolist()


@pytest.mark.mpi
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", STAGES)
def test_they_do_not_move_by_a_bit(
    name: str, deterministic: bool, comm: Communicator, argon: LennardJones, hot: Make
) -> None:
    options = {"comm": comm, "potential": argon}
    before = end_of(hot(stages=[{**NVE, "steps": 0}], deterministic=deterministic), **options)
    after = end_of(hot(stages=STAGES[name], deterministic=deterministic), **options)
    still = after["atoms/fixed"] != 0
    x = before["atoms/positions"][:, 0]
    assert (still == ((x < 5.39) | (before["atoms/ids"] % 4 == 3))).all()
    for field in ("positions", "images"):
        assert np.array_equal(after[f"atoms/{field}"][still], before[f"atoms/{field}"][still])
    assert not before["atoms/velocities"][still].any()
    assert not after["atoms/velocities"][still].any()
    moved = np.abs(after["atoms/positions"] - before["atoms/positions"]).max(axis=1) > 0.0
    assert np.array_equal(moved, ~still)


@pytest.mark.mpi
@pytest.mark.parametrize("name", STAGES)
def test_ranks_and_restarts_give_the_same_bits(
    name: str,
    argon: LennardJones,
    hot: Make,
    compared: Callable[..., None],  # noqa: F811
) -> None:
    """Atoms that have come to where others were chosen at the beginning stay free."""
    compared({k: v for k, v in hot(stages=STAGES[name]).items() if k != "restart"}, argon)


@pytest.mark.slow
def test_nve_conserves_the_energy_of_the_others(engine_of: EngineOf) -> None:
    engine = engine_of(n=2, n_fixed=8)
    still = engine.state.fixed[:32] != 0
    before = engine.state.positions[:32][still].copy()
    rows = run(engine, VelocityVerlet(), 2500)
    total = np.array([row.total_eV for row in rows]) / engine.n_atoms
    slope = np.polyfit([row.time_ps for row in rows], total, 1)[0]
    assert abs(slope) < 5e-8  # eV/atom/ps
    assert np.ptp(total) < 2e-5  # eV/atom
    assert np.array_equal(
        np.sort(engine.state.positions[:32][engine.state.fixed[:32] != 0], axis=0), np.sort(before, axis=0)
    )
    assert np.abs(engine.momentum()[:3]).max() > 1.0, "the fixed atoms take up momentum"


def test_temperature_and_mean_mass_are_those_of_the_atoms_that_move(engine_of: EngineOf) -> None:
    engine = engine_of(n=2, n_fixed=8, temperature=87.0)
    kinetic = engine.kinetic_energy()
    assert kinetic == pytest.approx(1.5 * 24 * BOLTZMANN_EV_PER_K * 87.0, rel=1e-13)
    (row,) = run(engine, VelocityVerlet(), 1)
    assert row.temperature_K == pytest.approx(row.kinetic_eV / (1.5 * 24 * BOLTZMANN_EV_PER_K), rel=1e-13)
    fire = Fire(1e-3, 0.1)
    fire.begin(engine)
    assert fire.mass == pytest.approx(39.95, rel=1e-14)


@pytest.mark.parametrize("name", ["nose-hoover", "bussi"])
def test_thermostats_count_3_for_each_atom_that_moves(name: str) -> None:
    stage = Stage.model_validate(THERMOSTATS[name])
    for n_fixed, dof in ((0, 93), (8, 72), (31, 3)):
        assert integrator_of(stage, 32, FixedAtoms((32 - n_fixed, *[0] * 6, n_fixed)), 1, Groups(), 0).dof == dof


def silicon(*constraints: Any) -> Atoms:
    """Rattled silicon, moving, some of it fixed by ASE's constraints; written to si.extxyz, too."""
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_constraint(constraints)
    atoms.set_velocities(np.random.default_rng(2).normal(0.0, 0.05, (8, 3)))
    write("si.extxyz", atoms)
    atoms.calc = DPHPC(SILICON)
    return atoms


def moves_as_ase(atoms: Atoms) -> tuple[Atoms, dict[str, np.ndarray]]:
    """Compare 60 steps of `silicon` with ASE's, which move `atoms`; returns the last frame and all atoms at the end."""
    settings = {
        "structure": "si.extxyz", "model": str(SILICON), "timestep_fs": 1.0, "stages": [{**NVE, "steps": 60}],
        "restart": {"file": "r.h5"}, "trajectory": {"file": "t.extxyz", "every": 60, "forces": True},
    }  # fmt: skip
    found = end_of(settings)
    AseVerlet(atoms, 1.0 * units.fs).run(60)
    positions = found["atoms/positions"] + found["atoms/images"] @ found["box"]
    np.testing.assert_allclose(positions, atoms.positions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found["atoms/velocities"] * 1e-3 / units.fs, atoms.get_velocities(), rtol=0, atol=1e-8)
    last, forces = read("t.extxyz"), atoms.get_forces(apply_constraint=False)
    np.testing.assert_allclose(last.get_forces(apply_constraint=False), forces, rtol=0, atol=1e-6)
    # The frame as a structure fixes the same.
    again = end_of(settings | {"structure": "t.extxyz", "trajectory": None})
    assert np.array_equal(again["atoms/fixed"], found["atoms/fixed"])
    return last, found


def minimum_is_ases(atoms: Atoms, steps: int) -> None:
    """Compare the minimum of `silicon` with ASE's, to which `atoms` move."""
    stage = {"ensemble": "minimize", "steps": steps, "force_tolerance_eV_A": 1e-3}
    result = run_md({"structure": "si.extxyz", "model": str(SILICON), "timestep_fs": 1.0, "stages": [stage]})
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=steps)
    assert result.converged
    assert np.linalg.norm(atoms.get_forces(apply_constraint=False), axis=1).max() > 0.1, "where atoms are fixed"
    assert result.thermo["potential_eV"][-1] == pytest.approx(atoms.get_potential_energy(), abs=2e-6)


@pytest.fixture
def slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Atoms:
    """Silicon whose lowest layers ASE fixes."""
    monkeypatch.chdir(tmp_path)
    return silicon(FixAtoms([0, 1, 6, 7]))


def test_the_trajectory_is_ases(slab: Atoms, capsys: pytest.CaptureFixture[str]) -> None:
    last, _ = moves_as_ase(slab)
    assert "fixed:     4 of 8 atoms, as si.extxyz says" in capsys.readouterr().out
    assert last.constraints[0].index.tolist() == slab.constraints[0].index.tolist()
    forces = slab.get_forces(apply_constraint=False)
    assert np.abs(forces[last.constraints[0].index]).max() > 0.1, "fixed atoms feel forces"


def test_a_minimum_is_ases(slab: Atoms) -> None:
    minimum_is_ases(slab, 200)


@pytest.mark.mpi
def test_what_a_run_file_names(comm: Communicator, argon: LennardJones, hot: Make) -> None:
    def chosen(**fixed: Any) -> list[int]:
        config = hot(stages=[{**NVE, "steps": 0}], replicate=[2, 1, 1], fixed=fixed)
        return fixed_ids(end_of(config, comm=comm, potential=argon))

    assert chosen() == []
    assert chosen(ids=[2]) == [2, 6], "copies, too"
    assert chosen(ids=["1 - 2", "2-3"]) == [1, 2, 3, 5, 6, 7]
    # x of the atoms in turn is 0, 0, 2.7, 2.7 and 5.4 more for their copies.
    assert chosen(below_A={"x": 0.1}) == [1, 2]
    assert chosen(above_A={"x": 8.0}, ids=[1]) == [1, 5, 7, 8]
    assert chosen(below_A={"x": 0.1, "y": 0.1}) == [1, 2, 3, 5, 7]


def test_velocities_that_the_file_gives_them_are_lost(slab: Atoms) -> None:
    slab.set_constraint()
    slab.set_velocities(np.full((8, 3), 0.05))
    write("si.extxyz", slab)
    settings = {"structure": "si.extxyz", "model": str(SILICON), "restart": {"file": "r.h5"}, "stages": [NVE]}
    found = end_of(settings | {"fixed": [{"ids": [2, 5]}, {"ids": [6], "directions": "xz"}]})
    assert np.argwhere(found["atoms/velocities"] == 0.0).tolist() == [
        [1, 0],
        [1, 1],
        [1, 2],
        [4, 0],
        [4, 1],
        [4, 2],
        [5, 0],
        [5, 2],
    ]


def test_coordinates_are_those_of_the_file_also_outside_the_box(slab: Atoms) -> None:
    settings = {"structure": "si.extxyz", "model": str(SILICON), "restart": {"file": "r.h5"}, "replicate": [1, 1, 2]}
    settings |= {"fixed": {"below_A": {"z": 0.5}}, "stages": [{**NVE, "steps": 0}]}
    lowest = np.flatnonzero(slab.positions[:, 2] < 0.5)
    assert slab.positions[lowest, 2].min() < 0.0
    assert len(lowest) == 2
    assert fixed_ids(end_of(settings)) == (lowest + 1).tolist(), "not their copies above"


@pytest.mark.mpi
def test_mistakes(comm: Communicator, argon: LennardJones, hot: Make, config: Make) -> None:
    slab = Path(config()["structure"]).with_name("slab.extxyz")
    if comm.rank == 0:
        atoms = bulk("Ar", "fcc", a=5.4, cubic=True)
        atoms.set_constraint(FixAtoms(range(4)))
        write(slab, atoms, parallel=False)
    comm.barrier()
    before = sorted(slab.parent.iterdir())
    for changes, message in [
        ({"fixed": {"id": [1]}}, r"(?s)'id'.*did you mean 'ids'"),
        ({"fixed": {"ids": ["9-3"]}}, r"'9-3' in 'ids' is neither an id nor a range.*write 12 or \"10-20\""),
        ({"fixed": {"ids": ["10:20"]}}, "'10:20' in 'ids' is neither"),
        ({"fixed": {"ids": [0]}}, "fixed.ids"),
        ({"fixed": {"below_A": {"w": 3}}}, "fixed.below_A"),
        ({"fixed": {"species": ["Xe"]}}, r"(?s)names 'Xe', which the model does not know.*known are: Ar"),
        ({"fixed": {"ids": [1, 99]}}, "names id 99, and there are no such atoms"),
        ({"fixed": {"ids": ["7-12"]}}, "names ids 7-12, and there are no such atoms"),
        ({"fixed": {"above_A": {"z": 200}}}, "names z above 200 Å, and there are no such atoms"),
        ({"fixed": {"species": ["Ar"]}}, r"(?s)all atoms are fixed.*the run file"),
        ({"fixed": None, "structure": str(slab)}, r"(?s)all atoms are fixed.*slab.extxyz"),
    ]:
        with pytest.raises(InputError, match=message):
            run_md(hot(**changes), comm=comm, potential=argon)
    comm.barrier()
    assert sorted(slab.parent.iterdir()) == before
    for free in ({}, []):
        assert fixed_ids(end_of(hot(structure=str(slab), stages=[NVE], fixed=free), comm=comm, potential=argon)) == []


def test_restarts_keep_them_or_take_another_choice(argon: LennardJones, hot: Make, tmp_path: Path) -> None:
    begun = end_of(hot(stages=[NVE]), potential=argon)
    again = {"structure": str(tmp_path / "begun.h5"), "replicate": None, "stages": [{**NVE, "steps": 12}]}
    (tmp_path / "r.h5").rename(again["structure"])
    for fixed in (None, LAYERS):
        assert fixed_ids(end_of(hot(**again, fixed=fixed), potential=argon)) == fixed_ids(begun)
    assert fixed_ids(end_of(hot(**again, fixed={}), potential=argon)) == []
    assert fixed_ids(end_of(hot(**again, fixed={"ids": [5]}), potential=argon)) == [5]
    # To go on is to go on with the same atoms.
    with pytest.raises(InputError, match=r"(?s)with other fixed atoms.*expected: fixed: \[\{'ids': \[5\]\}\]"):
        run_md(hot(**again), potential=argon, resume=True)
    longer = again | {"stages": [{**NVE, "steps": 14}]}
    assert run_md(hot(**longer, fixed={"ids": [5]}), potential=argon, resume=True).steps == 2


def test_an_older_restart_fixes_none(
    argon: LennardJones, hot: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(restart, "RESTARTED", tuple(f for f in RESTARTED if f.name != "fixed"))
        assert "atoms/fixed" not in end_of(hot(stages=[NVE], fixed=None), potential=argon)
    older = {"structure": str(tmp_path / "r.h5"), "replicate": None, "stages": [{**NVE, "steps": 12}]}
    assert fixed_ids(end_of(hot(**older, fixed=None), potential=argon)) == []


def test_ranges_of_ids() -> None:
    given = {"structure": "a.lmp", "model": "m.dp", "stages": [NVE], "fixed": {"ids": [7, "3", "10-20", "5 - 5"]}}
    assert parse_config(MdConfig, given).fixed[0].id_ranges == [(7, 7), (3, 3), (10, 20), (5, 5)]
