"""The box moves with its atoms, keeps its neighbor list where it can, and has the right volumes and accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write

from dphpc.core.box import Box
from dphpc.core.errors import InputError, RunError
from dphpc.core.exact_sum import no_sum, round_to
from dphpc.core.state import State
from dphpc.core.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR
from dphpc.md.barostats import CellRescaling
from dphpc.md.engine import Engine
from dphpc.md.integrators import Integrator, VelocityVerlet
from dphpc.md.observables import Thermo, measure
from dphpc.md.restart import Checkpoint
from dphpc.md.run import run_md
from dphpc.md.stages import Stage
from dphpc.md.strain import ISOTROPIC, Freedom
from dphpc.parallel.comm import Communicator, Serial
from dphpc.parallel.domain import Domain
from tests.lennard_jones import LennardJones
from tests.md.test_integrators import thermostat, true_positions

pytestmark = pytest.mark.two_ranks

EngineOf = Callable[..., Engine]
Make = Callable[..., dict[str, Any]]
LENGTHS = Freedom(((0,), (1,), (2,)))
STIFF = 5e-5 * EV_PER_A3_IN_BAR
"""Å³/eV, about solid argon's compressibility."""

NPT: dict[str, Any] = {
    "ensemble": "npt", "thermostat": "bussi", "temperature_K": 60, "pressure_bar": 2000, "pressure_damping_fs": 200,
    "barostat_every": 4, "steps": 20,
}  # fmt: skip


def steps_at_pressure(
    engine: Engine, integrator: Integrator, barostat: CellRescaling, every: int, n_steps: int, kelvin: float, bar: Any
) -> Iterator[tuple[int, np.ndarray]]:
    """As `dphpc md` does it; gives each step's number, from 1 on, and what the barostat has taken until then."""
    bath = no_sum()
    for k in range(1, n_steps + 1):
        engine.advance(integrator, [kelvin])
        if k % every == 0:
            integrator.forget()
            bath += barostat.move(engine, kelvin, np.broadcast_to(bar, 3))
        yield k, bath


def constant_pressure(engine: Engine, integrator: Integrator, *of_steps: Any) -> list[Thermo]:
    """Measurements before and after each of `steps_at_pressure`."""
    rows = [measure(engine, integrator, no_sum())]
    return rows + [measure(engine, integrator, bath) for _, bath in steps_at_pressure(engine, integrator, *of_steps)]


# Moves of the box.


def rescale(engine: Engine, factors: Any) -> None:
    """Make box vectors longer by a factor, or by one each."""
    engine.reshape_box(engine.state.box.matrix * np.reshape(np.broadcast_to(factors, 3), (3, 1)))


def skewed(argon: LennardJones, n: int = 4) -> Engine:
    atoms = bulk("Ar", "fcc", a=5.4).repeat((n, n, n))
    atoms.rattle(0.1, seed=2)
    box = Box(atoms.cell.array, origin=np.array([1.0, -2.0, 0.5])).on_grid()
    state = State(box, len(atoms))
    state.ids[:] = np.arange(len(atoms)) + 1
    state.positions[:] = atoms.positions + box.origin
    state.velocities[:] = np.random.default_rng(3).normal(0.0, 1.0, (len(atoms), 3))
    engine = Engine(state, Domain.even(box, 1, 0), Serial(), argon, np.array([39.95]), 4e-3, 0.6, deterministic=True)
    engine.update_forces()
    return engine


def anew(engine: Engine) -> Engine:
    """Another engine of the same atoms in the same box, with a list of its own."""
    old, n = engine.state, engine.state.n_local
    state = State(old.box, n)
    for name in ("ids", "types", "positions", "velocities", "images"):
        getattr(state, name)[:] = getattr(old, name)[:n]
    other = Engine(
        state, engine.domain, engine.comm, engine.potential, engine.masses, engine.timestep, engine.skin,
        deterministic=engine.deterministic,
    )  # fmt: skip
    other.update_forces()
    return other


