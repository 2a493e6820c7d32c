"""Which strains a box may undergo, and what a run file says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write
from scipy.linalg import expm

from dphpc.core.box import Box
from dphpc.core.errors import InputError, RunError
from dphpc.core.exact_sum import no_sum
from dphpc.core.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR
from dphpc.md import barostats
from dphpc.md.barostats import CellRescaling
from dphpc.md.engine import Engine
from dphpc.md.integrators import VelocityVerlet
from dphpc.md.observables import measure
from dphpc.md.run import run_md
from dphpc.md.stages import Stage
from dphpc.md.strain import ISOTROPIC, Freedom
from dphpc.parallel.comm import Serial
from tests.lennard_jones import LennardJones
from tests.md.test_barostats import LENGTHS, NPT, STIFF, anew, by_id, constant_pressure, shape_force, skewed
from tests.md.test_integrators import thermostat

Make = Callable[..., dict[str, Any]]
ANGLES = Freedom(((0,), (1,), (2,)), tilts=True)
KINDS = {
    "isotropic": ISOTROPIC,
    "lengths": LENGTHS,
    "xy and z": Freedom(((0, 1), (2,))),
    "z": Freedom(((2,),)),
    "x and z": Freedom(((0,), (2,))),
    "angles": ANGLES,
    "angles of x and y": Freedom(((0,), (1,)), tilts=True),
    "angles of x and z": Freedom(((0,), (2,)), tilts=True),
}
BY_DIRECTION: list[tuple[Any, str | None, Freedom]] = [
    (1, None, ISOTROPIC),
    (1, "anisotropic", LENGTHS),
    ([1, 2], "aniso", LENGTHS),
    (1, "triclinic", ANGLES),
    ({"x": 1, "z": 3, "y": 2}, None, LENGTHS),
    ({"z": 1, "xy": [0, 1]}, None, Freedom(((0, 1), (2,)))),
    ({"xz": 1}, None, Freedom(((0, 2),))),
    ({"z": 1}, "anisotropic", Freedom(((2,),))),
    ({"x": 1, "y": 1}, "tri", Freedom(((0,), (1,)), tilts=True)),
]


@pytest.mark.parametrize(("pressure", "coupling", "freedom"), BY_DIRECTION)
def test_a_run_file_tells_how_the_box_moves(pressure: Any, coupling: str | None, freedom: Freedom) -> None:
    stage = NPT | {"pressure_bar": pressure} | ({"coupling": coupling} if coupling else {})
    assert Stage(**stage).freedom == freedom
    assert freedom.moving == sorted(axis for group in freedom.groups for axis in group)


def test_each_direction_has_its_pressure_or_ramp() -> None:
    stage = Stage(**NPT | {"pressure_bar": {"z": [1000, 3000], "xy": -5}, "steps": 20})
    assert [stage.pressure(k) for k in (0, 10)] == [[-5, -5, 1000], [-5, -5, 2000]]
    assert stage.ramps
    assert "anisotropic c-rescale, z 1000 → 3000 bar, xy -5 bar, damping" in stage.title
    assert Stage(**NPT | {"pressure_bar": {"y": 7}}).pressure(3) == [0, 7, 0]
    assert not Stage(**NPT | {"pressure_bar": {"y": 7}}).ramps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pressure_bar": {"w": 1}}, "directions are x, y, z, or two that stretch together, as xy; each at most once"),
        ({"pressure_bar": {"x": 1, "xy": 1}}, "each at most once"),
        ({"pressure_bar": {}}, "directions are x, y, z"),
        ({"pressure_bar": {"x": "high"}}, "high"),
        ({"pressure_bar": {"x": 1}, "coupling": "isotropic"}, "'coupling' is isotropic, and 'pressure_bar' names dir"),
        (
            {"pressure_bar": {"x": 1}, "coupling": "triclinic"},
            "'coupling' is triclinic: 'pressure_bar' is a number, or",
        ),
        ({"pressure_bar": {"xy": 1, "z": 1}, "coupling": "triclinic"}, "names two or three single directions"),
    ],
)
def test_mistakes_about_directions_are_explained(config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_md(config(stages=[NPT | changes]))


@pytest.mark.parametrize("name", KINDS)
def test_a_tensor_has_a_part_that_strains(name: str) -> None:
    """An orthogonal projection, onto strains that the box may undergo."""
    freedom, (a, b) = KINDS[name], np.random.default_rng(1).normal(size=(2, 3, 3))
    for isochoric in (False, True):
        part = freedom.part(a, isochoric=isochoric)
        np.testing.assert_allclose(freedom.part(part, isochoric=isochoric), part, atol=1e-15)
        assert ((a - part) * freedom.part(b, isochoric=isochoric)).sum() == pytest.approx(0.0, abs=1e-14)
        assert (abs(part.trace()) < 1e-14) == isochoric
        still = [axis for axis in range(3) if axis not in freedom.moving]
        assert not part[still].any()
        assert not part[:, still].any()
        assert np.array_equal(part, part.T)
        if not freedom.tilts:
            assert not (part - np.diag(part.diagonal())).any()
        for group in freedom.groups:
            assert len({part[axis, axis] for axis in group}) == 1
    assert freedom.has_shapes == bool(np.abs(freedom.part(a, isochoric=True)).max() > 1e-15)


@pytest.mark.parametrize("name", KINDS)
def test_a_strain_is_an_exponential_but_for_a_rotation(name: str) -> None:
    freedom, random = KINDS[name], np.random.default_rng(2)
    matrix = np.tril(random.normal(size=(3, 3))) + 5.0 * np.eye(3)
    strain = 0.3 * freedom.part(random.normal(size=(3, 3)))
    after, turn = freedom.strained(matrix, strain)
    assert np.array_equal(after, np.tril(after)), "still lower triangular"
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(turn) == pytest.approx(1.0)
    assert np.log(np.linalg.det(after) / np.linalg.det(matrix)) == pytest.approx(strain.trace(), abs=1e-14)
    if freedom.tilts:
        np.testing.assert_allclose(after, matrix @ expm(strain) @ turn.T, atol=1e-13)
    else:
        np.testing.assert_allclose(after, expm(strain) @ matrix, atol=1e-13)
    for axis in set(range(3)) - set(freedom.moving):
        kept = (after[:, axis], matrix[:, axis]) if freedom.tilts else (after[axis], matrix[axis])
        assert np.array_equal(*kept)


def test_the_force_on_a_strain_is_the_energys_derivative(argon: LennardJones) -> None:
    """By finite differences of potential and kinetic energy; angles, too."""
    h, random = 1e-5, np.random.default_rng(3)
    force = shape_force(skewed(argon, 3), ANGLES)
    for _ in range(3):
        strain, totals = ANGLES.part(random.normal(size=(3, 3)), isochoric=True), []
        for sign in (1.0, -1.0):
            engine = skewed(argon, 3)
            engine.reshape_box(ANGLES.strained(engine.state.box.matrix, sign * h * strain)[0])
            engine.update_forces()
            totals.append(measure(engine, VelocityVerlet(), no_sum()).total_eV)
        found = (force * strain).sum()
        assert (totals[1] - totals[0]) / (2.0 * h) == pytest.approx(found, abs=3e-5)
        assert abs(found) > 0.1


@pytest.mark.parametrize("name", ["angles", "angles of x and z", "x and z", "xy and z"])
@pytest.mark.parametrize("bar", [[5000.0] * 3, [5000.0, -2000.0, 9000.0]], ids=["one pressure", "three"])
def test_a_move_of_the_shape_has_its_account(argon: LennardJones, name: str, bar: list[float]) -> None:
    lost = []
    for compressibility in (STIFF / 64, STIFF / 1024):
        engine = skewed(argon, 3)
        before, old = measure(engine, VelocityVerlet(), no_sum()), engine.state.box
        engine.step = 2  # whose lot is the shape's
        given = CellRescaling(0.02, compressibility, 0.02, 4, KINDS[name]).move(engine, 60.0, bar)
        after, box = measure(engine, VelocityVerlet(), given), engine.state.box
        assert after.volume_A3 == pytest.approx(before.volume_A3, rel=1e-12)
        assert np.abs(box.matrix - old.matrix).max() > 1e-4
        lost.append(after.conserved_eV - before.total_eV)
    assert abs(lost[0] / lost[1]) > 45.0  # to the third order 64; measured 55 to 200


def test_while_angles_change_a_list_lasts_as_long_as_it_has_all_pairs(argon: LennardJones) -> None:
    engine, built = skewed(argon), []
    strain = 0.004 * ANGLES.part(np.array([[0.0, 1.0, 0.0], [1.0, 0.3, 0.6], [0.0, 0.6, -0.3]]))
    for _ in range(24):
        engine.reshape_box(ANGLES.strained(engine.state.box.matrix, strain)[0])
        engine.update_forces()
        built.append(engine.rebuilds)
        assert np.array_equal(by_id(engine, "forces"), by_id(anew(engine), "forces"))
    assert built[-1] > 1
    assert built.count(1) > 10


@pytest.mark.parametrize("bar", [500.0, [500.0, 1500.0, 1000.0]], ids=["one pressure", "three"])
@pytest.mark.parametrize("name", ["lengths", "angles", "z"])
def test_total_and_baths_are_conserved(engine_of: Callable[..., Engine], name: str, bar: Any) -> None:
    engine, freedom = engine_of(n=2), KINDS[name]
    barostat = CellRescaling(0.5, STIFF, 5 * engine.timestep, 4, freedom)
    rows = constant_pressure(engine, thermostat("bussi", engine), barostat, 5, 400, 60.0, bar)
    total, conserved = (np.array([getattr(r, key) for r in rows]) for key in ("total_eV", "conserved_eV"))
    assert np.ptp([row.volume_A3 for row in rows]) > 15.0, "the box moves"
    assert np.ptp(conserved) < 0.01 * np.ptp(total)  # measured: up to 0.004
    assert np.array_equal(engine.state.box.matrix, np.tril(engine.state.box.matrix))
    assert (np.abs(engine.state.box.matrix - np.diag(engine.state.box.matrix.diagonal())).max() > 0.02) == freedom.tilts


class Block:
    """An engine of an elastic solid without atoms: E = k/8 tr (ln h hᵀ)²."""

    def __init__(self, stiffness: float) -> None:
        self.state, self.comm, self.stiffness = SimpleNamespace(box=Box(np.eye(3))), Serial(), stiffness
        self.step, self.moving = 0, False

    def reshape_box(self, matrix: np.ndarray, flips: bool = False) -> None:
        self.state.box = Box(matrix)

    def update_forces(self) -> None:
        """Nothing is kept."""

    def energy(self) -> float:
        logs = np.log(np.linalg.eigvalsh(self.state.box.matrix.T @ self.state.box.matrix))
        return float(self.stiffness / 8.0 * logs @ logs)

    def pressure_volume(self) -> np.ndarray:
        """As the function of that name: −∂E/∂S."""
        squares, axes = np.linalg.eigh(self.state.box.matrix.T @ self.state.box.matrix)
        return -0.5 * self.stiffness * (axes * np.log(squares)) @ axes.T


def test_the_account_knows_that_the_frame_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a box that is far from upright, and turns as it is strained."""
    monkeypatch.setattr(barostats, "pressure_volume", Block.pressure_volume)
    for seed in range(5):
        lost = []
        for compressibility in (1e-5, 1e-7):
            engine: Any = Block(10.0)
            engine.reshape_box(np.array([[1.3, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 1.0]]))
            before, barostat = engine.energy(), CellRescaling(1.0, compressibility, 1.0, 3, ANGLES)
            given = barostat._move_shape(engine, 1.0, np.diag([1.0, -2.0, 0.5]), np.random.default_rng(seed))
            lost.append(engine.energy() - before + given)
        assert abs(lost[1]) < abs(lost[0]) / 300.0  # to the third order 1000; measured 989 to 1025


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lengths", "angles", "angles of x and y"])
def test_shapes_are_distributed_by_their_invariant_measure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """⟨X ln ρ⟩ = 0 and ⟨q X ln ρ⟩ = −⟨X q⟩ = −1 for derivatives X by F in h → h F, lower triangular.

    The density ρ is e^(−(E + PV)/kT) V in the invariant measure of lengths at constant angles; where angles are free it
    has a factor h₁₁²/h₃₃² besides, or h₁₁/h₂₂ in a plane, for all orientations to count alike.
    """
    kT, pressure, freedom, found = 1.0, 0.3, KINDS[name], []
    monkeypatch.setattr(barostats, "pressure_volume", Block.pressure_volume)
    monkeypatch.setattr(barostats, "LARGEST_CHANGE", 5.0)
    monkeypatch.setattr(barostats, "STEEPEST", 0.0)  # a block is not flipped back
    engine = Block(10.0)
    barostat = CellRescaling(1.0, 0.012, 1.0, 3, freedom)
    for k in range(30_000):
        engine.step = k
        barostat.move(engine, kT / BOLTZMANN_EV_PER_K, [pressure * EV_PER_A3_IN_BAR] * 3)
        h = engine.state.box.matrix
        slope = engine.pressure_volume() - np.eye(3) * (pressure * engine.state.box.volume - 1.0)
        if freedom.tilts:
            slope += np.diag([2.0, 0.0, -2.0]) if len(freedom.moving) == 3 else np.diag([1.0, -1.0, 0.0])
        q = np.diag(np.log(h.diagonal())) + np.tril(h, -1) / h.diagonal()[[1, 1, 2]][:, None]
        q[2] = [h[2, 0] / h[2, 2], h[2, 1] / h[2, 2], np.log(h[2, 2])]
        found.append((q, slope))
    q, slope = (np.array(values)[:, *np.tril_indices(3)] for values in zip(*found, strict=True))
    free = np.ptp(q, axis=0) > 0.0
    assert free.sum() == {"lengths": 3, "angles": 6, "angles of x and y": 3}[name]
    for values, expected in ((slope, 0.0), (-(q - q.mean(axis=0)) * slope, 1.0)):
        blocks = values[:, free].reshape(30, -1, free.sum()).mean(axis=1)
        error = blocks.std(axis=0) / np.sqrt(30)
        print(blocks.mean(axis=0).round(2), error.round(2))
        assert (np.abs(blocks.mean(axis=0) - expected) < 4.0 * error + 0.02).all()
        assert error.max() < 0.3, "enough of them to tell"


