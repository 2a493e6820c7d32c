"""Each thermostat samples the canonical ensemble: judged by `physical_validation`."""

from collections.abc import Callable

import numpy as np
import physical_validation as pv
import pytest

from dphpc.md.engine import Engine
from dphpc.md.observables import degrees_of_freedom, measure
from tests.md.test_integrators import thermostat

UNITS = pv.data.UnitData(
    kb=8.617333262e-5, energy_str="eV", energy_conversion=96.48533, length_str="A", length_conversion=0.1,
    volume_str="A^3", volume_conversion=1e-3, temperature_str="K", temperature_conversion=1.0, pressure_str="bar",
    pressure_conversion=1.0, time_str="ps", time_conversion=1.0,
)  # fmt: skip
T_LOW, T_HIGH = 60.0, 68.0
EVERY = 10


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
    dof = degrees_of_freedom(engine.n_atoms, integrator.frozen)
    n = engine.n_atoms
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
@pytest.mark.parametrize("name", ["nose-hoover", "langevin", "bussi"])
def test_thermostats_sample_the_canonical_ensemble(engine_of: Callable[..., Engine], name: str) -> None:
    low, high = (sample(engine_of(n=2, temperature=t), name, t, 15_000) for t in (T_LOW, T_HIGH))
    for data in (low, high):
        mean, width = pv.kinetic_energy.distribution(data, strict=False, verbosity=0, bootstrap_seed=1)
        # In standard errors; both are normal numbers if the distribution of kinetic energies is right.
        assert abs(mean) < 4
        assert abs(width) < 4
    # The ratio of two canonical distributions gives the temperature difference back.
    (deviation,) = pv.ensemble.check(low, high, total_energy=False, verbosity=0, bootstrap_seed=1)
    assert abs(deviation) < 4
