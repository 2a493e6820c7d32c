"""Observables of a run: energies, temperature, pressure, box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.exact_sum import PARTS, no_sum, total
from dphpc.core.fixing import NONE_FIXED, FixedAtoms
from dphpc.core.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR, U_PER_A3_IN_G_PER_CM3
from dphpc.md.engine import Engine
from dphpc.md.integrators import Integrator, Thermostat


@dataclass(frozen=True)
class Thermo:
    """One line of thermo output; the fields are the columns of the CSV file, in order.

    The pressure is (Σ m v⊗v + virial)/V; it is NaN if no direction of the box is periodic.
    """

    step: int
    time_ps: float
    temperature_K: float
    potential_eV: float
    kinetic_eV: float
    total_eV: float
    conserved_eV: float
    pressure_bar: float
    pxx_bar: float
    pyy_bar: float
    pzz_bar: float
    pxy_bar: float
    pxz_bar: float
    pyz_bar: float
    volume_A3: float
    density_g_cm3: float
    a_A: float
    b_A: float
    c_A: float
    alpha_deg: float
    beta_deg: float
    gamma_deg: float

    def csv(self, *more: float) -> str:
        """The values, and those of further columns, as a line of CSV, with enough digits to read back every bit."""
        return ",".join(map(repr, (*astuple(self), *more))) + "\n"


COLUMNS = tuple(Thermo.__dataclass_fields__)


def degrees_of_freedom(n_atoms: int, frozen: int, fixed: FixedAtoms = NONE_FIXED) -> int:
    """Those of atoms in the directions in which they are not fixed, less those of a center of mass at rest.

    If it is `frozen`, not 0, the center of mass is at rest in the directions in which no atom is fixed.  In the others
    fixed atoms exert forces on those that move, and momentum is not conserved.  A single atom keeps its three.
    """
    at_rest = fixed.along.count(0) if frozen and n_atoms > 1 else 0
    return 3 * n_atoms - sum(fixed.along) - at_rest


def temperature(kinetic: float, dof: int) -> float:
    """Temperature in K from a kinetic energy in eV; 0 without degrees of freedom."""
    return 2.0 * kinetic / (BOLTZMANN_EV_PER_K * dof) if dof else 0.0


def bath_energy(engine: Engine, baths: Sequence[Thermostat]) -> NDArray[np.float64]:
    """(3,) eV that thermostats took on all ranks, in the parts of `core.exact_sum`; collective."""
    taken = no_sum()
    for bath in baths:
        own = bath.bath_energy()
        taken += engine.comm.allreduce(own) if bath.bath_is_local else own
    return taken


def mechanics(engine: Engine) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Potential energy in eV, and Σ m v ⊗ v and the virial, (3, 3) eV each, of all atoms; collective."""
    out = engine.outputs
    parts = (
        out.energy_parts[:, None],
        out.virial_parts.reshape(PARTS, 9),
        engine.moves.kinetic_tensor().reshape(PARTS, 9),
    )
    sums = total(engine.comm.allreduce(np.concatenate(parts, axis=1)))
    return float(sums[0]), sums[10:].reshape(3, 3), sums[1:10].reshape(3, 3)


def pressure_volume(engine: Engine) -> NDArray[np.float64]:
    """(3, 3) eV: PV = Σ m v ⊗ v + virial of all atoms; collective."""
    _, kinetic, virial = mechanics(engine)
    return kinetic + virial


def virial(engine: Engine) -> NDArray[np.float64]:
    """(3, 3) eV: the virial of all atoms; collective."""
    return total(engine.comm.allreduce(engine.outputs.virial_parts.reshape(PARTS, 9))).reshape(3, 3)


def measure(engine: Engine, integrator: Integrator, bath_before: NDArray[np.float64]) -> Thermo:
    """Measure the present state; collective.

    Parameters
    ----------
    bath_before
        (3,) eV that thermostats of earlier stages, and barostats, took; it keeps the conserved energy continuous.
    """
    potential, kinetic_tensor, virial = mechanics(engine)
    if not integrator.dynamic:
        kinetic_tensor = np.zeros((3, 3))
    kinetic = 0.5 * float(np.trace(kinetic_tensor))
    box = engine.state.box
    pressure = (kinetic_tensor + virial) / box.volume * EV_PER_A3_IN_BAR
    pressure = 0.5 * (pressure + pressure.T)
    if not any(box.periodic):
        pressure[...] = np.nan
    p, (a, b, c) = pressure.tolist(), np.linalg.norm(box.matrix, axis=1).tolist()
    alpha, beta, gamma = box.angles.tolist()
    return Thermo(
        step=engine.step,
        time_ps=engine.time,
        temperature_K=temperature(kinetic, degrees_of_freedom(engine.n_atoms, integrator.frozen, engine.fixed)),
        potential_eV=potential,
        kinetic_eV=kinetic,
        total_eV=potential + kinetic,
        conserved_eV=potential + kinetic + float(total(bath_before + bath_energy(engine, integrator.baths))),
        pressure_bar=(p[0][0] + p[1][1] + p[2][2]) / 3.0,
        pxx_bar=p[0][0], pyy_bar=p[1][1], pzz_bar=p[2][2],
        pxy_bar=p[0][1], pxz_bar=p[0][2], pyz_bar=p[1][2],
        volume_A3=box.volume,
        density_g_cm3=engine.mass / box.volume * U_PER_A3_IN_G_PER_CM3,
        a_A=a, b_A=b, c_A=c,
        alpha_deg=alpha, beta_deg=beta, gamma_deg=gamma,
    )  # fmt: skip
