"""Pieces of work that are done once: each has a folder, which gets its name only when the work is done.

Unfinished work is in `NAME.part`, with a record of what was asked for; the same command continues it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dphpc.core.cores import n_cores
from dphpc.core.errors import InputError, RunError, writing
from dphpc.core.files import write_whole
from dphpc.core.signals import stop_signals
from dphpc.core.units import duration
from dphpc.parallel.launch import unlaunched

log = logging.getLogger(__name__)

POLL = 0.05
"""Seconds between two looks at the processes."""

PATIENCE = 60.0
"""Seconds that a process may take to end when asked to, before it is killed."""

LOG = "log"
"""File with a process's output, in its folder."""

JOB = "job.json"
"""File with the job of a queue system that does a work, in the work's folder while the job is not over."""

LOST = 256
"""In place of an exit status, which is smaller: the job of a work has ended without one."""

LOG_LINES = 12
"""Last lines of a failed process's log that are shown with its error."""


class Stopped(Exception):
    """Raised after a signal, when all processes have ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@dataclass(frozen=True)
class Work:
    """A piece of work.

    Attributes
    ----------
    folder
        The folder with the results; it exists as soon as the work is done.
    record
        Name of the file in it that records what was asked for.
    settings
        Content of the record, as JSON can hold it.
    begin
        Called with the folder's temporary path; prepares the folder and returns the command that does the work, or None
        if nothing is left to do.
    finish
        Called with the temporary path when the command has ended.
    accept
        Called with the command's exit status and the temporary path; returns whether the work is done.
    directory
        The command's working directory; None is the folder itself.
    known_as
        Paths of keys in `settings` that the run file has under another path, with that path.
    """

    title: str
    folder: Path
    record: str
    settings: Mapping[str, Any]
    begin: Callable[[Path], list[str] | None]
    finish: Callable[[Path], None] = lambda _: None
    accept: Callable[[int, Path], bool] = lambda status, _: status == 0
    directory: Path | None = None
    known_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def part(self) -> Path:
        """The folder's temporary path, while the work is not done."""
        return self.folder.with_name(self.folder.name + ".part")

    def prepare(self) -> None:
        """Make the temporary folder, with the record."""
        self.part.mkdir(parents=True, exist_ok=True)
        write_json(self.part / self.record, self.settings)

    def is_done(self) -> bool:
        """Whether the work is done.

        Raises
        ------
        InputError
            The work was done or begun with other settings, or its record is damaged.
        """
        for folder in (self.folder, self.part):
            path = folder / self.record
            if path.is_file():
                key = _difference(read_json(path), json.loads(json.dumps(self.settings)))
                if key is not None:
                    path_in, values = key.split(": ", 1)
                    done = "done" if folder == self.folder else "begun"
                    raise InputError(
                        f"{self.title} was {done} with another {self.known_as.get(path_in, path_in)}: {values}",
                        where=str(path),
                        expected="what agrees with the work that is there; more rounds may be added",
                        remedy=f"restore it, name another 'folder', or remove {folder} and what follows from it",
                    )
                return folder == self.folder
        return False


