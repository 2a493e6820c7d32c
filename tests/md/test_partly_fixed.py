"""Atoms fixed in some directions only: there they stay, in the others they move, and as such they are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian

from dphpc.core.errors import InputError
from dphpc.core.exact_sum import total
from dphpc.core.fixing import FixedAtoms, held_in, number_of
from dphpc.core.units import BOLTZMANN_EV_PER_K
from dphpc.md import fixed, restart
from dphpc.md import run as run_module
from dphpc.md.engine import Engine
from dphpc.md.integrators import VelocityVerlet
from dphpc.md.minimize import Fire
from dphpc.md.observables import degrees_of_freedom, measure
from dphpc.md.run import run_md
from dphpc.md.thermostats import Langevin
from dphpc.md.velocities import stop_drift
from dphpc.parallel.comm import Communicator
from tests.lennard_jones import LennardJones
from tests.md.test_deterministic import SILICON, compared, written  # noqa: F401
from tests.md.test_fixed import NVE, STAGES, end_of, hot, minimum_is_ases, moves_as_ase, silicon  # noqa: F401
from tests.md.test_integrators import NO_BATH, run

Make = Callable[..., dict[str, Any]]
EngineOf = Callable[..., Engine]

PARTLY: list[dict[str, Any]] = [
    {"below_A": {"x": 5.39}, "directions": "z"},
    {"ids": [3], "directions": "xy"},
    {"ids": [1], "above_A": {"x": 29.0}},
]
"""Of hot argon; some atoms are in two of them."""


def held_ones(atoms: dict[str, np.ndarray]) -> np.ndarray:
    return held_in(atoms["atoms/fixed"])


@pytest.mark.mpi
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", STAGES)
def test_they_do_not_move_there_by_a_bit(
    name: str,
    deterministic: bool,
    comm: Communicator,
    argon: LennardJones,
    hot: Make,  # noqa: F811
) -> None:
    options, choice = {"comm": comm, "potential": argon}, {"deterministic": deterministic, "fixed": PARTLY}
    before = end_of(hot(stages=[{**NVE, "steps": 0}], **choice), **options)
    after = end_of(hot(stages=STAGES[name], **choice), **options)
    x, ids, held = before["atoms/positions"][:, 0], before["atoms/ids"], held_ones(after)
    assert np.array_equal(held, held_ones(before))
    wholly = (ids % 4 == 1) | (x > 29.0)
    assert np.array_equal(held[:, 0], wholly | (ids % 4 == 3))
    assert np.array_equal(held[:, 2], wholly | (x < 5.39))
    for field in ("positions", "images"):
        assert np.array_equal(after[f"atoms/{field}"][held], before[f"atoms/{field}"][held])
    moved = after["atoms/positions"] != before["atoms/positions"]
    assert np.array_equal(moved, ~held)
    assert name == "minimize" or np.array_equal(after["atoms/velocities"] != 0.0, ~held)


@pytest.mark.mpi
@pytest.mark.parametrize("name", STAGES)
def test_ranks_and_restarts_give_the_same_bits(
    name: str,
    argon: LennardJones,
    hot: Make,  # noqa: F811
    compared: Callable[..., None],  # noqa: F811
) -> None:
    config = hot(stages=STAGES[name], fixed=PARTLY)
    compared({k: v for k, v in config.items() if k != "restart"}, argon)


@pytest.mark.parametrize(
    ("counts", "dof", "drifting"),
    [
        ({}, 93, 96),
        ({"xyz": 8}, 72, 72),
        ({"z": 8}, 86, 88),
        ({"z": 32}, 62, 64),
        ({"xy": 4, "x": 5}, 82, 83),
        ({"x": 1, "y": 1, "z": 1}, 93, 93),
        ({"xyz": 31, "xy": 1}, 1, 1),
    ],
)
def test_degrees_of_freedom_are_those_of_free_directions(counts: dict[str, int], dof: int, drifting: int) -> None:
    """Of 32 atoms; the center of mass is at rest in directions in which none is fixed."""
    numbers = [0] * 8
    for axes, n in counts.items():
        numbers[number_of(axes)] = n
    numbers[0] = 32 - sum(numbers)
    assert degrees_of_freedom(32, 3, FixedAtoms(tuple(numbers))) == dof
    assert degrees_of_freedom(32, 0, FixedAtoms(tuple(numbers))) == drifting


def test_velocities_are_drawn_with_their_temperature(engine_of: EngineOf) -> None:
    engine = engine_of(n=2, n_fixed=8, held="z", temperature=87.0)
    held = held_in(engine.state.fixed[:32])
    assert np.array_equal(engine.state.velocities[:32] == 0.0, held)
    row = measure(engine, VelocityVerlet(), NO_BATH)
    assert row.kinetic_eV == pytest.approx(0.5 * 86 * BOLTZMANN_EV_PER_K * 87.0, rel=1e-13)
    assert row.temperature_K == pytest.approx(87.0, rel=1e-13)
    momentum, mass = engine.momentum().reshape(2, 3)
    assert np.abs(momentum[:2]).max() < 1e-10
    assert abs(momentum[2]) > 10.0, "as drawn"
    np.testing.assert_allclose(mass, [32 * 39.95, 32 * 39.95, 24 * 39.95], rtol=1e-14)
    fire = Fire(1e-3, 0.1)
    fire.begin(engine)
    assert fire.mass == pytest.approx(39.95, rel=1e-14)


def test_nve_conserves_energy_and_the_momentum_along_free_directions(engine_of: EngineOf) -> None:
    engine = engine_of(n=2, n_fixed=8, held="z")
    z = engine.state.positions[:32, 2][engine.state.fixed[:32] != 0].copy()
    before = engine.momentum()
    rows = run(engine, VelocityVerlet(), 1000)
    energy = np.array([row.total_eV for row in rows]) / engine.n_atoms
    assert np.ptp(energy) < 2e-5  # eV/atom
    assert np.array_equal(np.sort(engine.state.positions[:32, 2][engine.state.fixed[:32] != 0]), np.sort(z))
    after = engine.momentum()
    assert np.abs(after[:2]).max() < 1e-9
    assert abs(after[2] - before[2]) > 1.0, "fixed atoms take it up"


def test_langevins_drift_ends_where_no_atom_is_fixed(engine_of: EngineOf) -> None:
    engine = engine_of(n=2, n_fixed=8, held="z")
    run(engine, Langevin(0.1, seed=5), 50)
    before, kinetic = engine.momentum(), engine.kinetic_energy()
    assert np.abs(before[:3]).min() > 1.0
    lost = float(total(stop_drift(engine)))
    after = engine.momentum()
    assert np.abs(after[:2]).max() < 1e-10
    assert after[2] == before[2]
    assert lost == pytest.approx(kinetic - engine.kinetic_energy(), rel=1e-13)
    assert lost > 0.0


@pytest.fixture
def slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Atoms:
    """Silicon of which ASE fixes an atom, and directions of others."""
    monkeypatch.chdir(tmp_path)
    along_z = (FixCartesian(k, [False, False, True]) for k in (1, 2))
    return silicon(FixAtoms([0]), *along_z, FixCartesian(5, [True, False, True]))


def test_the_trajectory_is_ases(slab: Atoms, capsys: pytest.CaptureFixture[str]) -> None:
    last, found = moves_as_ase(slab)
    assert "fixed:     4 of 8 atoms, as si.extxyz says, 3 of them in some directions only" in capsys.readouterr().out
    assert found["atoms/fixed"].tolist() == [7, 4, 4, 0, 0, 5, 0, 0]
    np.testing.assert_allclose(last.get_forces(), slab.get_forces(), rtol=0, atol=1e-6)
    assert np.abs(slab.get_forces(apply_constraint=False) - slab.get_forces()).max() > 0.1, "fixed atoms feel forces"


def test_a_minimum_is_ases(slab: Atoms) -> None:
    minimum_is_ases(slab, 300)


@pytest.mark.mpi
def test_what_a_run_file_names(comm: Communicator, argon: LennardJones, hot: Make) -> None:  # noqa: F811
    def chosen(choice: Any) -> list[int]:
        config = hot(stages=[{**NVE, "steps": 0}], replicate=[1, 1, 1], fixed=choice)
        return end_of(config, comm=comm, potential=argon)["atoms/fixed"].tolist()

    assert chosen({"ids": [2], "directions": "z"}) == [0, 4, 0, 0]
    assert chosen([{"ids": [2, 3], "directions": "z"}, {"ids": [3], "directions": "xy"}, {"ids": [4]}]) == [0, 4, 7, 7]
    assert chosen({"species": ["Ar"], "directions": "y"}) == [2] * 4, "all of them, in a plane"
    for wrong, message in [
        ({"directions": "z"}, r"no atoms are named: add species, ids.*; to free all: fixed: \{\}"),
        ([{"ids": [1]}, {}], "no atoms are named"),
        ({"ids": [1], "directions": "zx"}, r"(?s)'directions' has the wrong value 'zx'.*fixed/directions.*'xz'"),
        ([{"ids": [1]}, {"ids": [9], "directions": "z"}], "names id 9, and there are no such atoms"),
        ([{"ids": ["1-4"], "directions": "xy"}, {"species": ["Ar"], "directions": "z"}], "all atoms are fixed"),
        ([{"ids": [1], "direction": "z"}], r"(?s)'direction' is not.*fixed/0/direction.*did you mean 'directions'"),
        ("bottom", r"(?s)'fixed' has the wrong value 'bottom'"),
    ]:
        with pytest.raises(InputError, match=message):
            chosen(wrong)


def test_a_restart_is_gone_on_with_the_same_directions(
    argon: LennardJones,
    hot: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = [{"ids": [2], "directions": "z"}]
    run_md(hot(stages=[NVE], fixed=choice), potential=argon)
    longer = {"stages": [{**NVE, "steps": 14}]}
    for other in ({"ids": [2]}, [*choice, {"ids": [3]}], None, {}):
        with pytest.raises(
            InputError, match=r"(?s)other fixed atoms.*expected: fixed: \[\{'ids': \[2\], 'directions': 'z'\}\]"
        ):
            run_md(hot(**longer, fixed=other), potential=argon, resume=True)
    assert run_md(hot(**longer, fixed=choice[0]), potential=argon, resume=True).steps == 4


@pytest.mark.parametrize("choice", [{"ids": [3, "1-2"]}, {}])
def test_an_older_restart_fixes_wholly(
    choice: dict[str, Any],
    argon: LennardJones,
    hot: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has a 1 for each fixed atom, and one selection with all its keys."""
    with monkeypatch.context() as patch:
        patch.setattr(restart, "VERSION", 3)
        patch.setattr(fixed, "number_of", lambda directions: 1)
        older = {"species": [], "ids": [], "below_A": {}, "above_A": {}} | choice
        patch.setattr(run_module, "choice_of", lambda selections: older)
        begun = end_of(hot(stages=[NVE], fixed=choice), potential=argon)
    assert begun["atoms/fixed"].max() == bool(choice)
    longer = {"stages": [{**NVE, "steps": 14}]}
    assert run_md(hot(**longer, fixed=choice), potential=argon, resume=True).steps == 4
    found = end_of(hot(structure=hot()["restart"]["file"], replicate=None, stages=[NVE], fixed=choice), potential=argon)
    assert np.array_equal(found["atoms/fixed"], 7 * begun["atoms/fixed"])
