"""Thermostats sample the canonical, barostats the isothermal-isobaric ensemble: judged by `physical_validation`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import physical_validation as pv
import pytest

from dphpc.core.exact_sum import no_sum
from dphpc.core.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR
from dphpc.md.barostats import CellRescaling
from dphpc.md.engine import Engine
from dphpc.md.observables import degrees_of_freedom, measure, pressure_volume
from dphpc.md.strain import Freedom
from dphpc.md.velocities import draw_velocities
from tests.lennard_jones import LennardJones
from tests.md.test_barostats import LENGTHS, STIFF, EngineOf, constant_pressure, shape_force, skewed, steps_at_pressure
from tests.md.test_integrators import thermostat
from tests.md.test_strain import KINDS

UNITS = pv.data.UnitData(
    kb=8.617333262e-5, energy_str="eV", energy_conversion=96.48533, length_str="A", length_conversion=0.1,
    volume_str="A^3", volume_conversion=1e-3, temperature_str="K", temperature_conversion=1.0, pressure_str="bar",
    pressure_conversion=1.0, time_str="ps", time_conversion=1.0,
)  # fmt: skip
T_LOW, T_HIGH = 60.0, 68.0
EVERY = 10
TAU = 60
"""Steps in which the volume of a gas forgets what it was."""


def sample(engine: Engine, name: str, temperature: float, n_steps: int) -> pv.data.SimulationData:
    integrator = thermostat(name, engine, 0.05, temperature)
    kinetic, potential = [], []
    for k in range(n_steps):
        integrator.step(engine, temperature)
        engine.step += 1
        if k >= n_steps // 10 and k % EVERY == 0:
            row = measure(engine, integrator, np.zeros(3))
            kinetic.append(row.kinetic_eV)
            potential.append(row.potential_eV)
    dof = degrees_of_freedom(engine.n_atoms, integrator.frozen, engine.fixed)
    n = engine.n_atoms - engine.fixed.n_wholly
    system = pv.data.SystemData(
        natoms=n, nconstraints=0, ndof_reduction_tra=3 * n - dof, ndof_reduction_rot=0, mass=np.full(n, 39.95)
    )
    ensemble = pv.data.EnsembleData("NVT", natoms=n, volume=engine.state.box.volume, temperature=temperature)
    observables = pv.data.ObservableData(
        kinetic_energy=np.array(kinetic),
        potential_energy=np.array(potential),
        total_energy=np.array(kinetic) + np.array(potential),
    )
    return pv.data.SimulationData(
        units=UNITS, ensemble=ensemble, system=system, observables=observables, dt=engine.timestep
    )


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [{}, {"n_fixed": 8}, {"n_fixed": 16, "held": "z"}], ids=["none", "some", "along z"])
@pytest.mark.parametrize("name", ["nose-hoover", "langevin", "bussi"])
def test_thermostats_sample_the_canonical_ensemble(
    engine_of: Callable[..., Engine], name: str, fixed: dict[str, Any]
) -> None:
    low, high = (sample(engine_of(n=2, temperature=t, **fixed), name, t, 15_000) for t in (T_LOW, T_HIGH))
    for data in (low, high):
        mean, width = pv.kinetic_energy.distribution(data, strict=False, verbosity=0, bootstrap_seed=1)
        # In standard errors; both are normal numbers if the distribution of kinetic energies is right.
        assert abs(mean) < 4
        assert abs(width) < 4
    # The ratio of two canonical distributions gives the temperature difference back.
    (deviation,) = pv.ensemble.check(low, high, total_energy=False, verbosity=0, bootstrap_seed=1)
    assert abs(deviation) < 4


def volumes_of_a_gas(
    engine_of: EngineOf, n_steps: int, freedom: Freedom, **fixed: Any
) -> tuple[np.ndarray, float, float]:
    """Volumes of 32 atoms without forces at constant pressure, and their mean and variance by theory."""
    kelvin, dt = 300.0, 0.02
    gas = LennardJones(["Ar"], epsilon=1e-12, sigma=1e-3, cutoff=2.0, cutoff_smooth=1.0)
    engine = engine_of(n=2, temperature=kelvin, timestep=dt, potential=gas, **fixed)
    # Each coordinate that is free along a direction that moves has a factor, a third of V or the length.
    free = engine.n_atoms - np.array(engine.fixed.along)[freedom.moving]
    kT, n = BOLTZMANN_EV_PER_K * kelvin, free.mean()
    pressure = n * kT / engine.state.box.volume
    barostat = CellRescaling(TAU * dt, 1.0 / pressure, dt, 6, freedom)
    integrator = thermostat("langevin", engine, damping=2 * dt)
    rows = constant_pressure(engine, integrator, barostat, 1, n_steps, kelvin, pressure * EV_PER_A3_IN_BAR)
    # V^N e^(−PV/kT): a gamma distribution.
    return np.array([row.volume_A3 for row in rows[100:]]), (n + 1) * kT / pressure, (n + 1) * (kT / pressure) ** 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("isotropic", {}), ("z", {}), ("isotropic", {"n_fixed": 8}), ("isotropic", {"n_fixed": 16, "held": "xy"}),
        ("z", {"n_fixed": 8, "held": "z"}), ("z", {"n_fixed": 16, "held": "xy"}),
    ],
)  # fmt: skip
def test_volumes_of_a_gas_are_distributed_as_theory_says(engine_of: EngineOf, name: str, fixed: dict[str, Any]) -> None:
    volumes, mean, variance = volumes_of_a_gas(engine_of, 20_000, KINDS[name], **fixed)
    independent = len(volumes) / (2 * TAU)
    assert abs(volumes.mean() - mean) < 4.0 * np.sqrt(variance / independent)
    assert abs(volumes.var() / variance - 1.0) < 4.0 * np.sqrt(2.0 / independent)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuboid", "skewed", "fixed", "fixed along z"])
def test_volume_and_shape_have_their_share_of_kT(engine_of: EngineOf, argon: LennardJones, kind: str) -> None:
    """⟨(q − ⟨q⟩)·f⟩ = −kT for each of the box's three degrees of freedom, of which two are the shape's."""
    fixed = {"n_fixed": 8, "held": "z" if kind.endswith("z") else "xyz"} if kind.startswith("fixed") else {}
    engine, every, bar = skewed(argon, 3) if kind == "skewed" else engine_of(n=2, **fixed), 2, 500.0
    draw_velocities(engine, 60.0, seed=1)
    barostat = CellRescaling(0.2, STIFF, 2 * every * engine.timestep, seed=5, freedom=LENGTHS)
    integrator, kT = thermostat("bussi", engine, 0.1), BOLTZMANN_EV_PER_K * 60.0
    roots, forces, logs, stresses = [], [], [], []
    for k, _ in steps_at_pressure(engine, integrator, barostat, every, 22_000, 60.0, bar):
        if k >= 2000 and k % 4 == 1:
            row, lengths = measure(engine, integrator, no_sum()), np.linalg.norm(engine.state.box.matrix, axis=1)
            root, excess = np.sqrt(row.volume_A3), (row.pressure_bar - bar) / EV_PER_A3_IN_BAR
            roots.append(root)
            forces.append(2.0 * root * excess + kT / root)
            logs.append(np.log(lengths) - np.log(lengths).mean())
            stresses.append(shape_force(engine, LENGTHS).diagonal())
    for coordinate, force, n in ((roots, forces, 1), (logs, stresses, 2)):
        q, f = (np.array(values).reshape(len(values), -1) for values in (coordinate, force))
        shares = -((q - q.mean(axis=0)) * f).sum(axis=1) / (n * kT)
        blocks = shares.reshape(20, -1).mean(axis=1)
        error = blocks.std() / np.sqrt(20)
        print(f"share {blocks.mean():.3f} ± {error:.3f}")
        assert abs(blocks.mean() - 1.0) < 4.0 * error
        assert error < 0.2, "enough of them to tell"


def block_error(values: np.ndarray, n: int = 20) -> np.ndarray:
    """Standard error of the mean over rows, from n blocks."""
    blocks = values[: len(values) // n * n].reshape(n, -1, *values.shape[1:]).mean(axis=1)
    return np.asarray(blocks.std(axis=0) / np.sqrt(n))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lengths", "xy and z", "z", "angles"])
def test_each_direction_has_its_pressure(engine_of: EngineOf, name: str) -> None:
    """As the mean of the pressure tensor's diagonal, or of those elements that change together; no shear remains."""
    engine, freedom, every = engine_of(n=2), KINDS[name], 2
    apart = 100.0 if freedom.tilts else 600.0  # of more shear the crystal yields
    bar = [700.0, 700.0 if name == "xy and z" else 700.0 - apart, 700.0 + apart]
    barostat = CellRescaling(0.05, STIFF, (1 + freedom.has_shapes) * every * engine.timestep, 5, freedom)
    rows = constant_pressure(engine, thermostat("bussi", engine, 0.1), barostat, every, 15_000, 60.0, bar)[1000::2]
    diagonal = np.array([[row.pxx_bar, row.pyy_bar, row.pzz_bar] for row in rows])
    for group in map(list, freedom.groups):
        found = diagonal[:, group].mean(axis=1)
        error = block_error(found)
        print(f"{group} {found.mean():.0f} ± {error:.0f} bar")
        assert abs(found.mean() - bar[group[0]]) < 4.0 * error
        assert error < 60.0, "enough of them to tell"
    still = [axis for axis in range(3) if axis not in freedom.moving]
    assert np.array_equal(engine.state.box.matrix[still], 10.8 * np.eye(3)[still])
    if freedom.tilts:
        shear = np.array([[row.pxy_bar, row.pxz_bar, row.pyz_bar] for row in rows])
        assert (np.abs(shear.mean(axis=0)) < 4.0 * block_error(shear)).all()


