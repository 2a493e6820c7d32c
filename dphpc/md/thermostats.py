"""Integrators of the canonical ensemble (NVT), and of groups of atoms that have thermostats of their own.

Each keeps account of the energy that it takes from the atoms: total energy + `bath_energy` is conserved to the order of
the integrator, also while the target temperature is ramped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dphpc.core.exact_sum import exact_sum, no_sum
from dphpc.core.random import Stream, generator
from dphpc.core.units import BOLTZMANN_EV_PER_K
from dphpc.md.engine import Engine
from dphpc.md.integrators import Saved, Thermostat, VelocityVerlet, step_with
from dphpc.ops.motion.contract import EVERYONE

# Suzuki–Yoshida weights of fourth order, for three substeps.
_W = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
YOSHIDA = (_W, 1.0 - 2.0 * _W, _W)


class NoseHoover(Thermostat):
    """Nosé–Hoover chains; Martyna et al., Mol. Phys. 87, 1117 (1996), Eqs. (29)–(35).

    The chain η, η̇ (`positions` in 1, `velocities` in 1/ps) has masses Q₁ = N_f kT τ², Q_k = kT τ²
    (eV ps²) and conserves E + Σ ½ Q_k η̇_k² + N_f kT η₁ + kT Σ_{k>1} η_k.

    Parameters
    ----------
    dof
        N_f, the number of degrees of freedom.
    temperature
        Target in K at the beginning.
    damping
        τ in ps.
    length
        Number of thermostats in the chain.
    group
        The number of the atoms' group, or `EVERYONE`.
    """

    kernel = "nose_hoover"

    def __init__(self, dof: int, temperature: float, damping: float, length: int = 3, group: int = EVERYONE) -> None:
        self.dof, self.damping, self.group = max(dof, 1), damping, group
        self._take_up(np.array([temperature, 0.0, np.nan]), np.zeros(length), np.zeros(length))

    def before(self, engine: Engine, temperature: float) -> None:
        """Half a step of the chain."""
        inputs = self._inputs(temperature, engine.timestep, 0)
        engine.rescale(self, inputs, measured=bool(np.isnan(self.kinetic)))

    def after(self, engine: Engine, temperature: float) -> None:
        """Half a step of the chain."""
        engine.rescale(self, self._inputs(temperature, engine.timestep, 1))

    def respond(self, kinetic: float, inputs: NDArray[np.float64]) -> float:
        """Advance the chain by half a step; the first half uses the kinetic energy known from the step before."""
        temperature, dt, half = inputs[:3].tolist()
        self._set_temperature(temperature)
        known = self.kinetic
        if half == 0 and not np.isnan(known):
            kinetic = known
        factor = self.half_step(kinetic, dt)
        self.scalars[2] = kinetic * factor**2
        return factor

    def bath_energy(self) -> NDArray[np.float64]:
        """The energy of the chain, less the work that temperature ramps did on it."""
        return exact_sum(np.array([self._chain_energy() - self.scalars[1]]))

    def forget(self) -> None:
        """Discard the kinetic energy, as something else has changed the velocities."""
        self._take_up(np.array([*self.scalars[:2], np.nan]), self.positions, self.velocities)

    def save(self) -> Saved:
        """The chain, its target temperature, the ramps' work and the kinetic energy."""
        return {
            "positions": self.positions.copy(),
            "velocities": self.velocities.copy(),
            "scalars": self.scalars[:3].copy(),
        }

    def load(self, saved: Saved) -> None:
        """Restore the chain."""
        scalars = np.full(3, np.nan)  # older files lack the kinetic energy
        scalars[: len(saved["scalars"])] = saved["scalars"]
        self._take_up(scalars, saved["positions"], saved["velocities"])

    @property
    def temperature(self) -> float:
        """Target temperature in K."""
        return float(self.scalars[0])

    @property
    def kinetic(self) -> float:
        """Kinetic energy of the atoms in eV at the end of the last step; NaN if it is not known."""
        return float(self.scalars[2])

    def _take_up(self, scalars: NDArray[np.float64], *chain: NDArray[np.float64]) -> None:
        # Temperature (K), the work (eV) that its changes did on the chain, kinetic energy (eV); then the chain.
        self.scalars = np.concatenate((scalars, *chain))
        self.positions, self.velocities = np.split(self.scalars[3:], 2)

    def _inputs(self, temperature: float, dt: float, half: int) -> NDArray[np.float64]:
        return np.array([temperature, dt, half, self.dof, self.damping, len(self.positions)])

    def half_step(self, kinetic: float, dt: float) -> float:
        """Advance the chain by dt/2 at a kinetic energy (eV); returns the factor for the velocities."""
        kT = BOLTZMANN_EV_PER_K * self.temperature
        q, v = self._masses(), self.velocities
        last, factor = len(v) - 1, 1.0

        def push(k: int, h: float) -> None:
            excess = 2.0 * kinetic * factor**2 - self.dof * kT if k == 0 else q[k - 1] * v[k - 1] ** 2 - kT
            drag = np.exp(-0.25 * h * v[k + 1]) if k < last else 1.0
            v[k] = (v[k] * drag + 0.5 * h * excess / q[k]) * drag

        for weight in YOSHIDA:
            h = 0.5 * dt * weight
            for k in range(last, -1, -1):
                push(k, h)
            factor *= np.exp(-h * v[0])
            self.positions += h * v
            for k in range(last + 1):
                push(k, h)
        return float(factor)

    def _masses(self) -> np.ndarray:
        q = np.full(len(self.positions), BOLTZMANN_EV_PER_K * self.temperature * self.damping**2)
        q[0] *= self.dof
        return q

    def _chain_energy(self) -> float:
        kT = BOLTZMANN_EV_PER_K * self.temperature
        potential = kT * (self.dof * self.positions[0] + self.positions[1:].sum())
        return float(0.5 * (self._masses() * self.velocities**2).sum() + potential)

    def _set_temperature(self, temperature: float) -> None:
        if temperature != self.temperature:
            before = self._chain_energy()
            self.scalars[0] = temperature
            self.scalars[1] += self._chain_energy() - before