# Runs.


def test_a_crystal_that_yields_ends_the_run(config: Make, argon: LennardJones) -> None:
    stage = NPT | {"coupling": "triclinic", "pressure_bar": {"x": 0, "y": -15000, "z": 15000}, "steps": 4000}
    stage |= {"compressibility_per_bar": 2e-5, "pressure_damping_fs": 100}
    with pytest.raises(RunError, match=r"(?s)box vector [abc] has come within 1[\d.]*° of the plane.*step \d+.*14.5°"):
        run_md(config(stages=[stage], replicate=[2, 2, 2]), potential=argon)


def lattice_of(path: Path) -> np.ndarray:
    return np.array([frame.cell.array for frame in read(path, ":")])


@pytest.mark.parametrize(
    ("pressure", "still"),
    [({"z": 3000}, [0, 1]), ({"x": 3000, "z": 0}, [1]), ({"xy": 3000}, [2]), ({"y": 9000}, [0, 2])],
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_directions_without_a_pressure_keep_every_bit(
    config: Make, argon: LennardJones, tmp_path: Path, pressure: dict[str, float], still: list[int], deterministic: bool
) -> None:
    trajectory = {"file": str(tmp_path / "t.extxyz"), "every": 4}
    stage = NPT | {"pressure_bar": pressure, "steps": 40, "compressibility_per_bar": 1e-4}
    run_md(config(stages=[stage], trajectory=trajectory, deterministic=deterministic), potential=argon)
    cells = lattice_of(tmp_path / "t.extxyz")
    for axis in range(3):
        lengths = set(cells[:, axis, axis])
        assert (len(lengths) == 1) if axis in still else (len(lengths) > 4)
    if "xy" in pressure:
        np.testing.assert_allclose(cells[:, 0, 0] / cells[:, 1, 1], 1.5, rtol=1e-13)


def test_a_slab_moves_in_its_plane(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """Its open direction has no pressure, and may have none."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat((3, 3, 2))
    atoms.center(vacuum=6.0, axis=2)
    write(tmp_path / "slab.extxyz", atoms)
    given = {"structure": str(tmp_path / "slab.extxyz"), "replicate": None, "periodic": [True, True, False]}
    trajectory = {"file": str(tmp_path / "t.extxyz"), "every": 4}
    stage = NPT | {"pressure_bar": {"x": 0, "y": 0}, "coupling": "triclinic", "steps": 60, "temperature_K": 20}
    run_md(config(stages=[stage], trajectory=trajectory, **given), potential=argon)
    cells = lattice_of(tmp_path / "t.extxyz")
    assert np.array_equal(cells[:, 2], np.broadcast_to(cells[0, 2], (len(cells), 3)))
    assert np.ptp(cells[:, 1, 0]) > 1e-3, "the angle in the plane is free"
    with pytest.raises(InputError, match=r"(?s)repeats in its directions, this one is ppf.*stage 1.*periodic in x, z"):
        run_md(config(stages=[NPT | {"pressure_bar": {"x": 0, "z": 0}}], **given), potential=argon)


@pytest.mark.parametrize("free", [{"coupling": "triclinic"}, {"deform_per_ps": {"z": 0.01}}])
def test_cartesian_pressures_of_a_slab_that_stands_on_edge(
    free: dict[str, Any], config: Make, argon: LennardJones, tmp_path: Path
) -> None:
    """Its open box vector c lies along x, so that y and z are the directions in its plane."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat((2, 3, 3))
    atoms.center(vacuum=6.0, axis=0)
    atoms.set_cell(atoms.cell.array[[2, 1, 0]])
    write(tmp_path / "slab.extxyz", atoms)
    given = {"structure": str(tmp_path / "slab.extxyz"), "replicate": None, "periodic": [True, True, False]}
    stage = NPT | {"steps": 20, "temperature_K": 20} | free
    in_plane = {"y": 0} if "deform_per_ps" in free else {"y": 0, "z": 0}
    thermo = run_md(config(stages=[stage | {"pressure_bar": in_plane}], **given), potential=argon).thermo
    assert np.ptp(thermo["b_A"]) > 1e-4
    assert np.ptp(thermo["c_A"]) == 0.0
    with pytest.raises(InputError, match=r"(?s)this one is ppf.*periodic in x, y, which are Cartesian here"):
        run_md(config(stages=[stage | {"pressure_bar": {"x": 0, "y": 0}}], **given), potential=argon)


def test_a_crystal_that_is_askew_stands_up(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """At low temperature angles go where stress is equal."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat((2, 2, 2))
    skew = np.array([[1.02, 0.0, 0.0], [0.06, 0.98, 0.0], [-0.04, 0.05, 1.0]])
    atoms.set_cell(atoms.cell.array @ skew, scale_atoms=True)
    write(tmp_path / "askew.extxyz", atoms)
    stage = NPT | {"coupling": "triclinic", "pressure_bar": 500, "steps": 1600, "temperature_K": 2}
    given = {"structure": str(tmp_path / "askew.extxyz"), "replicate": None, "velocities": {"temperature_K": 2}}
    trajectory = {"file": str(tmp_path / "t.dump"), "every": 800}
    thermo = run_md(config(stages=[stage], trajectory=trajectory, **given), potential=argon).thermo
    cells = np.array([frame.cell.cellpar() for frame in read(tmp_path / "t.dump", ":")])
    assert np.abs(cells[0, 3:] - 90.0).max() > 3.0
    assert np.abs(cells[-1, 3:] - 90.0).max() < 1.0  # degrees; measured 0.4
    assert np.ptp(cells[-1, :3]) < 0.2
    half = len(thermo["pxx_bar"]) // 2
    for column in ("pxx_bar", "pyy_bar", "pzz_bar", "pxy_bar", "pxz_bar", "pyz_bar"):
        assert thermo[column][half:].mean() == pytest.approx(500.0 if column[1] == column[2] else 0.0, abs=100.0)
