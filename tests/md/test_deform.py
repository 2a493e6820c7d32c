"""Boxes that are deformed at a given rate: their shape, the motion of atoms in them, the work, and the stress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

from dphpc.core.box import Box
from dphpc.core.errors import InputError
from dphpc.core.exact_sum import no_sum
from dphpc.core.state import State
from dphpc.core.units import EV_PER_A3_IN_BAR
from dphpc.md.deform import Deformation, boxes_ahead
from dphpc.md.engine import Engine
from dphpc.md.integrators import VelocityVerlet
from dphpc.md.observables import measure
from dphpc.md.run import run_md
from dphpc.md.stages import Stage
from dphpc.md.strain import Freedom
from dphpc.md.thermostats import NoseHoover
from dphpc.parallel.comm import Communicator, Serial
from dphpc.parallel.domain import Domain
from tests.lennard_jones import LennardJones
from tests.md.test_barostats import rescale, skewed
from tests.md.test_integrators import true_positions

Make = Callable[..., dict[str, Any]]
RATES = {"x": 0.3, "y": -0.2, "z": 0.1, "xy": 0.5, "xz": -0.4, "yz": 0.6}
NVE: dict[str, Any] = {"ensemble": "nve", "steps": 20, "deform_every": 4}
NPT: dict[str, Any] = {
    "ensemble": "npt", "thermostat": "bussi", "temperature_K": 20, "pressure_damping_fs": 200, "barostat_every": 4,
    "compressibility_per_bar": 5e-5, "steps": 400,
}  # fmt: skip


def boxes_of(path: Path) -> np.ndarray:
    """(frames, 3, 3) Å."""
    return np.array([frame.cell.array for frame in read(path, ":")])


def gradient(rates: dict[str, float], time: float) -> np.ndarray:
    """F = 1 + R t, written out."""
    x, y, z, xy, xz, yz = (time * rates.get(k, 0.0) for k in ("x", "y", "z", "xy", "xz", "yz"))
    return np.array([[1 + x, 0, 0], [xy, 1 + y, 0], [xz, yz, 1 + z]])


# The box.


def test_lengths_and_tilts_change_at_their_rates(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """Those of the stage's beginning; the next stage has the last box."""
    stages = [NVE | {"deform_per_ps": RATES}, NVE | {"steps": 9}, NVE | {"steps": 13, "deform_per_ps": {"x": 0.5}}]
    del stages[1]["deform_every"]
    trajectory = {"file": str(tmp_path / "t.extxyz"), "every": 1}
    thermo = run_md(config(stages=stages, trajectory=trajectory), potential=argon).thermo
    boxes, first = boxes_of(tmp_path / "t.extxyz"), np.diag([16.2, 10.8, 10.8])
    for step in (0, 3, 4, 7, 8, 20):
        moved = 4 * (step // 4) * 0.004  # ps
        np.testing.assert_allclose(boxes[step], first @ gradient(RATES, moved), atol=1e-12)
    x, xy = boxes[20, 0, 0], boxes[20, 1, 0]
    assert xy == pytest.approx(10.8 * 0.5 * 0.08)
    assert np.array_equal(boxes[20:33], np.broadcast_to(boxes[20], (13, 3, 3))), "at rest, and until the first move"
    assert boxes[-1, 0, 0] == pytest.approx(x * (1 + 0.5 * 0.048), abs=1e-12)
    assert np.array_equal(boxes[-1, :, 1:], boxes[20, :, 1:]), "directions without a rate keep every bit"
    columns = [thermo[name] for name in ("a_A", "b_A", "c_A", "alpha_deg", "beta_deg", "gamma_deg")]
    np.testing.assert_allclose(np.transpose(columns)[-1], read(tmp_path / "t.extxyz").cell.cellpar(), rtol=1e-12)
    assert np.ptp(thermo["gamma_deg"]) > 1.0


def test_the_boxes_ahead_are_those_of_the_run(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    rates = {"x": -0.3, "z": 0.2}
    stages = [NVE | {"deform_per_ps": rates}, NVE | {"steps": 8, "deform_per_ps": {"x": -0.5, "xy": 0.1}}]
    run_md(config(stages=stages, trajectory={"file": str(tmp_path / "t.extxyz"), "every": 4}), potential=argon)
    boxes, parsed = boxes_of(tmp_path / "t.extxyz"), [Stage.model_validate(stage) for stage in stages]
    ahead = boxes_ahead(Box(boxes[0]), parsed, 0.004)
    np.testing.assert_allclose([box.matrix for box in ahead[:2]], boxes[[0, 5]], atol=1e-12)
    np.testing.assert_allclose(np.diag(ahead[2].matrix), np.diag(boxes[-1]), atol=1e-12)
    later = boxes_ahead(Box(boxes[3]), parsed, 0.004, done=12)
    np.testing.assert_allclose(
        [box.matrix for box in later], [boxes[3], *(box.matrix for box in ahead[1:])], atol=1e-12
    )


def test_the_memory_is_that_of_the_thinnest_box(
    config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth shorter along x, it has more ghosts; a box that only grows has not."""
    said = []
    for changes in ({"deform_every": None}, {"deform_per_ps": {"x": 0.5}}, {"deform_per_ps": {"x": -0.625}}):
        stages = [NVE | {"steps": 40} | changes, {"ensemble": "nve", "steps": 1}]
        stages = [{k: v for k, v in stage.items() if v is not None} for stage in stages]
        run_md(config(stages=stages), potential=argon)
        said += [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory:")]
    assert said[0] == said[1]
    assert said[2].endswith("once the box is 14.58 × 10.8 × 10.8 Å")
    rest, shorter = (float(line.split()[1]) for line in said[1:])
    assert shorter > rest


def test_a_rate_is_that_of_the_first_length_whatever_the_timesteps(
    config: Make, argon: LennardJones, tmp_path: Path
) -> None:
    """Of runs that go on with another, twice."""
    for steps, timestep in ((20, 1.0), (40, 4.0), (60, 2.0)):
        stage = NVE | {"steps": steps, "deform_per_ps": RATES}
        restart = {"every": 1000, "file": str(tmp_path / "r.h5")}
        trajectory = {"every": 4, "file": str(tmp_path / "t.extxyz")}
        run = config(stages=[stage], timestep_fs=timestep, restart=restart, trajectory=trajectory)
        run_md(run, potential=argon, resume=True)
    boxes, first = boxes_of(tmp_path / "t.extxyz"), np.diag([16.2, 10.8, 10.8])
    for frame, moved in ((5, 0.02), (6, 0.036), (10, 0.1), (15, 0.14)):
        np.testing.assert_allclose(boxes[frame], first @ gradient(RATES, moved), atol=1e-12)


def test_a_box_that_lies_anyhow_is_stretched_along_x(argon: LennardJones) -> None:
    """Directions are Cartesian, so that the strain is the same in any cell of a crystal."""
    engine = skewed(argon)
    old, before = engine.state.box, true_positions(engine)
    assert old.matrix[0, 0] == 0.0, "not LAMMPS' orientation"
    Deformation({"x": 0.2, "yz": 0.1}, 0.05).move(engine, 1)
    change = gradient({"x": 0.2, "yz": 0.1}, 0.05)
    np.testing.assert_allclose(engine.state.box.matrix, old.matrix @ change, atol=1e-13)
    np.testing.assert_allclose(true_positions(engine) - old.origin, (before - old.origin) @ change, atol=1e-11)


# The atoms.


@pytest.mark.parametrize("rates", [RATES, {"xy": 0.9}, {"x": -0.8}], ids=["all", "shear", "squeeze"])
def test_free_atoms_fly_straight(argon: LennardJones, rates: dict[str, float]) -> None:
    """True positions, beyond the box, are x₀ F + v₀ t: what atoms do that started in the flow and feel no force."""
    errors, t = [], 0.5
    for interval in (0.02, 0.01):
        state = State(Box(np.diag([40.0, 50.0, 45.0])), 3)
        state.ids[:] = [1, 2, 3]
        state.positions[:] = [[5, 6, 7], [20, 30, 25], [38, 45, 40]]
        state.velocities[:] = [[3, -2, 1], [-1, 4, -3], [2, 2, -4]]
        first, velocities = state.positions.copy(), state.velocities.copy()
        domain = Domain.even(state.box, 1, 0)
        engine = Engine(state, domain, Serial(), argon, np.array([39.95]), interval, 0.6)
        engine.update_forces()
        deformation = Deformation(rates, interval)
        for n in range(1, round(t / interval) + 1):
            engine.advance(VelocityVerlet(), [0.0])
            deformation.move(engine, n)
        errors.append(true_positions(engine) - (first @ gradient(rates, t) + velocities * t))
        found = engine.state.velocities[:3][np.argsort(engine.state.ids[:3])]
        np.testing.assert_allclose(found @ gradient(rates, t), velocities, atol=1e-10)
    # Atoms move in a box that stands still between two moves: first order.
    assert 1e-3 < np.abs(errors[0]).max() < 0.05  # Å, of 2
    np.testing.assert_allclose(errors[1], 0.5 * errors[0], atol=3e-4)


def test_the_work_of_a_move_is_right_to_the_third_order(argon: LennardJones) -> None:
    """Of the pressure, which is high here, with its kinetic part."""
    lost = []
    for interval in (0.02, 0.005, 0.0002):
        engine = skewed(argon, 3)
        rescale(engine, 0.95)
        engine.update_forces()
        before = measure(engine, VelocityVerlet(), no_sum())
        taken = Deformation(RATES, interval).move(engine, 1)
        after = measure(engine, VelocityVerlet(), taken)
        assert abs(after.kinetic_eV - before.kinetic_eV) > 5e-7
        lost.append(after.conserved_eV - before.total_eV)
        if interval < 0.001:
            work = -before.pxx_bar * RATES["x"] - before.pyy_bar * RATES["y"] - before.pzz_bar * RATES["z"]
            work -= before.pxy_bar * RATES["xy"] + before.pxz_bar * RATES["xz"] + before.pyz_bar * RATES["yz"]
            work *= interval * before.volume_A3 / EV_PER_A3_IN_BAR
            assert after.total_eV - before.total_eV == pytest.approx(work, rel=0.01)
    assert 60.0 < lost[0] / lost[1] < 68.0  # a quarter of the strain: 64


@pytest.mark.parametrize("rates", [{"x": 0.5, "y": -0.3}, {"xy": 1.0, "yz": -0.5}], ids=["stretch", "shear"])
def test_total_less_work_is_conserved(config: Make, argon: LennardJones, rates: dict[str, float]) -> None:
    stage = NVE | {"deform_per_ps": rates, "steps": 100, "deform_every": 2}
    thermo = run_md(config(stages=[stage]), potential=argon).thermo
    assert np.ptp(thermo["total_eV"]) > 0.3
    assert np.ptp(thermo["conserved_eV"]) < 1e-3 * np.ptp(thermo["total_eV"])  # measured: 2.2e-4 and 1.8e-4


def test_a_thermostat_forgets_the_velocities_that_a_move_changed(
    config: Make, argon: LennardJones, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    move, forget = Deformation.move, NoseHoover.forget

    def note(thermostat: NoseHoover) -> None:
        steps.append(-1)
        forget(thermostat)

    def moved(deformation: Deformation, engine: Engine, n: int) -> np.ndarray:
        steps.append(engine.step)
        return move(deformation, engine, n)

    monkeypatch.setattr(NoseHoover, "forget", note)
    monkeypatch.setattr(Deformation, "move", moved)
    stage = {"ensemble": "nvt", "thermostat": "nose-hoover", "temperature_K": 60, "steps": 10, "deform_every": 4}
    run_md(config(stages=[stage | {"deform_per_ps": {"x": 0.1}}]), potential=argon)
    assert steps == [-1, 4, -1, 8]


# Stress and strain.


def energy_at(argon: LennardJones, change: np.ndarray) -> tuple[float, float]:
    """Energy in eV and first volume in Å³ of a perfect crystal, deformed by a matrix."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat((3, 2, 2))
    volume = atoms.get_volume()
    atoms.set_cell(atoms.cell.array @ change, scale_atoms=True)
    state = State(Box(atoms.cell.array), len(atoms))
    state.ids[:] = np.arange(len(atoms)) + 1
    state.positions[:] = atoms.positions
    engine = Engine(state, Domain.even(state.box, 1, 0), Serial(), argon, np.array([39.95]), 4e-3, 0.6)
    engine.update_forces()
    return engine.outputs.energy, volume


@pytest.mark.parametrize(("axes", "column"), [("x", "pxx_bar"), ("y", "pyy_bar"), ("xy", "pxy_bar"), ("yz", "pyz_bar")])
def test_the_slope_of_the_stress_is_the_energys_second_derivative(
    config: Make, argon: LennardJones, axes: str, column: str
) -> None:
    """Of a crystal at rest in which each atom is a center of symmetry, so that forces stay 0."""
    stage = NVE | {"deform_per_ps": {axes: 0.1}, "steps": 50, "deform_every": 5}
    thermo = run_md(config(stages=[stage], velocities={"temperature_K": 0}), potential=argon).thermo
    assert np.abs(thermo["kinetic_eV"]).max() < 1e-12
    strain, h = 0.1 * thermo["time_ps"], 1e-3
    energies = [energy_at(argon, gradient({axes: k * h}, 1.0)) for k in (-1, 0, 1)]
    volume = energies[0][1]
    (low, _), (here, _), (high, _) = energies
    stress, slope = (high - low) / (2 * h * volume), (high - 2 * here + low) / (h * h * volume)
    # dE = −V P:L dt, and L = F⁻¹ R: to first order −P (1 + (one of) the change of area) is the slope of E.
    nominal = -thermo[column] * thermo["volume_A3"] / volume / (1 + strain * (len(axes) == 1)) / EV_PER_A3_IN_BAR
    fit = np.polynomial.polynomial.polyfit(strain, nominal, 3)
    assert fit[0] == pytest.approx(stress, abs=1e-6)
    assert fit[1] == pytest.approx(slope, rel=2e-3)
    assert slope * EV_PER_A3_IN_BAR > 5000.0


def test_a_crystal_that_is_pulled_narrows(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """Uniaxial tension with free sides, at the rate that is given."""
    given = {"x": 0.05}
    stage = NPT | {"pressure_bar": {"y": 0, "z": 0}, "deform_per_ps": given, "deform_every": 2}
    trajectory = {"file": str(tmp_path / "t.extxyz"), "every": 40}
    run = config(stages=[stage], trajectory=trajectory, replicate=[3, 3, 3], velocities={"temperature_K": 20})
    thermo = run_md(run, potential=argon).thermo
    boxes = boxes_of(tmp_path / "t.extxyz")
    np.testing.assert_allclose(boxes[:, 0, 0], 16.2 * (1 + 0.05 * 0.004 * 40 * np.arange(11)), rtol=1e-12)
    assert boxes[0, 0, 0] < boxes[-1, 0, 0] - 1.0
    sides = boxes[-1, [1, 2], [1, 2]]
    assert (sides < 16.2 - 0.1).all()
    half = len(thermo["pyy_bar"]) // 2
    assert np.abs(thermo["pyy_bar"][half:].mean()) < 0.2 * np.abs(thermo["pxx_bar"][half:].mean())
    assert thermo["pxx_bar"][half:].mean() < -500.0
    assert np.ptp(thermo["conserved_eV"]) < 0.02 * np.ptp(thermo["total_eV"])


def test_pressures_of_a_deformed_box_are_cartesian(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """A length that gives way leaves tilts along other directions alone."""
    stage = NPT | {"pressure_bar": {"y": -2000}, "deform_per_ps": {"xy": 0.5}, "deform_every": 4, "steps": 80}
    assert Stage(**stage).freedom == Freedom(((1,),), cartesian=True)
    trajectory = {"file": str(tmp_path / "t.extxyz"), "every": 4}
    run_md(config(stages=[stage], trajectory=trajectory), potential=argon)
    boxes = boxes_of(tmp_path / "t.extxyz")
    assert np.ptp(boxes[:, 1, 1]) > 0.05
    rises = np.diff(boxes[:, 1, 0])
    # Each move shears the present height, before the barostat changes that.
    np.testing.assert_allclose(rises, 0.5 * 0.016 * boxes[:-1, 1, 1], rtol=1e-10)
    assert np.array_equal(boxes[:, 2], np.broadcast_to(boxes[0, 2], (len(boxes), 3)))


# Run files.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deform_per_ps": 0.1}, "rates by direction are wanted, as {x: 0.001, yz: 0.002}"),
        ({"deform_per_ps": {}}, "rates by direction are wanted"),
        ({"deform_per_ps": {"zx": 0.1}}, "rates by direction are wanted"),
        ({"deform_per_ps": {"x": "fast"}}, "fast"),
        ({"deform_every": 3}, "'deform_every' has no meaning in a box that is not deformed"),
        ({"deform_per_ps": {"x": 0.1}, "steps": 9, "deform_every": 10}, "would not be deformed once in 9 steps"),
        (
            {"deform_per_ps": {"x": 1.0}},
            r"'deform_per_ps' of stage 1 would strain x by 1.6 % in each move, more than 1",
        ),
        ({"deform_per_ps": {"yz": -1.0}}, "would strain yz by -1.6 %"),
        ({"deform_per_ps": {"y": -0.5}, "steps": 500}, "would shrink the box by 100 % along y in 500 steps"),
        (
            {"ensemble": "minimize", "deform_per_ps": {"x": 0.1}, "deform_every": None},
            "'deform_per_ps' has no meaning in a minimize stage: remove it or write ensemble: nve or nvt or npt",
        ),
        (NPT | {"pressure_bar": 1, "deform_per_ps": {"x": 0.1}}, "gives x a rate, and 'pressure_bar' lets it move"),
        (NPT | {"pressure_bar": {"xz": 1}, "deform_per_ps": {"z": 0.1}}, "gives z a rate, and 'pressure_bar' lets"),
        (
            NPT | {"pressure_bar": {"x": 1, "z": 0}, "coupling": "triclinic", "deform_per_ps": {"xz": 0.1}},
            "gives xz a rate, and 'pressure_bar' lets it move",
        ),
    ],
)
def test_mistakes_are_explained(config: Make, changes: dict[str, Any], message: str) -> None:
    stage = {key: value for key, value in (NVE | changes).items() if value is not None}
    with pytest.raises(InputError, match=message):
        run_md(config(stages=[stage]))


@pytest.mark.parametrize(
    "stage",
    [
        NPT | {"pressure_bar": 1, "deform_per_ps": {"xy": 0.1}},
        NPT | {"pressure_bar": {"x": 1, "y": 0}, "coupling": "triclinic", "deform_per_ps": {"z": 0.1, "yz": 0.1}},
        NPT | {"pressure_bar": {"xy": 1}, "deform_per_ps": {"z": 0.1}},
    ],
)
def test_rates_and_pressures_of_different_directions_go_together(stage: dict[str, Any]) -> None:
    assert Stage(**stage).title.endswith("/ps, 400 steps")


def test_the_box_moves_where_the_sooner_of_both_is_due() -> None:
    stage = Stage(**NPT | {"pressure_bar": {"y": 0}, "deform_per_ps": {"x": 0.1}, "deform_every": 3})
    assert [stage.steps_to_box(k) for k in (0, 2, 3, 4, 8, 12)] == [3, 1, 1, 2, 1, 3]
    title = Stage(ensemble="nve", steps=20, deform_per_ps={"x": 0.1, "yz": -0.02}).title
    assert title == "nve, deformed by x 0.1/ps, yz -0.02/ps, 20 steps"


@pytest.mark.mpi
def test_what_is_open_or_fixed_is_not_deformed(comm: Communicator, config: Make, argon: LennardJones) -> None:
    stages = [{"ensemble": "nve", "steps": 1}, NVE | {"deform_per_ps": {"x": 0.1, "xz": 0.1}}]
    made = config(stages=stages, periodic=[True, True, False])
    with pytest.raises(InputError, match=r"(?s)would change box vector c, along which the box does not.*stage 2"):
        run_md(made, comm=comm, potential=argon)
    with pytest.raises(InputError, match=r"(?s)1 atoms are fixed, which 'deform_per_ps' would move.*stage 2"):
        run_md(config(stages=stages, fixed={"ids": [1]}, replicate=None), comm=comm, potential=argon)
    assert not Path(made["thermo"]["file"]).exists()
    plane = [NVE | {"deform_per_ps": {"x": 0.1, "y": -0.1, "xy": 0.1}}]
    result = run_md(config(stages=plane, periodic=[True, True, False]), comm=comm, potential=argon)
    assert np.ptp(result.thermo["a_A"]) > 0.0 == np.ptp(result.thermo["c_A"])


def test_h5md_takes_vectors_when_the_box_leans(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    """Also for the frames before; and a cuboid that comes later is one more set of vectors."""
    stages = [NVE | {"steps": 12, "deform_per_ps": {"xy": rate}} for rate in (0.5, -0.5)]
    files = {"trajectory": {"every": 4, "file": str(tmp_path / "t.h5md")}, "restart": {"file": str(tmp_path / "r.h5")}}
    run_md(config(stages=stages, **files), potential=argon)
    with h5py.File(tmp_path / "t.h5md") as file:
        edges = file["particles/all/box/edges"]
        tilts = 10.8 * 0.5 * 0.016 * np.array([0, 1, 2, 3, 2, 1, 0])
        np.testing.assert_allclose(edges["value"][:, 1, 0], tilts, atol=1e-13)
        assert edges["step"] == file["particles/all/position/step"]
        off = edges["value"][:] - np.diag([16.2, 10.8, 10.8])
        off[:, 1, 0] = 0.0
        np.testing.assert_allclose(off, 0.0, atol=1e-12)
