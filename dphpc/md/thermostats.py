"""Integrators of the canonical ensemble (NVT).

Each keeps account of the energy it takes from the atoms: total energy + `bath_energy` is conserved to
the order of the integrator, also while the target temperature is ramped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc.core.exact_sum import no_sum
from dphpc.core.random import Stream, generator, normals
from dphpc.core.units import BOLTZMANN_EV_PER_K
from dphpc.md.engine import Engine
from dphpc.md.integrators import Saved, VelocityVerlet

# Suzuki–Yoshida weights of fourth order (three substeps).
_W = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
YOSHIDA = (_W, 1.0 - 2.0 * _W, _W)


class NoseHoover(VelocityVerlet):
    """Nosé–Hoover chains; Martyna et al., Mol. Phys. 87, 1117 (1996), Eqs. (29)–(35).

    The chain η, η̇ (`positions` in 1, `velocities` in 1/ps) has masses Q₁ = N_f kT τ², Q_k = kT τ²
    (eV ps²) and conserves E + Σ ½ Q_k η̇_k² + N_f kT η₁ + kT Σ_{k>1} η_k.

    Parameters
    ----------
    dof
        N_f, degrees of freedom.
    temperature
        K, at the beginning.
    damping
        τ in ps.
    length
        Thermostats in the chain.
    """

    def __init__(self, dof: int, temperature: float, damping: float, length: int = 3) -> None:
        self.dof, self.damping = max(dof, 1), damping
        self.positions, self.velocities = np.zeros(length), np.zeros(length)
        self.temperature = temperature
        self.work = 0.0  # eV that changes of the target temperature put into the chain
        self.kinetic: float | None = None  # eV of the atoms at the end of the last step

    def step(self, engine: Engine, temperature: float) -> None:
        """Half a step of the chain, a step of velocity Verlet, half a step of the chain."""
        self._set_temperature(temperature)
        self._scale(engine, engine.kinetic_energy() if self.kinetic is None else self.kinetic)
        super().step(engine, temperature)
        self._scale(engine, engine.kinetic_energy())

    def bath_energy(self) -> NDArray[np.float64]:
        """The chain's energy, less the work that ramps did on it."""
        return np.array([self._chain_energy() - self.work, 0.0, 0.0])

    def save(self) -> Saved:
        """The chain."""
        scalars = np.array([self.temperature, self.work, np.nan if self.kinetic is None else self.kinetic])
        return {"positions": self.positions.copy(), "velocities": self.velocities.copy(), "scalars": scalars}

    def load(self, saved: Saved) -> None:
        """The chain."""
        self.positions, self.velocities = saved["positions"].copy(), saved["velocities"].copy()
        self.temperature, self.work, *kinetic = saved["scalars"].tolist()
        self.kinetic = kinetic[0] if kinetic and np.isfinite(kinetic[0]) else None

    def _scale(self, engine: Engine, kinetic: float) -> None:
        factor = self.half_step(kinetic, engine.timestep)
        engine.scale_velocities(factor)
        self.kinetic = kinetic * factor**2

    def half_step(self, kinetic: float, dt: float) -> float:
        """Advance the chain by dt/2 under the kinetic energy (eV); returns the factor for the velocities."""
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
            self.temperature = temperature
            self.work += self._chain_energy() - before


class Bussi(VelocityVerlet):
    """Stochastic velocity rescaling; Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101 (2007), Eq. (A7).

    Parameters
    ----------
    dof
        Degrees of freedom.
    damping
        τ in ps.
    seed
        Of the random numbers, which depend on the step too.
    """

    def __init__(self, dof: int, damping: float, seed: int) -> None:
        self.dof, self.damping, self.seed = max(dof, 1), damping, seed
        self.taken = 0.0

    def step(self, engine: Engine, temperature: float) -> None:
        """A step of velocity Verlet, then the kinetic energy takes a step of its stochastic equation."""
        super().step(engine, temperature)
        kinetic = engine.kinetic_energy()
        if kinetic > 0.0:
            target = 0.5 * self.dof * BOLTZMANN_EV_PER_K * temperature
            factor2 = self._factor(target / kinetic, engine)
            self.taken += kinetic * (1.0 - factor2)
            engine.scale_velocities(np.sqrt(factor2))

    def _factor(self, ratio: float, engine: Engine) -> float:
        """K'/K, for target/K = ratio."""
        random = generator(self.seed, Stream.BUSSI, engine.step + 1)
        first = random.standard_normal()
        # The sum of dof − 1 squared normal numbers.
        others = 2.0 * random.standard_gamma(0.5 * (self.dof - 1)) if self.dof > 1 else 0.0
        c = np.exp(-engine.timestep / self.damping)
        d = (1.0 - c) * ratio / self.dof
        return float(c + d * (first**2 + others) + 2.0 * first * np.sqrt(c * d))

    def bath_energy(self) -> NDArray[np.float64]:
        """Kinetic energy taken so far."""
        return np.array([self.taken, 0.0, 0.0])

    def save(self) -> Saved:
        """The energy taken; random numbers follow from the step."""
        return {"taken": np.array([self.taken])}

    def load(self, saved: Saved) -> None:
        """The energy taken."""
        self.taken = float(saved["taken"][0])


class Langevin:
    """Langevin dynamics by the BAOAB splitting; Leimkuhler, Matthews, Appl. Math. Res. Express 2013, 34.

    All degrees of freedom are thermal, the center of mass too.

    Parameters
    ----------
    damping
        1/γ in ps.
    seed
        Of the random forces, which depend on the step and the atom's id too.
    """

    frozen = 0
    bath_is_local = True

    def __init__(self, damping: float, seed: int) -> None:
        self.damping, self.seed = damping, seed
        self.taken = no_sum()  # eV, of this rank's atoms

    def step(self, engine: Engine, temperature: float) -> None:
        """B: v += ½Δt f/m;  A: x += ½Δt v;  O: v = c v + √((1−c²) kT/m) ξ, c = e^(−γΔt);  A;  f = f(x);  B."""
        dt = engine.timestep
        engine.kick(0.5 * dt)
        engine.drift(0.5 * dt)
        self._randomize(engine, temperature)
        engine.drift(0.5 * dt)
        engine.update_forces()
        engine.kick(0.5 * dt)

    def _randomize(self, engine: Engine, temperature: float) -> None:
        state, n = engine.state, engine.state.n_local
        before = engine.local_kinetic_energy()
        keep = np.exp(-engine.timestep / self.damping)
        with engine.timers("integrate"):
            noise = normals(self.seed, Stream.LANGEVIN, engine.step + 1, state.ids[:n])
            noise *= (np.sqrt(1.0 - keep * keep) * engine.thermal_speed(temperature))[:, None]
        engine.randomize_velocities(keep, noise)
        self.taken += before - engine.local_kinetic_energy()

    def bath_energy(self) -> NDArray[np.float64]:
        """Kinetic energy taken so far from the atoms this rank held."""
        return self.taken

    def save(self) -> Saved:
        """Nothing: the account is kept by the run, the random numbers follow from step and id."""
        return {}

    def load(self, saved: Saved) -> None:
        """Nothing."""