class Bussi(Thermostat):
    """Stochastic velocity rescaling; Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101 (2007), Eq. (A7).

    Parameters
    ----------
    dof
        Number of degrees of freedom.
    damping
        τ in ps.
    seed
        Seed of the random numbers, which depend on the step and the group too.
    group
        The number of the atoms' group, or `EVERYONE`.
    """

    kernel = "bussi"

    def __init__(self, dof: int, damping: float, seed: int, group: int = EVERYONE) -> None:
        self.dof, self.damping, self.seed, self.group = max(dof, 1), damping, seed, group
        self.scalars = np.zeros(1)  # eV, taken from the atoms

    def after(self, engine: Engine, temperature: float) -> None:
        """A step of the stochastic equation of the kinetic energy."""
        engine.rescale(self, self._inputs(engine, temperature))

    def _inputs(self, engine: Engine, temperature: float) -> NDArray[np.float64]:
        """Target kinetic energy (eV), a normal random number, the sum of dof − 1 squared ones, e^(−Δt/τ), dof."""
        random = generator(self.seed, Stream.BUSSI, engine.step + 1, self.group)
        first = random.standard_normal()
        others = 2.0 * random.standard_gamma(0.5 * (self.dof - 1)) if self.dof > 1 else 0.0
        target = 0.5 * self.dof * BOLTZMANN_EV_PER_K * temperature
        return np.array([target, first, others, np.exp(-engine.timestep / self.damping), self.dof])

    def respond(self, kinetic: float, inputs: NDArray[np.float64]) -> float:
        """The factor √(K'/K) for the velocities."""
        if not kinetic > 0.0:
            return 1.0
        target, first, others, c, dof = inputs.tolist()
        d = (1.0 - c) * (target / kinetic) / dof
        factor2 = c + d * (first**2 + others) + 2.0 * first * np.sqrt(c * d)
        self.scalars[0] += kinetic * (1.0 - factor2)
        return float(np.sqrt(factor2))

    def bath_energy(self) -> NDArray[np.float64]:
        """Kinetic energy taken from the atoms so far."""
        return exact_sum(self.scalars[:1])

    def save(self) -> Saved:
        """The energy taken; random numbers follow from the step."""
        return {"taken": self.scalars.copy()}

    def load(self, saved: Saved) -> None:
        """Restore the energy taken."""
        self.scalars = saved["taken"].copy()


class Langevin(Thermostat):
    """Langevin dynamics by the BAOAB splitting; Leimkuhler, Matthews, Appl. Math. Res. Express 2013, 34.

    All degrees of freedom are thermalized, including the center of mass.

    Parameters
    ----------
    damping
        1/γ in ps.
    seed
        Seed of the random forces, which depend on the step and the atom's id too.
    group
        The number of the atoms' group, or `EVERYONE`.
    """

    frozen = 0
    bath_is_local = True
    splits_drift = True

    def __init__(self, damping: float, seed: int, group: int = EVERYONE) -> None:
        self.damping, self.seed, self.group = damping, seed, group
        self.scalars = no_sum()  # eV, taken from this rank's atoms

    def amid(self, engine: Engine, temperature: float) -> None:
        """v = c v + √((1−c²) kT/m) ξ, c = e^(−γΔt): the O of BAOAB."""
        engine.randomize_velocities(self, float(np.exp(-engine.timestep / self.damping)), temperature, self.seed)

    def bath_energy(self) -> NDArray[np.float64]:
        """Kinetic energy taken so far from atoms while this rank held them."""
        return self.scalars


class Thermostatted(VelocityVerlet):
    """Thermostats of groups that share no atom; the others move as in the microcanonical ensemble.

    None of them keeps the center of mass at rest.

    Parameters
    ----------
    targets
        Tells the target temperatures (K) of all groups after a number of steps.
    begun
        The step from which these are counted.
    """

    frozen = 0

    def __init__(self, baths: Sequence[Thermostat], targets: Callable[[int], Sequence[float]], begun: int = 0) -> None:
        self._baths, self._targets, self._begun = baths, targets, begun

    @property
    def baths(self) -> Sequence[Thermostat]:
        """The groups' thermostats."""
        return self._baths

    def step(self, engine: Engine, temperature: float) -> None:
        """See `step_with`; the groups have their own temperatures."""
        targets = self._targets(engine.step + 1 - self._begun)
        step_with(engine, list(zip(self._baths, targets, strict=True)))

    def forget(self) -> None:
        """Discard what the thermostats know of the velocities."""
        for bath in self._baths:
            bath.forget()

    def save(self) -> Saved:
        """The states of all thermostats, by the numbers of their groups."""
        return {f"{bath.group}.{name}": array for bath in self._baths for name, array in bath.save().items()}

    def load(self, saved: Saved) -> None:
        """Restore the states of all thermostats."""
        for bath in self._baths:
            own = f"{bath.group}."
            bath.load({name.removeprefix(own): array for name, array in saved.items() if name.startswith(own)})
