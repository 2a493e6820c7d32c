"""A box that leans too much is flipped back: the same crystal, atoms and images, in other vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from dphpc.core.box import Box
from dphpc.core.exact_sum import no_sum
from dphpc.core.state import State
from dphpc.md.deform import Deformation
from dphpc.md.engine import Engine
from dphpc.md.integrators import VelocityVerlet
from dphpc.md.observables import measure
from dphpc.md.run import run_md
from dphpc.parallel.comm import Communicator, Serial
from dphpc.parallel.domain import Domain
from tests.lennard_jones import LennardJones
from tests.md.test_barostats import anew, by_id
from tests.md.test_deform import gradient
from tests.md.test_deterministic import NPT, atoms_of, compared, written  # noqa: F401
from tests.md.test_integrators import true_positions

Make = Callable[..., dict[str, Any]]
SHEAR = {"ensemble": "nve", "steps": 24, "deform_per_ps": {"xy": 0.5, "yz": -0.5}, "deform_every": 2}


def leaning(shear: float, cells: tuple[int, int, int] = (5, 2, 2)) -> Atoms:
    """Argon in a box whose b leans by three of five cells along a, or one of two, on top of which it is strained."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * cells
    vectors = atoms.cell.array.copy()
    vectors[1, 0] += round(0.6 * cells[0]) * 5.4
    atoms.set_cell(vectors)
    atoms.wrap()
    atoms.set_cell(vectors @ gradient({"xy": shear}, 1.0), scale_atoms=True)
    atoms.rattle(0.02, seed=2)
    return atoms


def engine_of(argon: LennardJones, atoms: Atoms, deterministic: bool = True) -> Engine:
    box = Box(atoms.cell.array, origin=np.array([1.0, -2.0, 0.5]))
    box = box.on_grid() if deterministic else box
    state = State(box, len(atoms))
    random = np.random.default_rng(7)
    state.ids[:] = np.arange(len(atoms)) + 1
    state.positions[:] = atoms.positions + box.origin
    state.images[:] = random.integers(-3, 4, (len(atoms), 3))
    state.velocities[:] = random.normal(0.0, 1.0, (len(atoms), 3))
    masses, domain = np.array([39.95]), Domain.even(box, 1, 0)
    engine = Engine(state, domain, Serial(), argon, masses, 4e-3, 0.6, deterministic=deterministic)
    engine.update_forces()
    return engine


@pytest.mark.parametrize(
    ("shear", "cells", "deterministic"),
    [(0.01, (5, 4, 4), True), (0.01, (5, 4, 4), False), (0.012, (2, 24, 2), True)],
    ids=["to the bit", "not deterministic", "a long one"],
)
def test_a_flip_changes_nothing_but_the_vectors(
    shear: float, cells: tuple[int, int, int], deterministic: bool, argon: LennardJones
) -> None:
    """To the bit: positions are on one grid, and each atom has the same neighbors.

    In the long box the flip is a change of shape as small as those through which a neighbor list is kept.
    """
    atoms = leaning(shear, cells)
    plain, flipped = (engine_of(argon, atoms, deterministic) for _ in range(2))
    wanted = plain.state.box.matrix @ gradient({"xy": 0.003, "x": -0.002}, 1.0)
    before = true_positions(flipped)
    for engine in (plain, flipped):
        engine.reshape_box(wanted, flips=engine is flipped)
        engine.update_forces()
    assert (plain.flips, flipped.flips) == (0, 1)
    a, b, c = plain.state.box.matrix
    np.testing.assert_allclose(flipped.state.box.matrix, [a, b - a, c], atol=1e-13)
    tolerance = 0.0 if deterministic else 1e-11
    for name in ("velocities", "forces"):
        np.testing.assert_allclose(by_id(flipped, name), by_id(plain, name), atol=tolerance, err_msg=name)
    np.testing.assert_allclose(true_positions(flipped), true_positions(plain), atol=1e-12 if deterministic else 1e-11)
    assert np.abs(true_positions(flipped) - before).max() > 0.1, "it was strained, too"
    rows = [measure(engine, VelocityVerlet(), no_sum()) for engine in (plain, flipped)]
    for name in ("potential_eV", "pxx_bar", "pxy_bar", "volume_A3"):
        assert getattr(rows[0], name) == pytest.approx(getattr(rows[1], name), rel=1e-12), name
    assert not np.array_equal(by_id(plain, "images"), by_id(flipped, "images"))
    np.testing.assert_allclose(by_id(anew(flipped), "forces"), by_id(flipped, "forces"), atol=tolerance)
    assert np.abs(by_id(flipped, "forces")).max() > 1e-3


