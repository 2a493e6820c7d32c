"""The training loop: batches, loss, optimizer, learning curve, checkpoints, signals."""

from __future__ import annotations

import logging
import math
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dphpc.core.device import Device
from dphpc.core.errors import InputError, RunError, writing
from dphpc.core.signals import STOP_SIGNALS, stop_signals
from dphpc.model.dp_model import DPModel
from dphpc.model.radial_table import Grid
from dphpc.parallel.comm import Communicator, Serial, agree, from_first, together
from dphpc.parallel.gradients import GradientSum, MpiSum
from dphpc.train.checkpoint import Checkpoint, CheckpointFolder
from dphpc.train.data import Batch, Dataset
from dphpc.train.data_parallel import AveragedStep, DividedStep, mean_errors
from dphpc.train.gpu_step import GpuStep, require_for_gpu
from dphpc.train.initial import model_arrays
from dphpc.train.lcurve import LearningCurve
from dphpc.train.loss import EnergyLoss, LossResult
from dphpc.train.network_step import NetworkStep
from dphpc.train.optimizers import make_optimizer
from dphpc.train.optimizers.protocol import Engine
from dphpc.train.parameters import Parameters
from dphpc.train.progress import TrainingProgress
from dphpc.train.result import NamedErrors, TrainResult
from dphpc.train.sampler import Sampler
from dphpc.train.schedule import Schedule
from dphpc.train.schema import TrainInput
from dphpc.train.shared_gpu_step import SharedGpuStep
from dphpc.train.shared_step import SharedTableStep, require_for_shared
from dphpc.train.step import TableStep

log = logging.getLogger(__name__)


VALIDATION_SEED = 0x76616C
"""Added to the seed for validation, so that its sampling is independent."""

DEFAULT_MIN_DISTANCE = 0.9
"""Å, smallest distance in the table if that of the data is not known; the table grows when a batch needs more."""

MARGIN = 0.9
"""Smallest distance in the table, as a fraction of the smallest one in the training data."""


class _Drawn(NamedTuple):
    """A step's batch, its number of pairs on all ranks together, its system and frames."""

    batch: Batch
    n_pairs: int
    system: int
    frames: NDArray[np.int64]