def by_id(engine: Engine, name: str) -> np.ndarray:
    n = engine.state.n_local
    return getattr(engine.state, name)[:n][np.argsort(engine.state.ids[:n])]


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_list_outlives_a_small_strain(argon: LennardJones, factor: float) -> None:
    engine = skewed(argon)
    before, places, velocities = true_positions(engine), engine.rebuilds, by_id(engine, "velocities").copy()
    old = engine.state.box
    rescale(engine, factor)
    engine.update_forces()
    assert engine.rebuilds == places, "nothing was built"
    box = engine.state.box
    np.testing.assert_allclose(box.matrix, factor * old.matrix, rtol=1e-14)
    assert np.array_equal(box.origin, old.origin)
    np.testing.assert_allclose(true_positions(engine) - box.origin, factor * (before - old.origin), atol=1e-12)
    np.testing.assert_allclose(by_id(engine, "velocities"), velocities / factor, atol=1e-14)
    other = anew(engine)
    assert np.array_equal(by_id(engine, "forces"), by_id(other, "forces"))
    assert engine.outputs.energy == other.outputs.energy


def test_a_list_is_built_anew_before_it_lacks_a_pair(argon: LennardJones) -> None:
    engine, built = skewed(argon), []
    for _ in range(40):
        rescale(engine, 0.995)
        engine.update_forces()
        built.append(engine.rebuilds)
        assert np.array_equal(by_id(engine, "forces"), by_id(anew(engine), "forces"))
    # 0.6 Å of 7.1: after 17 strains of half a percent pairs come in, of atoms that do not move.
    assert [built.count(n) for n in sorted(set(built))][:2] == [17, 18]


def test_in_a_skewed_box_a_list_is_built_anew_before_it_lacks_a_pair(argon: LennardJones) -> None:
    engine, built, shape = skewed(argon), [], np.array([0.995, 1.0, 1.005])
    for _ in range(30):
        rescale(engine, shape)
        engine.update_forces()
        built.append(engine.rebuilds)
        assert np.array_equal(by_id(engine, "forces"), by_id(anew(engine), "forces"))
    # Where no vector was skewed it would be 17, as above: distances in other directions shrink by more.
    assert [built.count(n) for n in sorted(set(built))][:2] == [15, 15]