def _difference(old: Any, new: Any, path: str = "") -> str | None:
    """The path of the first key whose value differs, with both values; None if all agree."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = ({str(k): value for k, value in enumerate(values)} for values in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        found = (_difference(old.get(k), new.get(k), f"{path}/{k}") for k in sorted(old.keys() | new.keys()))
        return next(filter(None, found), None)
    return None if old == new else f"{path.lstrip('/')}: {_short(old)} in place of {_short(new)}"


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, see `write_whole`."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that a step has written.

    Raises
    ------
    InputError
        It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise spoiled(path, "a file of a step that is done is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise spoiled(path, f"a file of a step that is done or begun is damaged: {error}") from None


def spoiled(path: Path, what: str) -> InputError:
    """The error for a missing or damaged file of a step; `path` is in its folder."""
    return InputError(
        what, where=str(path), expected="all files as `dphpc learn` has left them",
        remedy="restore it, or remove the folder of that step, and of all that follow, to do them anew",
    )  # fmt: skip


@dataclass
class Workshop:
    """Does pieces of work; only one workshop at a time uses a folder."""

    folder: Path
    _lock: int = field(default=-1, init=False)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder, for as long as this context or any process started in it lives.

        Raises
        ------
        InputError
            Another process has the lock.
        RunError
            The folder cannot be made.
        """
        with writing(self.folder, "the folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    "another `dphpc learn` is at work, or a process that one has left behind", where=str(self.folder),
                    remedy="wait until it has ended, or name another 'folder'",
                ) from None  # fmt: skip
            self._lock = file.fileno()
            yield

    def do(self, works: Sequence[Work], at_once: int, share_cores: bool = False, jobs: Crew | None = None) -> None:
        """Do the works that are not done yet, `at_once` of them at a time.

        Parameters
        ----------
        share_cores
            Give each process an equal share of the cores for its threads, unless OMP_NUM_THREADS is set.
        jobs
            What does the works, if these are no processes of this machine; `at_once` is then a number of jobs.

        Raises
        ------
        InputError
            A work was done with other settings.
        RunError
            A work failed; the other processes have been ended in good order, jobs go on. All can be continued.
        Stopped
            A signal asked to stop.
        """
        waiting = [work for work in works if not work.is_done()]
        share = max(1, n_cores() // max(1, min(at_once, len(waiting)))) if share_cores else 0
        crew = Processes(self._lock, share) if jobs is None else jobs
        total, asked = len(works), list[int]()
        started = time.monotonic()
        with stop_signals(asked.append):
            try:
                waiting = [work for work in waiting if not crew.found(work)]
                while waiting or len(crew):
                    while waiting and crew.has_room(at_once) and not asked:
                        _begin(waiting.pop(0), crew)
                    with contextlib.closing(crew.ended()) as ended:
                        for work, status in ended:
                            _finish(work, status, bool(asked))
                            if total > 1:
                                done = total - len(waiting) - len(crew)
                                taken = duration(time.monotonic() - started)
                                log.info("%s: done (%d of %d, %s)", work.title, done, total, taken)
                    if asked:
                        raise Stopped(asked[0])
                    time.sleep(POLL if len(crew) else 0.0)
            finally:
                crew.leave()


class Crew(Protocol):
    """What does works: processes, or jobs of a queue system."""

    def __len__(self) -> int:
        """How many works it has."""

    def found(self, work: Work) -> bool:
        """Whether it has a work since before this loop was started."""

    def has_room(self, at_once: int) -> bool:
        """Whether one more work may begin, if `at_once` of them may be done at a time."""

    def begin(self, work: Work, command: list[str]) -> None:
        """Take a work whose folder is prepared, and the command that does it."""

    def ended(self) -> Generator[tuple[Work, int], None, None]:
        """The works whose commands have ended, with exit status (negative: a signal), or LOST."""

    def leave(self) -> None:
        """The loop ends, perhaps before the works."""


class Processes:
    """Does each work in a child process.

    Parameters
    ----------
    lock
        A file descriptor that the processes keep open.
    threads
        Of each process, unless OMP_NUM_THREADS is set; 0 leaves them to it.
    """

    def __init__(self, lock: int, threads: int) -> None:
        self.lock, self.running = lock, dict[subprocess.Popen[bytes], Work]()
        self.environment = unlaunched(os.environ)
        if threads:
            self.environment.setdefault("OMP_NUM_THREADS", str(threads))

    def __len__(self) -> int:
        return len(self.running)

    def found(self, work: Work) -> bool:
        """No process outlives the loop; a job may."""
        if (work.part / JOB).is_file():
            raise job_of_another(work.part, "and is to be done by a process now")
        return False

    def has_room(self, at_once: int) -> bool:
        """Whether fewer processes run."""
        return len(self.running) < at_once

    def begin(self, work: Work, command: list[str]) -> None:
        """Start a process."""
        with (work.part / LOG).open("ab") as output:
            process = subprocess.Popen(
                command, cwd=work.directory or work.part, env=self.environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[self.lock],
            )  # fmt: skip
        self.running[process] = work

    def ended(self) -> Generator[tuple[Work, int], None, None]:
        """The works whose processes have ended, each with its exit status."""
        for process in [p for p in self.running if p.poll() is not None]:
            yield self.running.pop(process), process.returncode

    def leave(self) -> None:
        """End all processes."""
        _end(self.running)


def job_of_another(part: Path, but: str) -> InputError:
    """The error for a folder with a job of a queue system which cannot be looked for."""
    return InputError(
        f"what is done in {part} was given to a queue system, {but}", where=str(part / JOB),
        remedy="restore 'queue'; or end that job, if it is not over, and remove this file",
    )  # fmt: skip


def _begin(work: Work, crew: Crew) -> None:
    """Prepare a work's folder, and hand it over unless nothing is left to do."""
    work.prepare()
    command = work.begin(work.part)
    if command is None:
        _finish(work, 0, False)
    else:
        crew.begin(work, command)


def _finish(work: Work, status: int, asked: bool) -> None:
    """Finish a work whose command has ended; RunError if it failed without having been asked to end."""
    if not work.accept(status, work.part):
        if asked:
            return
        path = work.part / LOG
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:] if path.is_file() else []
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        how = "no exit status, as its job was ended" if status == LOST else how
        raise RunError(
            f"{work.title} ended with {how}" + "".join(f"\n  | {line}" for line in lines), where=str(path),
            remedy="the same command goes on from there once the cause is mended",
        )  # fmt: skip
    work.finish(work.part)
    work.part.rename(work.folder)


def _end(running: Mapping[subprocess.Popen[bytes], Work]) -> None:
    """Ask all processes and their children to end, wait, and kill those that do not."""
    for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, PATIENCE)):
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    os.killpg(process.pid, number)
        until = time.monotonic() + patience
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
