"""Output during a run: the thermo CSV file and the table on the screen."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dphpc.core import errors
from dphpc.core.errors import DataError
from dphpc.core.units import duration
from dphpc.md.engine import Engine
from dphpc.md.extent import Extent, extent_of_bytes
from dphpc.md.observables import Thermo
from dphpc.md.trouble import last_restart_of
from dphpc.parallel.comm import together

log = logging.getLogger(__name__)

_TABLE = {
    "step": 8, "time/ps": 8, "T/K": 8, "E_pot/eV": 15, "conserved/eV": 15, "P/bar": 10, "g/cm3": 8, "atom-steps/s": 12,
    "left": 8,
}  # fmt: skip
"""Columns of the table on the screen, and their widths: at most 100 characters a line; the file has more columns."""


@contextmanager
def writing(path: str, engine: Engine, step: int | None = None) -> Iterator[None]:
    """Turn a failure to write inside the block into an error that names file, step and last restart.

    `step` is the present one by default.
    """
    with errors.writing(f"{path}, step {engine.step if step is None else step}", "the output", last_restart_of(engine)):
        yield


class Output(Protocol):
    """A file that grows with the run."""

    def extent(self) -> Extent:
        """How far the file is written; forces it to disk."""


def extents_of(outputs: Mapping[str, Output | None], engine: Engine) -> dict[str, Extent]:
    """How far each open output is written, on rank 0; collective."""
    extents = {}
    with together(engine.comm):
        for path, output in outputs.items() if engine.comm.rank == 0 else ():
            if output is not None:
                with writing(path, engine):
                    extents[path] = output.extent()
    return extents


@contextmanager
def cut_back(file: BufferedRandom, whole: int) -> Iterator[None]:
    """If a file cannot be written inside, close it and leave its first `whole` bytes: no part of a line or frame."""
    try:
        yield
    except OSError:
        descriptor = os.dup(file.fileno())
        file.raw.close()  # what is still buffered must not follow
        with suppress(OSError):  # a device has no size
            os.ftruncate(descriptor, whole)
        os.close(descriptor)
        raise


class TableFile:
    """A text file of lines below a header; `resume_at` bytes of an old file are kept, None begins a new one."""

    def __init__(self, path: str, header: str, resume_at: int | None) -> None:
        with errors.writing(path, "the output"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w+b" if resume_at is None else "r+b")  # noqa: SIM115 (lives as long as the run)
            if resume_at is None:
                self.write(header)
                return
        if self._file.readline() != header.encode("ascii"):
            raise DataError("the file to go on with has another header", where=path, remedy="name another file")
        self._file.truncate(resume_at)
        self._file.seek(resume_at)

    def write(self, line: str) -> None:
        """Write a line, given with its newline, and flush it."""
        with cut_back(self._file, self._file.tell()):
            self._file.write(line.encode("ascii"))
            self._file.flush()

    def extent(self) -> Extent:
        """How far the file is written; forces it to disk."""
        self._file.flush()
        return extent_of_bytes(self._file.fileno(), self._file.tell(), "table")


class Screen:
    """The table on the screen: with a progress bar on a terminal, else as plain lines.

    Parameters
    ----------
    n_steps
        Number of steps of the run.
    quiet
        Print nothing (ranks other than 0).
    with_density
        Whether the table has a column of the density, which is constant where the box does not move.
    """

    def __init__(self, n_atoms: int, n_steps: int, quiet: bool, with_density: bool = False) -> None:
        self.n_atoms, self.n_steps, self.quiet = n_atoms, n_steps, quiet
        self.columns = {name: width for name, width in _TABLE.items() if with_density or name != "g/cm3"}
        self.done = 0
        self._started = self._last_time = time.perf_counter()
        self._last_done = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def say(self, *lines: str) -> None:
        """Log lines, and print them unless the level of the package's logger excludes them."""
        if self.quiet:
            return
        for line in lines:
            level = logging.WARNING if line.startswith("warning:") else logging.INFO
            if line:
                log.log(level, line, extra={"on_screen": True})
            if level < logging.getLogger("dphpc").level:
                continue
            if self._progress is not None:
                self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, flush=True)

    def start(self) -> None:
        """Begin the table."""
        self._started = self._last_time = time.perf_counter()
        # Open MPI gives rank 0 a terminal for stdout even if the output goes to a file: stderr is asked, too.
        if not self.quiet and sys.stdout.isatty() and sys.stderr.isatty():
            count = TextColumn("{task.completed}/{task.total} steps")
            columns = (count, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(file=sys.stdout), transient=True)
            self._task = self._progress.add_task("md", total=self.n_steps)
            self._progress.start()
        self.say("", " ".join(f"{name:>{width}}" for name, width in self.columns.items()))

    def stop(self) -> None:
        """End the table."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def tick(self, steps: int) -> None:
        """Count steps that are done."""
        self.done += steps
        if self._progress is not None:
            self._progress.update(self._task, completed=self.done)

    def leave_out(self, steps: int) -> None:
        """Take steps off the total, as they need not be done."""
        self.n_steps -= steps
        if self._progress is not None:
            self._progress.update(self._task, total=self.n_steps)

    def row(self, t: Thermo, force: float | None = None) -> None:
        """Add a line to the table, with the rate since the last line and an estimate of the time left.

        In a minimization the largest `force` (eV/Å) takes the place of the conserved energy, of which there is none.
        """
        now = time.perf_counter()
        steps, seconds = self.done - self._last_done, now - self._last_time
        rate = f"{steps * self.n_atoms / seconds:.4g}" if steps and seconds else "-"
        left = "-"
        if self.done and now > self._started:
            left = duration((self.n_steps - self.done) * (now - self._started) / self.done)
        self._last_done, self._last_time = self.done, now
        values = {
            "step": f"{t.step}",
            "time/ps": f"{t.time_ps:.6g}",
            "T/K": f"{t.temperature_K:.2f}",
            "E_pot/eV": _energy(t.potential_eV),
            "conserved/eV": _energy(t.conserved_eV) if force is None else f"F_max {force:.4g}",
            "P/bar": f"{t.pressure_bar:.2f}",
            "g/cm3": f"{t.density_g_cm3:.5f}",
            "atom-steps/s": rate,
            "left": left,
        }
        self.say(" ".join(f"{values[name]:>{width}}" for name, width in self.columns.items()))


def _energy(value: float) -> str:
    """An energy in eV: with six decimals, or three if it is that of very many atoms."""
    return f"{value:.6f}" if abs(value) < 1e7 else f"{value:.3f}"
