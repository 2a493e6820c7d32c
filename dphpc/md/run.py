"""`dphpc md`: from a run file to a finished run, on one rank or many."""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np

from dphpc.core.device import find_device
from dphpc.core.errors import RunError
from dphpc.core.files import claimed
from dphpc.core.signals import stop_signals
from dphpc.core.units import FS
from dphpc.md.config import MdConfig
from dphpc.md.deal import deal_atoms
from dphpc.md.deform import boxes_ahead
from dphpc.md.ensembles import BoxMoves, integrator_of
from dphpc.md.extent import Extent
from dphpc.md.fixed import fixed_lines
from dphpc.md.gpu_ranks import engine_for
from dphpc.md.groups import Groups, group_lines
from dphpc.md.integrators import Integrator, Saved
from dphpc.md.ledger import Ledger
from dphpc.md.memory import SNAPSHOT_BYTES, estimate, refuse_if_too_large
from dphpc.md.minimize import Fire
from dphpc.md.observables import measure
from dphpc.md.output import Output, Screen, TableFile, extents_of, writing
from dphpc.md.restart import Checkpoint, choice_of, groups_of, origin_of, write_restart
from dphpc.md.result import MDResult, columns_of
from dphpc.md.setup import (
    Start,
    header,
    load_monitor,
    load_potential,
    plan_outputs,
    read_settings,
    read_start,
    remove_stale_restarts,
    require_box_that_may_move,
)
from dphpc.md.stages import Stage
from dphpc.md.trajectory import FrameWriter, open_trajectory, write_frame
from dphpc.md.velocities import draw_velocities, stop_drift
from dphpc.ops.threads import default_threads, set_threads, threads_restored
from dphpc.parallel.balance import imbalance
from dphpc.parallel.comm import Communicator, ends_together, from_first, together, world
from dphpc.parallel.domain import Domain
from dphpc.parallel.placement import placement, ranks_on_same_cores
from dphpc.potential.contract import Potential, gpu_of


@threads_restored()
def run_md(
    config: str | Path | Mapping[str, Any],
    *,
    resume: bool = False,
    device: str | None = None,
    comm: Communicator | None = None,
    potential: Potential | None = None,
) -> MDResult:
    """Run molecular dynamics as a run file says; collective.

    A SIGINT, SIGTERM or SIGUSR1 to any rank ends the run after the present step on all ranks, with a restart file if
    the run file asks for one; the result's `stopped_by` tells the signal.

    Parameters
    ----------
    config
        A run file (YAML or JSON), or its content.
    resume
        Continue from the run's own restart file if there is one; else start from the structure.
    device
        One of `core.device.DEVICES`; replaces the run file's.
    comm
        The ranks that take part; by default all that were started together.
    potential
        Replaces the run file's `model`.

    Raises
    ------
    InputError, DataError, ModelFileError
        The run file, the structure or the model is wrong; raised before anything is written.
    RunError
        The run had to stop; the message names step, atom and last restart.
    """
    comm = comm if comm is not None else world()
    with ends_together(comm):
        settings, given = from_first(comm, lambda: read_settings(config, potential is not None, resume, device))
        run = Run(settings, comm, potential, given)
        try:
            return run.go()
        finally:
            run.screen.stop()
            run.claims.close()


