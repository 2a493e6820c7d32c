"""What a running training shows: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dphpc.core.units import duration
from dphpc.train.result import NamedErrors

log = logging.getLogger(__name__)


FAR_OFF = 5.0
"""eV/atom: the error of validation energies above which the first line of a training may have a warning."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:6.1f} step/s" if task.speed else "", style="cyan")


class TrainingProgress:
    """Context manager around the training loop.

    Parameters
    ----------
    first, n_steps
        Number of steps already done, and in all.
    shown
        Whether the live line is printed, on a terminal (on the first rank).
    timed
        Whether lines with times are logged (`training/time_training`).
    """

    def __init__(self, first: int, n_steps: int, *, shown: bool, timed: bool) -> None:
        self.first, self.n_steps, self._timed = first, n_steps, timed
        console = Console(stderr=True)
        columns = (
            TextColumn("[bold]train"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
            TextColumn("{task.fields[errors]}"),
        )  # fmt: skip
        self._live = Progress(
            *columns, console=console, disable=not shown or not (console.is_terminal or console.is_jupyter)
        )
        self._task = self._live.add_task("train", total=n_steps, completed=first, errors="")
        self._start = self._last = time.perf_counter()
        self._last_step = first

    def __enter__(self) -> TrainingProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def advance(self) -> None:
        """Count one step."""
        self._live.advance(self._task)

    def show(self, step: int, learning_rate: float, training: NamedErrors, validation: NamedErrors | None) -> None:
        """Log the errors of a step and, if `timed`, the time since the last such line and the time left."""
        now = time.perf_counter()
        seconds = now - self._last
        rate = (step - self._last_step) / seconds if seconds > 0 else 0.0
        left = (self.n_steps - step) * (now - self._start) / max(1, step - self.first)
        if validation is not None and self._last_step == self.first:
            _warn_of_units(training.get("rmse_e", 0.0), validation.get("rmse_e", 0.0))
        self._last, self._last_step = now, step
        log.info("batch %7d: trn: %s, lr = %8.2e", step, _text(training), learning_rate)
        if validation is not None:
            log.info("batch %7d: val: %s", step, _text(validation))
        if self._timed:
            log.info("batch %7d: %.2f s, %.1f step/s, %s left", step, seconds, rate, duration(left))
        shown = training if validation is None else validation
        self._live.update(self._task, errors=_text({k: v for k, v in shown.items() if k != "rmse"}))


def _warn_of_units(training: float, validation: float) -> None:
    """Warn if energies (eV/atom) of the validation data are much farther off than those of the training data."""
    if validation > max(FAR_OFF, 20.0 * training):
        log.warning(
            "energies of the validation data are off by %.3g eV/atom, of the training data by %.3g: have both the same "
            "unit, reference energies and order of types?", validation, training,
        )  # fmt: skip


def _text(errors: NamedErrors) -> str:
    return ", ".join(f"{name} = {value:8.2e}" for name, value in sorted(errors.items()))