@pytest.mark.slow
def test_lengths_and_angles_have_their_share_of_kT(engine_of: EngineOf) -> None:
    """⟨q X ln ρ⟩ = −⟨X q⟩ = −1 for each of the box's six degrees of freedom.

    The derivatives X are those by F in h → h F, lower triangular, with the density ρ in their invariant measure.  That
    of all orientations alike is h₁₁²/h₃₃² times it, to be added to e^(−(E + PV)/kT) V.
    """
    engine, every, bar, kT = engine_of(n=2), 2, 500.0, BOLTZMANN_EV_PER_K * 60.0
    barostat = CellRescaling(0.2, STIFF, 2 * every * engine.timestep, 5, KINDS["angles"])
    integrator, measure_of = thermostat("bussi", engine, 0.1), np.diag([2.0, 0.0, -2.0])
    coordinates, slopes = [], []
    for k, _ in steps_at_pressure(engine, integrator, barostat, every, 22_000, 60.0, bar):
        if k >= 2000 and k % 4 == 1:
            h, volume = engine.state.box.matrix, engine.state.box.volume
            work = (pressure_volume(engine) - np.eye(3) * volume * bar / EV_PER_A3_IN_BAR) / kT
            tilts = h[1, 0] / h[1, 1], h[2, 0] / h[2, 2], h[2, 1] / h[2, 2]
            coordinates.append([*np.log(h.diagonal()), *tilts])
            slopes.append((work + np.eye(3) + measure_of)[[0, 1, 2, 1, 2, 2], [0, 1, 2, 0, 0, 1]])
    q, slope = np.array(coordinates), np.array(slopes)
    shares = -(q - q.mean(axis=0)) * slope
    for found in (shares[:, :3].mean(axis=1), shares[:, 3:].mean(axis=1)):
        error = block_error(found)
        print(f"share {found.mean():.3f} ± {error:.3f}")
        assert abs(found.mean() - 1.0) < 4.0 * error
        assert error < 0.2, "enough of them to tell"