def test_vectors_of_a_skewed_box_grow_with_their_atoms_at_constant_angles(argon: LennardJones) -> None:
    engine, factors = skewed(argon), np.array([1.02, 0.99, 1.01])
    old, before, v = engine.state.box, true_positions(engine), by_id(engine, "velocities").copy()
    rescale(engine, factors)
    box, after, w = engine.state.box, true_positions(engine), by_id(engine, "velocities")
    np.testing.assert_allclose(box.matrix, old.matrix * factors[:, None], rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(box.to_fractional(after), old.to_fractional(before), atol=1e-12)
    # Canonical: a momentum's product with any vector that goes with the box stays.
    np.testing.assert_allclose(w @ box.matrix.T, v @ old.matrix.T, atol=1e-10)
    assert np.abs(w - v / factors).max() > 0.01


def test_the_force_on_a_length_is_the_energys_derivative(argon: LennardJones) -> None:
    """By finite differences of potential and kinetic energy, at constant fractional coordinates."""
    force, h = shape_force(skewed(argon, 3), LENGTHS).diagonal(), 1e-5
    for k, other in ((0, 1), (1, 2)):
        totals = []
        for sign in (1.0, -1.0):
            engine, step = skewed(argon, 3), np.zeros(3)
            step[[k, other]] = sign * h, -sign * h
            rescale(engine, np.exp(step))
            engine.update_forces()
            totals.append(measure(engine, VelocityVerlet(), no_sum()).total_eV)
        assert (totals[1] - totals[0]) / (2.0 * h) == pytest.approx(force[k] - force[other], abs=2e-5)
        assert abs(force[k] - force[other]) > 0.05


def test_an_atoms_image_does_not_matter(argon: LennardJones) -> None:
    engine, other = skewed(argon), skewed(argon)
    random, n = np.random.default_rng(1), engine.state.n_local
    # All but the last on a face, where rounding cannot tell on which side.
    places = np.concatenate([np.roll(random.random((n, 3)) * (0, 1, 1), axis, axis=1)[axis::3] for axis in range(3)])
    for e in (engine, other):
        box = e.state.box
        e.state.positions[: n - 1] = round_to(places[: n - 1] @ box.matrix + box.origin, e.spacing)
    shifts = random.integers(-1, 2, (n, 3))
    other.state.positions[:n] += shifts @ other.state.box.matrix
    for e in (engine, other):
        rescale(e, 1.0123)
        rescale(e, np.array([1.002, 0.997, 1.001]))
    assert np.array_equal(other.state.positions[:n] - shifts @ other.state.box.matrix, engine.state.positions[:n])


def test_a_box_that_outgrows_its_grid_gets_a_coarser_one(argon: LennardJones) -> None:
    engine = skewed(argon)
    spacing = engine.spacing
    while engine.spacing == spacing:
        rescale(engine, 1.05)
    engine.update_forces()
    assert engine.spacing == 2 * spacing == engine.state.box.spacing
    assert np.array_equal(engine.state.box.matrix, engine.state.box.on_grid().matrix)
    engine.drift(engine.timestep)
    on_grid = engine.state.positions[: engine.state.n_local] / engine.spacing
    assert np.array_equal(on_grid, np.round(on_grid))


# The ensemble and its account.


def shape_force(engine: Engine, freedom: Freedom) -> np.ndarray:
    """(3, 3) eV, of equal pressures."""
    return CellRescaling(1.0, 1.0, 1.0, 1, freedom).shape_force(engine, np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("name", "anisotropic"), [("nose-hoover", False), ("langevin", False), ("bussi", False), ("bussi", True)]
)
def test_total_and_baths_are_conserved(engine_of: EngineOf, name: str, anisotropic: bool) -> None:
    engine = engine_of(n=2)
    barostat = CellRescaling(0.5, STIFF, 5 * engine.timestep, seed=4, freedom=LENGTHS if anisotropic else ISOTROPIC)
    rows = constant_pressure(engine, thermostat(name, engine), barostat, 5, 400, 60.0, 1000.0)
    total, conserved = (np.array([getattr(r, key) for r in rows]) for key in ("total_eV", "conserved_eV"))
    assert np.ptp([row.volume_A3 for row in rows]) > 20.0, "the box moves"
    assert (np.ptp(np.diag(engine.state.box.matrix)) > 0.02) == anisotropic
    assert np.ptp(conserved) < 0.01 * np.ptp(total)  # measured: 0.002


def test_the_account_of_a_move_is_right_to_the_third_order(engine_of: EngineOf) -> None:
    lost = []
    for compressibility in (STIFF, STIFF / 16):
        engine = engine_of(n=2)
        before = measure(engine, VelocityVerlet(), no_sum())
        given = CellRescaling(0.02, compressibility, 0.02, seed=4).move(engine, 60.0, [before.pressure_bar] * 3)
        after = measure(engine, VelocityVerlet(), given)
        assert abs(after.total_eV - before.total_eV) > 1e-3
        lost.append(after.conserved_eV - before.total_eV)
    assert abs(lost[0] / lost[1]) > 40.0  # a move of a quarter of the length; measured: 64


def test_the_account_is_the_effective_energy_of_the_probabilities(engine_of: EngineOf) -> None:
    """F' − F + kT ln(M(λ→λ')/M(λ'→λ)) is what total + bath changes by, from the densities themselves."""
    engine, kT, target = engine_of(n=2), BOLTZMANN_EV_PER_K * 60.0, -2000.0
    before = measure(engine, VelocityVerlet(), no_sum())
    given = CellRescaling(0.02, STIFF, 0.02, seed=4).move(engine, 60.0, [target] * 3)
    after = measure(engine, VelocityVerlet(), given)
    mobility = STIFF / (4 * 0.02)

    def drift(row: Thermo) -> float:
        excess = (row.pressure_bar - target) / EV_PER_A3_IN_BAR
        return mobility * (2.0 * np.sqrt(row.volume_A3) * excess + kT / np.sqrt(row.volume_A3)) * 0.02

    def free_energy(row: Thermo) -> float:
        return row.total_eV + target / EV_PER_A3_IN_BAR * row.volume_A3 - 0.5 * kT * np.log(row.volume_A3)

    step, spread2 = np.sqrt(after.volume_A3) - np.sqrt(before.volume_A3), 2.0 * mobility * kT * 0.02
    ratio = ((-step - drift(after)) ** 2 - (step - drift(before)) ** 2) / (2.0 * spread2)
    expected = free_energy(after) - free_energy(before) + kT * ratio
    assert after.conserved_eV - before.total_eV == pytest.approx(expected, abs=1e-12)
    assert abs(kT * ratio) > 1e-4


def test_without_noise_and_far_from_its_pressure_the_box_shrinks_as_told(engine_of: EngineOf) -> None:
    engine = engine_of(n=2, temperature=0.0)
    row = measure(engine, VelocityVerlet(), no_sum())
    CellRescaling(2.0, STIFF, 0.01, seed=4).move(engine, 0.0, [row.pressure_bar + 3000.0] * 3)
    change = engine.state.box.volume / row.volume_A3 - 1.0
    assert change == pytest.approx(-3000.0 * 5e-5 * 0.01 / 2.0, rel=1e-3)


def test_a_move_of_the_shape_keeps_the_volume_and_its_account(engine_of: EngineOf) -> None:
    lost = []
    for compressibility in (STIFF, STIFF / 16):
        engine = engine_of(n=2)
        before, old = measure(engine, VelocityVerlet(), no_sum()), np.diag(engine.state.box.matrix)
        engine.step = 2  # whose lot is the shape's
        given = CellRescaling(0.02, compressibility, 0.02, seed=4, freedom=LENGTHS).move(engine, 60.0, [5000.0] * 3)
        after = measure(engine, VelocityVerlet(), given)
        assert after.volume_A3 == pytest.approx(before.volume_A3, rel=1e-13)
        assert np.ptp(np.diag(engine.state.box.matrix) / old) > 1e-3
        lost.append(after.conserved_eV - before.total_eV)
    assert abs(lost[0] / lost[1]) > 40.0  # measured: 64


def test_a_move_of_the_shape_of_a_skewed_box_has_its_account(argon: LennardJones) -> None:
    lost = []
    for compressibility in (STIFF, STIFF / 16):
        engine = skewed(argon, 3)
        before, old = measure(engine, VelocityVerlet(), no_sum()), engine.state.box
        engine.step = 2  # whose lot is the shape's
        given = CellRescaling(0.02, compressibility, 0.02, seed=4, freedom=LENGTHS).move(engine, 60.0, [5000.0] * 3)
        after, box = measure(engine, VelocityVerlet(), given), engine.state.box
        assert after.volume_A3 == pytest.approx(before.volume_A3, rel=1e-12)
        lengths = np.linalg.norm(box.matrix, axis=1) / np.linalg.norm(old.matrix, axis=1)
        assert np.ptp(lengths) > 1e-3
        np.testing.assert_allclose(box.matrix, old.matrix * lengths[:, None], atol=1e-11)
        lost.append(after.conserved_eV - before.total_eV)
    assert abs(lost[0] / lost[1]) > 40.0  # measured: 64


def test_a_length_alone_gives_way(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """A crystal that is too long in one direction, at one volume, becomes a cube."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat((2, 2, 2))
    atoms.set_cell(atoms.cell.array * (1.04, 1.0, 1.0 / 1.04), scale_atoms=True)
    write(tmp_path / "long.extxyz", atoms)
    stage = NPT | {"coupling": "anisotropic", "pressure_bar": 500, "steps": 1200, "temperature_K": 2}
    restart = {"file": str(tmp_path / "r.h5")}
    structure = {"structure": str(tmp_path / "long.extxyz"), "replicate": None}
    thermo = run_md(
        config(stages=[stage], restart=restart, velocities={"temperature_K": 2}, **structure), potential=argon
    ).thermo
    with h5py.File(tmp_path / "r.h5") as file:
        assert np.ptp(np.diag(file["box"])) < 0.2  # Å; 0.85 at the start, measured: 0.10
    stress = np.array([thermo[name][100:].mean() for name in ("pxx_bar", "pyy_bar", "pzz_bar")])
    np.testing.assert_allclose(stress, 500.0, atol=100.0)


# Runs.


def test_a_ramp_of_the_pressure_in_a_run(config: Make, argon: LennardJones) -> None:
    stage = NPT | {"pressure_bar": [1.0, 20000.0], "steps": 400, "compressibility_per_bar": 3e-5}
    thermo = run_md(config(stages=[stage]), potential=argon).thermo
    assert thermo["volume_A3"][-1] < 0.85 * thermo["volume_A3"][0]
    assert thermo["pressure_bar"][-8:].mean() == pytest.approx(20000.0, rel=0.15)
    assert np.ptp(thermo["conserved_eV"]) < 0.02 * np.ptp(thermo["total_eV"])


def test_nose_hoover_measures_the_kinetic_energy_anew_where_the_box_moved(
    config: Make, argon: LennardJones, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    rescale = Engine.rescale

    def note(engine: Engine, bath: Any, inputs: np.ndarray, *, measured: bool = True) -> None:
        asked.append(measured)
        rescale(engine, bath, inputs, measured=measured)

    monkeypatch.setattr(Engine, "rescale", note)
    run_md(config(stages=[NPT | {"thermostat": "nose-hoover", "steps": 9}]), potential=argon)
    assert [k for k, first in enumerate(asked[::2]) if first] == [0, 4, 8]
    assert all(asked[1::2])


@pytest.mark.mpi
def test_a_leap_of_the_volume_ends_the_run(comm: Communicator, config: Make, argon: LennardJones) -> None:
    stage = NPT | {"pressure_bar": 1e6, "compressibility_per_bar": 1e-3}
    with pytest.raises(
        RunError, match=r"(?s)the barostat would change the volume by -100 % in one move.*step 4, 0.016"
    ):
        run_md(config(stages=[stage]), comm=comm, potential=argon)


@pytest.mark.mpi
def test_an_open_box_is_refused_before_anything_is_written(comm: Communicator, config: Make, argon: Any) -> None:
    made = config(stages=[{"ensemble": "nve", "steps": 1}, NPT], periodic=[True, True, False])
    with pytest.raises(InputError, match=r"(?s)repeats in its directions, this one is ppf.*stage 2"):
        run_md(made, comm=comm, potential=argon)
    assert not Path(made["thermo"]["file"]).exists()


@pytest.mark.mpi
@pytest.mark.parametrize("skew", [False, True])
def test_frames_have_their_own_boxes(skew: bool, comm: Communicator, config: Make, argon: LennardJones) -> None:
    made = config(stages=[{"ensemble": "nve", "steps": 8}, NPT | {"steps": 8}], thermo=None)
    folder = Path(made["structure"]).parent
    if skew and comm.rank == 0:
        write(made["structure"], bulk("Ar", "fcc", a=5.4).repeat((3, 3, 3)), parallel=False)
    comm.barrier()
    boxes: dict[str, list[np.ndarray]] = {}
    for suffix in ("extxyz", "dump", "h5md"):
        more = {
            "trajectory": {"every": 4, "file": str(folder / f"t.{suffix}")},
            "restart": {"file": str(folder / "r.h5")},
        }
        run_md(made | more | {"thermo": {"file": None}}, comm=comm, potential=argon)
    comm.barrier()
    if comm.rank == 0:
        boxes["extxyz"] = [f.cell.array for f in read(folder / "t.extxyz", index=":", parallel=False)]
        text = "lammps-dump-text"
        boxes["dump"] = [f.cell.array for f in read(folder / "t.dump", index=":", format=text, parallel=False)]
        with h5py.File(folder / "t.h5md") as file, h5py.File(folder / "r.h5") as restart:
            atoms = file["particles/all"]
            edges = atoms["box/edges"]
            assert edges["step"] == atoms["position/step"]
            assert edges["time"] == atoms["position/time"]
            boxes["h5md"] = [e if skew else np.diag(e) for e in edges["value"]]
            last = restart["box"][:]
        volumes = [np.linalg.det(box) for box in boxes["extxyz"]]
        assert volumes[0] == volumes[1] == volumes[2] != volumes[3] != volumes[4]
        assert np.array_equal(boxes["extxyz"], boxes["h5md"])
        assert np.array_equal(boxes["extxyz"][-1], last)
        lengths = [np.linalg.norm(b, axis=1) for b in boxes["extxyz"]]  # LAMMPS turns a skewed one
        np.testing.assert_allclose([np.linalg.norm(b, axis=1) for b in boxes["dump"]], lengths, rtol=1e-12)
    comm.barrier()


def test_an_older_h5md_file_with_one_box_goes_on_with_many(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    def run(stages: list[dict[str, Any]], **changes: Any) -> None:
        files = {
            "trajectory": {"every": 4, "file": str(tmp_path / "t.h5md")},
            "restart": {"file": str(tmp_path / "r.h5")},
        }
        run_md(config(stages=stages, **files, **changes), potential=argon)

    nve, again = {"ensemble": "nve", "steps": 8}, {"structure": str(tmp_path / "r.h5"), "replicate": None}
    run([nve])
    with h5py.File(tmp_path / "t.h5md", "r+") as file:
        box = file["particles/all/box"]
        first = box["edges/value"][0]
        del box["edges"]
        box["edges"] = first
    run([nve, NPT | {"steps": 8}], **again)
    with h5py.File(tmp_path / "t.h5md") as file:
        volumes = np.prod(file["particles/all/box/edges/value"], axis=1)
        assert file["particles/all/box/edges/step"][:].tolist() == [0, 4, 8, 12, 16]
    assert len(set(volumes[:3])) == 1
    assert len(set(volumes)) == 3


def test_an_older_restart_knows_no_pressure(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    stage = Stage(ensemble="nve", steps=8)
    old = {k: v for k, v in stage.model_dump().items() if k in ("ensemble", "steps", "thermostat", "temperature_K")}
    checkpoint = Checkpoint(4, (0, 0.0, 1.0), [Stage.model_construct(**old).model_dump()], 0, 4, [0.0] * 3)
    assert checkpoint.position_in([stage]) == (0, 4)
    longer = replace(checkpoint, stages=[Stage(**NPT | {"pressure_bar": [1, 2]}).model_dump()])
    assert longer.position_in([Stage(**NPT | {"pressure_bar": [1, 2], "steps": 40})]) is None


def test_in_a_box_that_grows_no_atom_is_thought_to_fly_away(engine_of: EngineOf) -> None:
    """Though the list would last, as all neighbors part."""
    engine = engine_of(n=2, temperature=0.0)
    engine.update_forces()
    volume = engine.state.box.volume
    for _ in range(450):
        rescale(engine, 1.003)
        engine.update_forces()
        engine.state.velocities[0] = (1.0, 0.0, 0.0)
        engine.drift(0.01)
    assert engine.state.box.volume > 50 * volume
