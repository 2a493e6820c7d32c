"""Fixed atoms in a box that moves: they go with it, have no velocity, and the others sample their ensemble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE

from dphpc.core.box import Box
from dphpc.core.errors import InputError
from dphpc.core.exact_sum import no_sum
from dphpc.core.fixing import FixedAtoms, held_in, number_of
from dphpc.interfaces.ase import DPHPC
from dphpc.md.barostats import CellRescaling
from dphpc.md.config import MdConfig
from dphpc.md.engine import Engine
from dphpc.md.fixed import fixed_lines
from dphpc.md.integrators import VelocityVerlet
from dphpc.md.observables import measure, pressure_volume
from dphpc.md.run import run_md
from dphpc.parallel.comm import Communicator
from tests.lennard_jones import LennardJones
from tests.md.test_barostats import STIFF, constant_pressure
from tests.md.test_deterministic import NPT, SILICON, THERMOSTATS, compared, written  # noqa: F401
from tests.md.test_fixed import LAYERS, NVE, end_of, hot  # noqa: F401
from tests.md.test_integrators import thermostat
from tests.md.test_minimize import MINIMIZE
from tests.md.test_strain import KINDS

Make = Callable[..., dict[str, Any]]
EngineOf = Callable[..., Engine]

RELAX = MINIMIZE | {"steps": 24, "pressure_bar": 500}
STAGES = {name: stage for name, stage in THERMOSTATS.items() if stage["ensemble"] == "npt"} | {
    "minimize": RELAX,
    "minimize, triclinic": RELAX | {"coupling": "triclinic"},
    "minimize, z": RELAX | {"pressure_bar": {"z": 500}},
}
CHOICE = [LAYERS, {"below_A": {"y": 1.0}, "directions": "z"}, {"ids": [2], "directions": "yz"}]
"""Some in directions that free angles leave Cartesian."""


@pytest.mark.mpi
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", STAGES)
def test_they_keep_their_place_in_the_box(
    name: str,
    deterministic: bool,
    comm: Communicator,
    argon: LennardJones,
    hot: Make,  # noqa: F811
) -> None:
    options, choice = {"comm": comm, "potential": argon}, {"fixed": CHOICE, "deterministic": deterministic}
    before = end_of(hot(stages=[{**NVE, "steps": 0}], **choice), **options)
    after = end_of(hot(stages=[NVE, STAGES[name]], **choice), **options)
    held = held_in(after["atoms/fixed"])
    assert {tuple(row) for row in held.tolist()} == {
        (False,) * 3,
        (False, False, True),
        (False, True, True),
        (True,) * 3,
    }
    first, last = (Box(at["box"]).to_fractional(at["atoms/positions"]) + at["atoms/images"] for at in (before, after))
    moved, wholly = np.abs(last - first), held.all(axis=1)
    assert moved[held].max() < 1e-13
    assert moved[~held].min() > 1e-6
    assert not after["atoms/velocities"][held].any()
    still = (after["box"] == before["box"]).all(axis=0)
    assert still.tolist() == ([True, True, False] if name.endswith(", z") else [False] * 3)
    for field in ("positions", "images"):
        same = after[f"atoms/{field}"][wholly] == before[f"atoms/{field}"][wholly]
        assert same[:, still].all(), "to the last bit where the box stays"


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["npt", "npt, anisotropic", "npt, z", "npt, triclinic", "minimize, triclinic"])
def test_ranks_and_restarts_give_the_same_bits(
    name: str,
    argon: LennardJones,
    hot: Make,  # noqa: F811
    compared: Callable[..., None],  # noqa: F811
) -> None:
    config = hot(stages=[STAGES[name]], fixed=CHOICE)
    compared({k: v for k, v in config.items() if k != "restart"}, argon)


def test_where_the_box_stays_no_bit_changes(engine_of: EngineOf) -> None:
    """Without a grid of positions, too."""
    shear = np.array([[1.0, 0.0, 0.0], [0.01, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for strain, still in ((np.diag([1.0, 1.0, 1.01]), [0, 1]), (shear, [1, 2])):
        engine = engine_of(n=2)
        before = engine.state.positions[:32].copy()
        engine.reshape_box(engine.state.box.matrix @ strain)
        same = (engine.state.positions[:32] == before).all(axis=0)
        assert np.flatnonzero(same).tolist() == still


FIXED = [
    ("isotropic", "xyz"), ("isotropic", "xy"), ("lengths", "xyz"), ("lengths", "xz"), ("z", "y"), ("angles", "xyz"),
    ("angles", "z"), ("angles", "yz"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "held"), FIXED)
def test_the_pressure_is_the_energys_derivative(engine_of: EngineOf, name: str, held: str) -> None:
    """By finite differences: kinetic energy of what moves, and forces on all atoms."""
    freedom, h = KINDS[name], 1e-5
    for seed in range(3):
        strain, totals = freedom.part(np.random.default_rng(seed).normal(size=(3, 3))), []
        for sign in (1.0, -1.0):
            engine = engine_of(n=2, n_fixed=8, held=held)
            engine.reshape_box(freedom.strained(engine.state.box.matrix, sign * h * strain)[0])
            engine.update_forces()
            totals.append(measure(engine, VelocityVerlet(), no_sum()).total_eV)
        engine = engine_of(n=2, n_fixed=8, held=held)
        expected = (freedom.part(freedom.seen(engine.state.box, pressure_volume(engine))) * strain).sum()
        assert (totals[1] - totals[0]) / (2.0 * h) == pytest.approx(expected, abs=3e-5)
        assert abs(expected) > 0.02


@pytest.mark.parametrize(("name", "held"), FIXED)
def test_total_and_baths_are_conserved(engine_of: EngineOf, name: str, held: str) -> None:
    engine, freedom = engine_of(n=2, n_fixed=8, held=held), KINDS[name]
    barostat = CellRescaling(0.5, STIFF, 5 * engine.timestep, 4, freedom)
    rows = constant_pressure(engine, thermostat("bussi", engine), barostat, 5, 400, 60.0, 1000.0)
    total, conserved = (np.array([getattr(r, key) for r in rows]) for key in ("total_eV", "conserved_eV"))
    assert np.ptp([row.volume_A3 for row in rows]) > 15.0, "the box moves"
    assert np.ptp(conserved) < 0.01 * np.ptp(total)  # measured: up to 0.004


@pytest.mark.parametrize(
    ("kind", "constraints"),
    [
        ("triclinic", [FixAtoms([0, 3])]),
        ("anisotropic", [FixAtoms([0]), FixCartesian(2, [True, False, True]), FixCartesian(5, [False, False, True])]),
    ],
)
def test_a_minimum_is_ases(kind: str, constraints: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    atoms = bulk("Si", "diamond", a=5.5, cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_constraint(constraints)
    write("si.extxyz", atoms)
    stage = RELAX | {"coupling": kind, "pressure_bar": 0, "steps": 400, "force_tolerance_eV_A": 1e-3}
    result = run_md(
        {
            "structure": "si.extxyz", "model": str(SILICON), "timestep_fs": 1.0, "trajectory": {"file": "t.extxyz"},
            "stages": [stage | {"stress_tolerance_bar": 1}],
        }
    )  # fmt: skip
    assert result.converged
    end = read("t.extxyz", -1)
    atoms.calc = DPHPC(SILICON)
    cell = FrechetCellFilter(atoms, mask=[True] * 3 + [kind == "triclinic"] * 3)
    FIRE(cell, logfile=None).run(fmax=1e-4, steps=600)
    np.testing.assert_allclose(end.cell.lengths(), atoms.cell.lengths(), atol=2e-4)
    np.testing.assert_allclose(end.cell.angles(), atoms.cell.angles(), atol=4e-3)
    assert result.thermo["potential_eV"][-1] == pytest.approx(atoms.get_potential_energy(), abs=2e-6)
    assert np.abs(atoms.get_forces(apply_constraint=False)).max() > 0.1, "of those that are fixed"


def test_directions_that_a_strain_would_turn_are_refused() -> None:
    cuboid, hexagonal = Box(np.diag([10.0, 11.0, 12.0])), Box(np.array([[10.0, 0, 0], [-5.0, 8.66, 0], [0, 0, 12.0]]))

    def accepted(box: Box, **pressure: Any) -> list[str]:
        found, refused = [], []
        for axes in ("x", "y", "z", "xy", "xz", "yz", "xyz"):
            counts = [5] + [0] * 7
            counts[number_of(axes)] = 2
            stages = [NVE, NPT | {"thermostat": "bussi"} | pressure]
            settings = MdConfig(structure="a.lmp", model="m.dp", fixed=[], stages=stages)
            try:
                fixed_lines(settings, box, 7, FixedAtoms(tuple(counts)))
                found.append(axes)
            except InputError as error:
                refused.append(str(error))
        assert all("which 'pressure_bar' would turn" in text and "stage 2" in text for text in refused)
        return found

    every = ["x", "y", "z", "xy", "xz", "yz", "xyz"]
    for box in (cuboid, hexagonal):
        assert accepted(box, coupling="isotropic") == every
        assert accepted(box, coupling="triclinic", pressure_bar=0) == ["z", "yz", "xyz"]
        assert accepted(box, pressure_bar={"z": 0}) == every
    assert accepted(cuboid, coupling="anisotropic") == every
    assert accepted(hexagonal, coupling="anisotropic") == ["y", "z", "xy", "yz", "xyz"]
    assert accepted(cuboid, coupling="triclinic", pressure_bar={"x": 0, "z": 0}) == ["y", "z", "xz", "yz", "xyz"]