@pytest.mark.slow
def test_it_samples_constant_pressure(engine_of: EngineOf) -> None:
    """The ratio of two distributions of energy and volume gives the differences of temperature and pressure back."""
    samples, every = [], 5
    for kelvin, bar in ((60.0, 500.0), (64.0, 700.0)):
        engine = engine_of(n=2, temperature=kelvin)
        barostat = CellRescaling(0.3, STIFF, every * engine.timestep, seed=5)
        integrator = thermostat("bussi", engine, 0.1, kelvin)
        rows = constant_pressure(engine, integrator, barostat, every, 30_000, kelvin, bar)
        rows = rows[3000::20]
        assert np.mean([r.pressure_bar for r in rows]) == pytest.approx(bar, abs=60.0)
        n = engine.n_atoms
        potential, kinetic = (np.array([getattr(r, key) for r in rows]) for key in ("potential_eV", "kinetic_eV"))
        system = pv.data.SystemData(
            natoms=n, nconstraints=0, ndof_reduction_tra=3, ndof_reduction_rot=0, mass=np.full(n, 39.95)
        )
        samples.append(
            pv.data.SimulationData(
                units=UNITS, system=system, dt=engine.timestep,
                ensemble=pv.data.EnsembleData("NPT", natoms=n, pressure=bar, temperature=kelvin),
                observables=pv.data.ObservableData(
                    kinetic_energy=kinetic, potential_energy=potential, total_energy=kinetic + potential,
                    volume=np.array([r.volume_A3 for r in rows]),
                ),
            )
        )  # fmt: skip
    deviations = pv.ensemble.check(*samples, total_energy=False, verbosity=0, bootstrap_seed=1)
    assert np.abs(deviations).max() < 4  # standard errors
