"""The integrator of a stage of a run, and what moves its box."""

from __future__ import annotations

from dphpc.core.arrays import Doubles
from dphpc.core.exact_sum import no_sum
from dphpc.core.fixing import FixedAtoms
from dphpc.core.units import EV_PER_A3_IN_BAR, FS
from dphpc.md.barostats import CellRescaling
from dphpc.md.deform import Deformation
from dphpc.md.engine import Engine
from dphpc.md.groups import Groups
from dphpc.md.integrators import Integrator, Thermostat, VelocityVerlet
from dphpc.md.minimize import Fire
from dphpc.md.observables import degrees_of_freedom
from dphpc.md.relax import BoxDescent
from dphpc.md.stages import BathKeys, Stage
from dphpc.md.thermostats import Bussi, Langevin, NoseHoover, Thermostatted
from dphpc.ops.motion.contract import EVERYONE


def integrator_of(stage: Stage, n_atoms: int, fixed: FixedAtoms, seed: int, groups: Groups, begun: int) -> Integrator:
    """The integrator of a stage that began at step `begun`, for `n_atoms` atoms, some of them `fixed`."""
    if stage.ensemble == "minimize":
        free = stage.freedom
        box = BoxDescent(free, stage.pressure(0), stage.stress_tolerance_bar) if free else None
        return Fire(stage.force_tolerance_eV_A, stage.max_move_A, box)
    if stage.ensemble == "nve":
        return VelocityVerlet()
    if stage.groups is None:
        return thermostat_of(stage, degrees_of_freedom(n_atoms, VelocityVerlet.frozen, fixed), seed)
    numbers = ((groups.number(name), bath) for name, bath in stage.groups.items())
    baths = [thermostat_of(bath, groups.dof[k - 1], seed, k) for k, bath in numbers]
    return Thermostatted(baths, stage.group_temperatures, begun)


def thermostat_of(keys: BathKeys, dof: int, seed: int, group: int = EVERYONE) -> Thermostat:
    """The thermostat of a group, or of all atoms, with so many degrees of freedom."""
    damping = keys.damping_fs * FS
    match keys.thermostat:
        case "nose-hoover":
            return NoseHoover(dof, keys.temperatures[0], damping, keys.chain_length, group)
        case "bussi":
            return Bussi(dof, damping, seed, group)
    return Langevin(damping, seed, group)


def barostat_of(stage: Stage, timestep: float, seed: int) -> CellRescaling | None:
    """The barostat of a stage, with the run's timestep in ps; None if the box is constant."""
    freedom = stage.freedom
    if stage.ensemble != "npt" or freedom is None:
        return None
    interval = stage.barostat_every * timestep * (1 + freedom.has_shapes)  # of each of the two kinds of moves
    compressibility, damping = stage.compressibility_per_bar * EV_PER_A3_IN_BAR, stage.pressure_damping_fs * FS
    return CellRescaling(damping, compressibility, interval, seed, freedom)


class BoxMoves:
    """The moves of the box between a stage's steps, by a deformation and by a barostat.

    Parameters
    ----------
    timestep
        The run's, in ps.
    flow
        See `restart.Checkpoint`.
    """

    def __init__(self, stage: Stage, timestep: float, seed: int, flow: tuple[int, float] = (0, 0.0)) -> None:
        self.stage, self.barostat, self.deformation = stage, barostat_of(stage, timestep, seed), None
        if stage.rates:
            self.deformation = Deformation(stage.rates, stage.deform_every * timestep, flow)

    def after(self, step: int, engine: Engine, integrator: Integrator) -> Doubles:
        """Do the moves that are due after `step` steps of the stage; collective.

        Returns
        -------
        (3,) eV taken from the atoms, in the parts of `core.exact_sum`.
        """
        stage, taken = self.stage, no_sum()
        if self.deformation and step % stage.deform_every == 0:
            integrator.forget()
            taken += self.deformation.move(engine, step // stage.deform_every)
        if self.barostat and step % stage.barostat_every == 0:
            integrator.forget()
            taken += self.barostat.move(engine, stage.temperature(step), stage.pressure(step))
        return taken