class Run:
    """A run in progress: engine, position in the stages, and outputs."""

    def __init__(
        self, settings: MdConfig, comm: Communicator, potential: Potential | None, given: MdConfig | None = None
    ) -> None:
        self.given = given or settings
        self.settings, self.comm = settings, comm
        self.screen = Screen(0, 0, quiet=comm.rank != 0)
        self.claims = ExitStack()
        self.n_threads = settings.n_threads or default_threads(ranks_on_same_cores(comm))
        with together(comm):
            set_threads(self.n_threads)
            self.device = find_device(settings.device, comm.node_rank)
            self.potential = potential or load_potential(str(settings.model), settings, self.device)
            self.deviation = load_monitor(settings, self.potential, self.device)
        source, start = read_start(settings, self.potential.type_map, self.given, comm)
        self.checkpoint, self.masses = start.checkpoint, start.masses
        with together(comm):
            require_box_that_may_move(settings, start.box)
        box = start.box.replicated(settings.replicate)
        n_atoms = start.n_atoms * int(np.prod(settings.replicate))
        domain = Domain.even(box, comm.size, comm.rank)
        self._describe(start, n_atoms, domain)
        state = deal_atoms(source, settings, start, domain, self.potential.type_map, comm)
        dt = settings.timestep_fs * FS
        self.engine = engine_for(self.potential, comm, settings.gpu_aware_mpi)(
            state, domain, comm, self.potential, start.masses, dt, settings.skin_A,
            deterministic=settings.deterministic, balance=settings.balance,
        )  # fmt: skip
        assert self.engine.n_atoms == n_atoms
        self.groups = Groups.of(tuple(settings.groups), state, comm)
        with together(comm):
            self.screen.say(*fixed_lines(settings, box, n_atoms, self.engine.fixed))
            self.screen.say(*group_lines(settings, n_atoms, self.groups))
        if comm.size > 1:
            fewest, most = comm.allreduce(np.array([state.n_local, -state.n_local]), "min") * [1, -1]
            self.screen.say(f"atoms:     {fewest:,} to {most:,} a rank")
        self._plan()
        if settings.stages[self.stage].ensemble != "minimize":
            self._start_moving()

    def _describe(self, start: Start, n_atoms: int, domain: Domain) -> None:
        """Print the run's header; refuse a run that does not fit into memory."""
        s, comm, places = self.settings, self.comm, placement(self.comm, self.n_threads)
        reach, gpu, old = self.potential.cutoff + s.skin_A, gpu_of(self.potential), start.checkpoint
        more, models = SNAPSHOT_BYTES if gpu and (s.trajectory or s.deviation) else 0.0, 1
        if self.deviation:
            more, models = more + self.deviation.memory_per_atom(), models + len(self.deviation.models)
        stage, done = (old.position_in(s.stages) if old else None) or (0, 0)
        boxes = boxes_ahead(domain.box, s.stages[stage:], s.timestep_fs * FS, done)
        thinnest = max((replace(domain, box=box) for box in boxes), key=lambda domain: domain.ghost_ratio(reach))
        needed = estimate(n_atoms, thinnest, self.potential, reach, comm, more, gpu, models)
        needed = needed if thinnest.box is domain.box else replace(needed, box=thinnest.box)
        self.screen.say(*header(s, self.potential, start, domain, places, needed, self.device))
        with together(comm):
            if not s.ignore_memory_limit:
                refuse_if_too_large(needed, n_atoms)

    def _plan(self) -> None:
        """Find the stage and step to begin at, and count the steps to do."""
        s, engine, old = self.settings, self.engine, self.checkpoint
        self.stage, self.stage_step, self.flow = 0, 0, (0, 0.0)
        self.ledger = Ledger.empty(len(self.groups.names))
        self.saved: Saved = {}
        self.at_rest = False  # whether velocities are a minimizer's, not physical
        self.drifts = False  # whether the last stage, Langevin's, moved the center of mass
        self.converged: bool | None = None
        if old is not None:
            step0, time0, dt = old.clock
            engine.step = old.step
            engine.first_restart = f"{s.structure} (step {old.step})"
            same = dt == engine.timestep
            engine.clock = (step0, time0) if same else (old.step, time0 + (old.step - step0) * dt)
            where = old.position_in(s.stages) if groups_of(s.groups) == old.groups else None
            if where is not None:
                (self.stage, self.stage_step), self.saved = where, old.integrator
                self.flow = old.flow_with(engine.timestep)
            self.ledger = old.ledger(s.groups, goes_on=where is not None)
            plan = f"going on in stage {self.stage + 1} after {self.stage_step} of its steps" if where else "new stages"
            self.screen.say(f"restart:   at step {engine.step}, {engine.time:.6g} ps; {plan}")
            self.at_rest, self.drifts = old.minimizes, where is None and old.drifts
            if s.velocities is not None and not self.at_rest and s.stages[self.stage].ensemble != "minimize":
                self.screen.say("velocities: from the restart file; the run file's 'velocities' is not used")
        self.begun = engine.time
        n_steps = sum(stage.steps for stage in s.stages[self.stage :]) - self.stage_step
        self.screen = Screen(engine.n_atoms, n_steps, self.screen.quiet, any(stage.box_moves for stage in s.stages))

    def _start_moving(self) -> None:
        """Draw velocities, or set them to zero, before dynamics that continue neither a restart nor other dynamics."""
        drawn = self.settings.velocities
        if drawn is not None and (self.at_rest or self.checkpoint is None):
            self.screen.say(*[f"velocities: drawn at {drawn.temperature_K:g} K, as 'velocities' says"] * self.at_rest)
            draw_velocities(self.engine, drawn.temperature_K, drawn.seed)
        elif self.at_rest:
            self.screen.say("velocities: all atoms start at rest (none in the run file, and minimized before)")
            self.engine.host.scale_velocities(0.0)

    def _open_outputs(self) -> None:
        s = self.settings
        self.thermo_file: TableFile | None = None
        self.trajectory: FrameWriter | None = None
        self.rows = array("d")  # thermo's values, on rank 0; compact, as there may be millions of rows
        kept, lines = from_first(self.comm, lambda: plan_outputs(s, self.checkpoint))
        self.kept, species = kept, self.potential.type_map
        self.screen.say(*lines)
        with together(self.comm):
            if self.comm.rank == 0:
                self.claims.enter_context(claimed(path for path, kind in s.outputs.items() if kind != "h5md"))
            if s.trajectory:
                at = kept.get(s.trajectory.file)
                self.trajectory = open_trajectory(s.trajectory, species, self.masses, at, self.comm, s.type_map)
            if self.comm.rank == 0:
                if s.thermo.file:
                    self.thermo_file = TableFile(s.thermo.file, self.groups.header, kept.get(s.thermo.file))
                if self.deviation:
                    self.deviation.open(species, self.masses, kept)
                with writing(s.restart.file if s.restart else "", self.engine):
                    remove_stale_restarts(s)

    def go(self) -> MDResult:
        """Do all remaining steps."""
        engine, s = self.engine, self.settings
        engine.update_forces()
        self._open_outputs()  # only now: if the evaluation fails, the files of an earlier run are untouched
        integrator = self._integrator(s.stages[self.stage])
        if self.saved:
            integrator.load(self.saved)
            self.saved = {}
        self.screen.start()
        for phase in engine.timers.seconds:
            engine.timers.seconds[phase] = 0.0
        engine.rebuilds, engine.in_flight = 0, np.zeros(2)
        started = time.perf_counter()
        with stop_signals(self._ask):
            with engine.deferred.finished(self.comm):
                self._write(integrator, first=True)
                if not self._must_end():
                    integrator = self._steps(integrator)
                # The end is written even if no interval asks for it.  A run that continues from this restart cuts it
                # off again (`kept`).  Until that is written, a run from the previous restart comes to this point again.
                kept = self._extents() if s.restart else {}
                self._write(integrator, last=True)
                if s.restart:
                    self._write_restart(integrator, kept)
            return self._finish(time.perf_counter() - started)

    def _steps(self, integrator: Integrator) -> Integrator:
        """Do the stages to their end, or until all ranks stop; returns the last integrator."""
        s, engine, stages = self.settings, self.engine, self.settings.stages
        while True:
            stage = stages[self.stage]
            box = BoxMoves(stage, engine.timestep, self.settings.seed, self.flow)
            self.screen.say(f"stage {self.stage + 1} of {len(stages)}: {stage.title}")
            while self._steps_left(integrator):
                left = stage.steps - self.stage_step, stage.steps_to_box(self.stage_step)
                n = engine.steps_ahead(min(*left, s.steps_to_output(engine.step)) if integrator.dynamic else 1)
                done, flips = self.stage_step, engine.flips
                engine.advance(integrator, [stage.temperature(k) for k in range(done + 1, done + n + 1)])
                self.stage_step += n
                self.ledger.bath += box.after(self.stage_step, engine, integrator)
                if engine.flips > flips:
                    self.screen.say(f"the box leant too much: flipped back at step {engine.step}")
                self.screen.tick(n)
                self._write(integrator)
                if self._must_end():
                    return integrator
            if isinstance(integrator, Fire):
                self.converged = integrator.converged
                self.screen.leave_out(stage.steps - self.stage_step)
                self.screen.say(integrator.outcome(engine))
            if self.stage + 1 == len(stages):
                return integrator
            if isinstance(integrator, Fire):
                self._write(integrator, last=True)  # the minimum
            self.ledger = self.ledger.closed(engine, integrator.baths)
            self.stage, self.stage_step, self.flow = self.stage + 1, 0, (0, 0.0)
            self.at_rest, self.drifts = not integrator.dynamic, not integrator.frozen
            if self.at_rest and stages[self.stage].ensemble != "minimize":
                engine.to_host()
                self._start_moving()
                engine.moves.put_velocities(engine.state.velocities[: engine.state.n_local])
            integrator = self._integrator(stages[self.stage])

    def _steps_left(self, integrator: Integrator) -> int:
        """Steps left in the stage; a converged minimization has none."""
        done = isinstance(integrator, Fire) and integrator.converged
        return 0 if done else self.settings.stages[self.stage].steps - self.stage_step

    def _must_end(self) -> bool:
        return bool(self.engine.stop) or (self.deviation is not None and self.deviation.exceeded is not None)

    def _is_over(self, integrator: Integrator) -> bool:
        last = self.stage + 1 == len(self.settings.stages)
        return self._must_end() or (last and not self._steps_left(integrator))

    def _ask(self, number: int) -> None:
        self.engine.asked_to_stop = number

    def _integrator(self, stage: Stage) -> Integrator:
        engine, begun = self.engine, self.engine.step - self.stage_step
        integrator = integrator_of(stage, engine.n_atoms, engine.fixed, self.settings.seed, self.groups, begun)
        if isinstance(integrator, Fire) and not self.saved:
            integrator.begin(engine)
        elif self.drifts and integrator.frozen:  # the drift is none of its degrees of freedom
            self.ledger.bath += stop_drift(engine)
        return integrator

    def _write(self, integrator: Integrator, first: bool = False, last: bool = False) -> None:
        """Write the outputs that are due at this step; `first` is the state before the first step.

        With `last`, at the end, those of thermo and trajectory that are not due are written instead.
        """
        s, engine = self.settings, self.engine
        intervals = s.intervals
        now = {what for what, every in intervals.items() if engine.step % every == 0}
        if last:
            now = {"thermo", "trajectory"} & intervals.keys() - now
        if first:
            now.discard("restart")
        if not now:
            return
        thermo = measure(engine, integrator, self.ledger.bath)
        known = self.kept if first else {}  # continued files hold the first state already
        if "deviation" in now and self.deviation and self.deviation.settings.file not in known:
            engine.to_host(lists=True)
            self.deviation.write(engine, thermo.potential_eV)
        with engine.timers("output"):
            if "thermo" in now:
                more = self.groups.values(engine, integrator, self.ledger)
                if self.comm.rank == 0:
                    self.rows.extend((*astuple(thermo), *more))
                self.screen.row(thermo, integrator.force if isinstance(integrator, Fire) else None)
                with together(self.comm):
                    if self.thermo_file and s.thermo.file and s.thermo.file not in known:
                        with writing(s.thermo.file, engine):
                            self.thermo_file.write(thermo.csv(*more))
            if "trajectory" in now and s.trajectory and s.trajectory.file not in known:
                write_frame(self.trajectory, engine, s.trajectory, thermo.potential_eV)
            if "restart" in now and not self._is_over(integrator):  # the end writes its own
                self._try_restart(integrator)

    def _try_restart(self, integrator: Integrator) -> None:
        """Write a restart file during the run; a failure, such as a full disk, does not end hours of a run."""
        try:
            self._write_restart(integrator)
        except RunError as error:
            last = self.engine.last_restart
            if last is None:  # it failed from the start: the run file asks for what cannot be written
                raise
            self.screen.say(f"warning:   {error.what}; the run goes on, the last good restart is {last}")

    def _extents(self) -> dict[str, Extent]:
        """How far all outputs are written, on rank 0; collective."""
        self.engine.deferred.finish()
        outputs: dict[str, Output | None] = {**self.deviation.outputs()} if self.deviation else {}
        outputs |= {self.settings.thermo.file or "": self.thermo_file}
        outputs |= {self.settings.trajectory.file: self.trajectory} if self.settings.trajectory else {}
        return extents_of(outputs, self.engine)

    def _write_restart(self, integrator: Integrator, kept: dict[str, Extent] | None = None) -> None:
        """Write a restart file; `kept` is how far a continued run keeps the outputs, if less than all is kept."""
        s, engine = self.settings, self.engine
        assert s.restart is not None
        engine.to_host()
        ends, place = self._extents(), (self.stage, self.stage_step)
        stages = [stage.model_dump() for stage in s.stages]
        clock = (*engine.clock, engine.timestep)
        checkpoint = Checkpoint(
            engine.step, clock, stages, *place, files=kept or ends, integrator=integrator.save(), ends=ends,
            fixed=choice_of(s.fixed), groups=groups_of(s.groups), origin=origin_of(self.given), flow=self.flow,
            **self.ledger.saved(engine, integrator.baths),
        )  # fmt: skip
        write_restart(s.restart.file, engine, checkpoint, self.potential.type_map, self.masses)

    def _finish(self, seconds: float) -> MDResult:
        s, engine = self.settings, self.engine
        files = {"thermo": s.thermo.file or ""}
        files["trajectory"] = s.trajectory.file if s.trajectory else ""
        files["restart"] = s.restart.file if s.restart and engine.last_restart else ""
        if s.deviation:
            files |= dict(zip(("deviation", "candidates"), s.deviation.files, strict=False))
        done = self.screen.done
        above = self.deviation.exceeded if self.deviation else None
        flown, waited = self.comm.allreduce(engine.in_flight)
        columns = columns_of(self.comm.bcast(self.rows), self.groups.columns)
        result = MDResult(
            engine.n_atoms, self.comm.size, done, engine.time, engine.time - self.begun, seconds,
            dict(engine.timers.seconds), engine.rebuilds, {k: v for k, v in files.items() if v}, columns,
            stopped_by=engine.stop if done < self.screen.n_steps else 0,
            stopped_above=above if done < self.screen.n_steps else None,
            converged=self.converged,
            imbalance=imbalance(engine.total_work, self.comm),
            hidden=1.0 - waited / flown if self.comm.size > 1 and flown else None,
        )  # fmt: skip
        self.screen.stop()
        self.screen.say("", *result.summary(), *result.stop(self.screen.n_steps, engine.step))
        return result