class Trainer:
    """Trains a model on data.

    Parameters
    ----------
    config
        The input, `sel`, seed and `numb_steps` resolved.
    model
        Its weights are changed in place.
    training, validation
        Data sets; validation may be None.
    restart
        The checkpoint to continue from; `model` holds its weights.
    comm, gradients
        The ranks that train together, and the sum of their gradients.  All ranks make the same calls; the first writes
        files.
    device
        The GPU that trains; None for the CPU.

    Raises
    ------
    InputError
        The input asks for something that is not done on a GPU.
    """

    def __init__(
        self,
        config: TrainInput,
        model: DPModel,
        training: Dataset,
        validation: Dataset | None = None,
        restart: Checkpoint | None = None,
        comm: Communicator | None = None,
        gradients: GradientSum | None = None,
        device: Device | None = None,
    ) -> None:
        t = config.training
        assert t.numb_steps is not None, "resolved before"
        assert t.seed is not None, "resolved before"
        self.config, self.model, self.training, self.validation = config, model, training, validation
        self.comm = comm or Serial()
        self.gradients = gradients or MpiSum(self.comm)
        self.device = device
        if model.shared is not None:
            require_for_shared(config)
        if device is not None:
            if config.dphpc.embedding == "network":
                expected = '"table", or device "cpu"'
                raise InputError("a GPU trains through the table", where="dphpc/embedding", expected=expected)
            require_for_gpu(model)
        self.n_steps = t.numb_steps
        self.schedule = Schedule(config.learning_rate, self.n_steps)
        self._per_rank = self.comm.size > 1 and config.dphpc.batch == "per_rank"
        self._rate_factor = _rate_factor(config, self.comm.size) if self._per_rank else 1.0
        self.loss = EnergyLoss(config.loss, self.schedule.start_lr, model.atom_exclude_types)
        self.parameters = Parameters(model, device)
        if not self.parameters.n_values and self.n_steps:
            raise InputError(
                "no weight is trained", where="model", expected="descriptor/trainable or fitting_net/trainable true",
                remedy="for the model as it is: numb_steps 0; for its energies alone: dphpc change-bias",
            )  # fmt: skip
        self.optimizer = make_optimizer(config, self.parameters, self.comm)
        self.sampler = Sampler.of(training, t.training_data, t.seed)
        if validation is not None and t.validation_data is not None:
            self.validation_sampler = Sampler.of(validation, t.validation_data, t.seed + VALIDATION_SEED)
        self.folder = CheckpointFolder(t.save_ckpt, t.save_dir, self._max_keep(), restart.step if restart else None)
        self.step = 0
        self.in_flight = np.zeros(2)
        self._sums: NamedErrors = {}
        self._stop: int | None = None
        self._saved: Path | None = None
        grid = None
        if restart is not None:
            self.step, grid, self._sums = restart.step, restart.grid, dict(restart.averages)
            state = {name: torch.from_numpy(value) for name, value in restart.optimizer.items()}
            self.optimizer.load(state, restart.step)
        self._curve = LearningCurve(
            Path(t.disp_file), self.loss.error_names, with_validation=self._validates, keep_until=self.step or None
        )
        self._network = NetworkStep(model, self.parameters) if device is None and model.shared is None else None
        self._table = self._table_step(grid)

    @property
    def _validates(self) -> bool:
        return self.validation is not None and self.config.training.validation_data is not None

    def _max_keep(self) -> int:
        t = self.config.training
        if t.ckpt_keep_ratio is None:
            return t.max_ckpt_keep
        return max(1, math.ceil(t.ckpt_keep_ratio * max(1, math.ceil(self.n_steps / t.save_freq))))

    def _table_step(self, grid: Grid | None) -> TableStep | None:
        """The step through the table; None if the table cannot replace the networks or is not wanted."""
        options = self.config.dphpc
        if options.embedding == "network" or any(net.has_kinks for net in self.model.descriptor.networks):
            return None
        if grid is None:
            r_min = MARGIN * (self.model.min_nbor_dist or min(DEFAULT_MIN_DISTANCE, self.model.descriptor.rcut))
            # Rank 0's grid: on different processors the search may have different results.
            grid = self.comm.bcast(TableStep.fitting_grid(self.model, r_min, options.table_tolerance))
        on_cpu, on_gpu = (TableStep, GpuStep) if self.model.shared is None else (SharedTableStep, SharedGpuStep)
        step = on_cpu if self.device is None else on_gpu
        return step(self.model, self.parameters, grid, options.table_tolerance)

    def engine(self, batch: Batch, n_pairs: int, *, own: bool = False) -> Engine:
        """What evaluates a batch: the table, or the networks if the batch has fewer pairs than twice the knots.

        A GPU, and networks that types share, have the table only.  On several ranks the batch is shared by all ranks,
        which have `n_pairs` together, or with `own` belongs to this rank alone.
        """
        table = self._table
        engine: Engine | None = self._network
        if table is not None and (engine is None or table.pays(batch, n_pairs)):
            engine = table
        assert engine is not None, "these have a table"
        if self.comm.size == 1:
            return engine
        step = AveragedStep if own else DividedStep
        return step(engine, self.parameters, self.comm, self.gradients, self.in_flight)

    def describe(self) -> str:
        """How the embedding is evaluated, one line."""
        if self._table is None:
            return "embedding: plain network, double backward"
        grid, error = self._table.grid, self._table.table_error()
        return f"embedding: radial table, {grid.n_intervals} intervals up to s = {grid.upper:.2f}, error {error:.1e}"

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train until the last step or a signal (SIGINT, SIGTERM, SIGUSR1).

        Raises
        ------
        RunError
            Loss or gradient is not finite; the message names step, system and frames.
        """
        t = self.config.training
        leads = self.comm.rank == 0
        if self.step == 0 and from_first(self.comm, self.folder.newest.exists):
            # The newest checkpoint is another run's: `--continue` would take it if this run were killed early.
            self.save()
        with together(self.comm):
            if leads:
                self._curve.begin()
            board = _tensorboard(t.tensorboard_log_dir) if t.tensorboard and leads else None
        start, first = time.perf_counter(), self.step
        training: NamedErrors = {}
        validation: NamedErrors | None = None
        shows = TrainingProgress(first, self.n_steps, shown=leads, timed=t.time_training)
        with stop_signals(self._ask), shows as progress:
            while self.step < self.n_steps and (drawn := self._draw()) is not None:
                rate = self.schedule(self.step)
                errors = self._train_one(drawn, rate)
                progress.advance()
                if self._due(t.disp_training, t.disp_freq):
                    training, validation = self._display(errors, rate, progress)
                if board is not None and self._due(t.tensorboard, t.tensorboard_freq):
                    for name, value in {"lr": rate, **errors}.items():
                        board.add_scalar(name, value, self.step)
                if self.step == self.n_steps or self.step % t.save_freq == 0:
                    self.save()
            if self._stop is not None and self.step < self.n_steps:
                saved = self.save()
                name = signal.Signals(self._stop).name
                log.warning("stopped by %s after step %d; --restart %s goes on", name, self.step, saved)
            elif self._saved is None:  # no step was asked for: the model as it starts
                self.save()
        if leads:
            self._curve.close()
        if board is not None:
            board.close()
        return TrainResult(
            self.step, self.n_steps, self.step - first, time.perf_counter() - start, training, validation,
            Path(t.disp_file), self._saved, stopped_by=(self._stop or 0) if self.step < self.n_steps else 0,
            hidden=self._hidden(),
        )  # fmt: skip

    def _draw(self) -> _Drawn | None:
        """This step's batch, or None if any rank has received a signal.

        One small sum tells all ranks about signals, errors and tables: if the last step extended the table on some
        ranks, all ranks extend it now.
        """
        comm, own = self.comm, self._per_rank
        drawn, error = None, None
        try:
            system, frames = self.sampler.draw(self.step * comm.size + comm.rank if own else self.step)
            batch = self.training.batch(system, frames, (0, 1) if own else (comm.rank, comm.size))
            drawn = _Drawn(batch, batch.n_own_pairs, system, frames)
        except Exception as caught:
            error = caught
        grown = self._table is not None and self._table.grown
        stops = [self._stop == number for number in STOP_SIGNALS]
        told = [error is not None, drawn.n_pairs if drawn else 0, grown, *stops]
        failed, n_pairs, grown, *stopped = comm.allreduce(np.array(told, np.int64)).tolist()
        if any(stopped):
            self._stop = next(number for number, ranks in zip(STOP_SIGNALS, stopped, strict=True) if ranks)
            return None
        if failed:
            agree(comm, error)
        if grown and self._table is not None:
            self._table.share_grid(comm)
        assert drawn is not None
        return drawn if own else drawn._replace(n_pairs=n_pairs)

    def _train_one(self, drawn: _Drawn, rate: float) -> NamedErrors:
        """Make one step; returns the errors before it."""
        engine = self.engine(drawn.batch, drawn.n_pairs, own=self._per_rank)
        try:
            result = self.optimizer.update(engine, drawn.batch, self.loss, rate * self._rate_factor)
        except RunError as error:
            name, frames = self.training.systems[drawn.system].name, drawn.frames.tolist()
            where = f"step {self.step + 1}, system {name}, frames {frames}"
            error = RunError(error.what, where=where, remedy=error.remedy)
            if not self._per_rank:  # all ranks have the same error
                agree(self.comm, error)
            raise error from None
        if self._table is not None:
            self._table.weights_changed()
        self.step += 1
        return self._mean(result.errors)

    def _mean(self, errors: NamedErrors) -> NamedErrors:
        """Errors averaged over ranks if they are needed after this step; they are also summed for `disp_avg`."""
        t = self.config.training
        wanted = self._due(t.disp_training, t.disp_freq) or self._due(t.tensorboard, t.tensorboard_freq) or t.disp_avg
        if self._per_rank and wanted:
            errors = mean_errors(errors, self.comm)
        if t.disp_avg:
            for name, value in {**errors, "n": 1.0}.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        return errors

    def _due(self, wanted: bool, every: int) -> bool:
        """Whether something that is `wanted` every so many steps is to be done after this step."""
        return wanted and (self.step % every == 0 or self.step == 1)

    def _display(
        self, errors: NamedErrors, rate: float, progress: TrainingProgress
    ) -> tuple[NamedErrors, NamedErrors | None]:
        if self._table is not None:
            self._table.share_grid(self.comm)
            error = self._table.check_table()
            self._table.grid = self.comm.bcast(self._table.grid)
            log.debug("radial table: %d intervals, largest error %.1e", self._table.grid.n_intervals, error)
        if self._sums:
            n = self._sums.pop("n")
            errors = {name: value / n for name, value in self._sums.items()}
            self._sums = {}
        validation = self.validate(rate)
        with together(self.comm):
            if self.comm.rank == 0:
                self._curve.write(self.step, rate, errors, validation)
        progress.show(self.step, rate, errors, validation)
        return errors, validation

    def validate(self, rate: float) -> NamedErrors | None:
        """Errors on the next `numb_btch` validation batches, weighted by their atoms; None without validation data."""
        t = self.config.training
        if self.validation is None or t.validation_data is None:
            return None
        n_batches = t.validation_data.numb_btch
        first = self.step // t.disp_freq * n_batches
        results: list[tuple[int, LossResult]] = []
        part = self.comm.rank, self.comm.size
        for k in range(first, first + n_batches):
            with together(self.comm):
                batch = self.validation.batch(*self.validation_sampler.draw(k), part)
            n_pairs = int(self.comm.allreduce(np.array([batch.n_own_pairs]))[0])
            results.append((batch.n_local, self.loss(self.engine(batch, n_pairs).forward(batch), batch, rate)))
        weights = np.array([n for n, _ in results], np.float64)
        names = results[0][1].errors
        return {name: float(np.dot(weights, [r.errors[name] for _, r in results]) / weights.sum()) for name in names}

    # -- checkpoints and signals ---------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """A checkpoint of the present state."""
        self.parameters.fetch()
        return Checkpoint(
            step=self.step,
            config=self.config,
            arrays=model_arrays(self.model),
            optimizer={name: value.cpu().numpy() for name, value in self.optimizer.state().items()},
            grid=None if self._table is None else self._table.grid,
            min_distance=self.model.min_nbor_dist,
            averages=dict(self._sums),
        )

    def save(self) -> Path:
        """Write a checkpoint of the present state.

        Raises
        ------
        RunError
            It cannot be written; the last checkpoint stays.
        """
        if self._table is not None:
            self._table.share_grid(self.comm)
        path = self.folder.path(self.step)
        last = f"the last checkpoint is {self._saved}" if self._saved else None
        with together(self.comm), writing(path, last=last):
            if self.comm.rank == 0:
                self.folder.save(self.checkpoint())
        self._saved = path
        log.info("saved %s", path)
        return path

    def _ask(self, number: int) -> None:
        self._stop = number

    def _hidden(self) -> float | None:
        """See `TrainResult.hidden`; collective."""
        under_way, waited = self.comm.allreduce(self.in_flight)
        return 1.0 - float(waited / under_way) if under_way else None


def _rate_factor(config: TrainInput, n_ranks: int) -> float:
    """The factor of the learning rate for batches N times as large, by DeePMD-kit's `scale_by_worker`."""
    return {"linear": float(n_ranks), "sqrt": math.sqrt(n_ranks), "none": 1.0}[config.learning_rate.scale_by_worker]


def _tensorboard(folder: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "TensorBoard is not installed", where="training/tensorboard", remedy="pip install tensorboard"
        ) from None
    return SummaryWriter(log_dir=folder)