@pytest.mark.parametrize("rates", [{"xy": -0.004}, {"xz": -0.004}, {"yz": -0.004, "x": 0.003}])
def test_images_of_an_atom_stand_in_the_order_of_a_new_list(argon: LennardJones, rates: dict[str, float]) -> None:
    """Else sums over neighbors would round otherwise after a restart, which makes a new list."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (1, 2, 2)
    atoms.rattle(0.02, seed=2)
    engine = engine_of(argon, atoms)
    rows = []
    for sign in (1, -1):
        engine.reshape_box(engine.state.box.matrix @ gradient({way: sign * rate for way, rate in rates.items()}, 1.0))
        engine.update_forces()
        rows.append([_row(engine, atom) for atom in (1, 7)])
        assert rows[-1] == [_row(anew(engine), atom) for atom in (1, 7)]
    assert [[atom for atom, *_ in row] for row in rows[0]] == [[atom for atom, *_ in row] for row in rows[1]]


def _row(engine: Engine, atom: int) -> list[tuple[float, ...]]:
    """Id, and position from there on, of an atom's neighbors within the cutoff, in the list's order."""
    state, offsets = engine.state, engine.neighbors.offsets
    i = int(np.flatnonzero(state.ids[: state.n_local] == atom)[0])
    row = engine.neighbors.indices[offsets[i] : offsets[i + 1]]
    apart = state.positions[row] - state.positions[i]
    near = np.linalg.norm(apart, axis=1) < engine.potential.cutoff
    return [(int(j), *d) for j, d in zip(state.ids[row][near], apart[near].tolist(), strict=True)]


def test_positions_stay_on_their_grid(argon: LennardJones) -> None:
    """Also where the flipped box gets a coarser one: c loses b, and now leans along x."""
    vectors = np.array([[12.0, 0.0, 0.0], [6.9, 12.0, 0.0], [-0.5, 7.1, 14.0]])
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (2, 2, 2)
    atoms.set_cell(vectors, scale_atoms=True)
    engine = engine_of(argon, atoms)
    spacing, change = engine.spacing, gradient({"yz": 0.05, "x": 0.1}, 1.0)
    for _ in range(4):
        before, state, n = true_positions(engine), engine.state, engine.n_atoms
        engine.reshape_box(state.box.matrix @ change, flips=True)
        engine.update_forces()
        origin = state.box.origin
        np.testing.assert_allclose(true_positions(engine) - origin, (before - origin) @ change, atol=1e-11)
        assert engine.spacing == state.box.spacing
        for values in (state.positions[:n], state.box.matrix):
            assert np.array_equal(values / engine.spacing, np.round(values / engine.spacing))
    assert engine.flips >= 1
    assert engine.spacing != spacing


def test_a_liquid_is_sheared_on_and_on(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """Unwrapped atoms go on where the box is flipped, as do stress and energy."""
    stage = {"ensemble": "nvt", "thermostat": "bussi", "temperature_K": 200, "steps": 500, "damping_fs": 200}
    stage |= {"deform_per_ps": {"xy": 1.2, "xz": -0.9}, "deform_every": 2}
    trajectory = {"file": str(tmp_path / "t.extxyz"), "every": 2, "unwrap": True}
    thermo_file = {"every": 2, "file": str(tmp_path / "thermo.csv")}
    run = config(stages=[stage], trajectory=trajectory, thermo=thermo_file, replicate=[3, 3, 3])
    thermo = run_md(run | {"velocities": {"temperature_K": 200}}, potential=argon).thermo
    frames = read(tmp_path / "t.extxyz", ":")
    cells = np.array([frame.cell.array for frame in frames])
    lean = cells[:, [1, 2], 0] / 16.2
    assert np.abs(lean).max() < 0.61
    flips = np.abs(np.diff(lean, axis=0)) > 0.9
    assert flips.sum(axis=0).tolist() == [2, 2]  # of strains 2.4 and 1.8
    time = thermo["time_ps"]
    np.testing.assert_allclose(lean[:, 0], 1.2 * time - np.concatenate([[0], np.cumsum(flips[:, 0])]), atol=1e-9)
    places = np.array([frame.positions for frame in frames])
    moved = places[1:] - places[:-1] @ gradient(stage["deform_per_ps"], 0.008)
    assert np.abs(moved).max() < 0.2  # Å in 8 fs: thermal motion beside the flow
    assert np.ptp(thermo["conserved_eV"]) < 0.02 * (np.ptp(thermo["total_eV"]) + 1.0)
    jumps = np.abs(np.diff(thermo["potential_eV"]))
    assert jumps[flips.any(axis=1)].max() < 3.0 * jumps.mean()


def test_a_crystal_at_constant_pressure_is_flipped(
    config: Make, argon: LennardJones, tmp_path: Path, capsys: Any
) -> None:
    write(tmp_path / "leaning.extxyz", leaning(0.01))
    stage = NPT | {"thermostat": "bussi", "coupling": "triclinic", "steps": 40, "temperature_K": 20}
    stage |= {"pressure_bar": -800, "pressure_damping_fs": 500}
    given = {"structure": str(tmp_path / "leaning.extxyz"), "replicate": None, "velocities": {"temperature_K": 20}}
    given["thermo"] = {"every": 1, "file": str(tmp_path / "thermo.csv")}
    thermo = run_md(config(stages=[stage], **given), potential=argon).thermo
    assert thermo["gamma_deg"][3] < 40.0 < 130.0 < thermo["gamma_deg"][4]
    assert np.ptp(thermo["conserved_eV"]) < 0.05 * np.ptp(thermo["total_eV"])
    assert "flipped back at step 4" in capsys.readouterr().out
    stretched = run_md(config(stages=[stage | {"coupling": "anisotropic"}], **given), potential=argon).thermo
    assert stretched["gamma_deg"].max() < 40.0, "where angles are constant they stay"


@pytest.mark.mpi
@pytest.mark.parametrize(("shear", "when"), [(-0.01, "before"), (-0.03, "after")])
def test_the_same_bits_whoever_has_the_atoms(
    shear: float,
    when: str,
    comm: Communicator,
    argon: LennardJones,
    config: Make,
    written: Callable[[Atoms], str],  # noqa: F811
    compared: Callable[..., None],  # noqa: F811
) -> None:
    """On ranks and through a restart after twelve steps, before or after the flip."""
    path = written(leaning(shear))
    compared(config(structure=path, replicate=None, stages=[SHEAR], velocities={"temperature_K": 160}), argon)
    if comm.rank == 0:
        half, whole = (atoms_of(str(Path(path).with_name(f"restart0{of}.h5")))["box"] for of in (".previous", ""))
        assert whole[1, 0] < 0.0
        assert (half[1, 0] < 0.0) == (when == "before")
    comm.barrier()


@pytest.mark.mpi
@pytest.mark.parametrize("stage", [
    NPT | {"thermostat": "langevin", "coupling": "triclinic"},
    NPT | {
        "thermostat": "nose-hoover", "pressure_bar": {"y": 2000, "z": 0},
        "deform_per_ps": {"x": 0.3, "xy": 0.4}, "deform_every": 3,
    },
    NPT | {
        "thermostat": "bussi", "pressure_bar": {"x": 2000, "y": 0}, "coupling": "triclinic",
        "deform_per_ps": {"yz": 0.4}, "deform_every": 4,
    },
], ids=["npt", "deformed npt", "both shear"])  # fmt: skip
def test_the_same_bits_at_constant_pressure(
    stage: dict[str, Any],
    argon: LennardJones,
    config: Make,
    written: Callable[[Atoms], str],  # noqa: F811
    compared: Callable[..., None],  # noqa: F811
) -> None:
    path = written(leaning(0.01))
    compared(config(structure=path, replicate=None, stages=[stage], velocities={"temperature_K": 160}), argon)


def test_the_flow_does_not_see_the_flip(argon: LennardJones) -> None:
    """Atoms without forces go on straight, as in a box that is never flipped."""
    engine = engine_of(argon, leaning(0.0, (5, 4, 4)))
    start, velocities = true_positions(engine), by_id(engine, "velocities").copy()
    deformation = Deformation({"xy": 0.5}, 0.004)
    for n in range(1, 11):
        deformation.move(engine, n)
    assert engine.flips == 1
    origin = engine.state.box.origin
    np.testing.assert_allclose(
        true_positions(engine) - origin, (start - origin) @ gradient({"xy": 0.5}, 0.04), atol=1e-11
    )
    np.testing.assert_allclose(by_id(engine, "velocities") @ gradient({"xy": 0.5}, 0.04), velocities, atol=1e-12)
