"""Works as jobs of a queue system: submitted, asked for, found again by a later loop.

A job knows in which folders it works, and leaves each command's exit status there.  So the loop that reads it need not
be the one that has submitted the job, and little depends on what a queue system tells of jobs that are over.  In the
folder of a work there are, until its command has ended:

    job.json            the job's id
    job.TOKEN           the job may begin; it renames this file when it does, and does nothing if the file is not there
    job.TOKEN.begun
    job.TOKEN.status    exit status of the command
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import signal
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dphpc.active.queue import PROGRAMS, Section
from dphpc.active.work import JOB, LOG, LOST, Work, job_of_another, read_json, write_json
from dphpc.core.errors import RunError, counted
from dphpc.core.signals import STOP_SIGNALS
from dphpc.parallel.launch import unlaunched

log = logging.getLogger(__name__)

ENDED_FROM_OUTSIDE = {128 + number for number in (*STOP_SIGNALS, signal.SIGUSR2, signal.SIGKILL)}
"""Exit statuses of commands that were asked to end, such as at a limit of time, and that may go on in another job."""

SHORTEST_LOOK, LONGEST_LOOK = 0.5, 30.0
"""Seconds between two looks at a job: a quarter of its age, within these bounds."""

LATE = 60.0
"""Seconds after which a file that another machine has written is seen on any shared file system (NFS caches names)."""


@dataclass
class _Job:
    """A job in the queue, and those of its works that are not done."""

    token: str
    known: Any
    works: list[Work]
    submitted: float = field(default_factory=time.monotonic)
    look_at: float = 0.0
    runs: bool = False
    missed_at: float | None = None

    @property
    def id(self) -> str:
        return str(self.known.job_id)

    @property
    def folder(self) -> Path:
        return Path(self.known.machine.context.remote_root)


class Jobs:
    """Does works in jobs.

    Parameters
    ----------
    section
        How they are submitted.
    top
        The loop's folder.
    """

    def __init__(self, section: Section, top: Path) -> None:
        self.section, self.top = section, top
        self.waiting: list[tuple[Work, list[str]]] = []
        self.jobs: list[_Job] = []
        self.retries: dict[Path, int] = {}
        self.next_try = 0.0
        self.silent = False

    def __len__(self) -> int:
        return len(self.waiting) + sum(len(job.works) for job in self.jobs)

    def has_room(self, at_once: int) -> bool:
        """Whether the works that wait for a job fill fewer than may be in the queue."""
        return len(self.waiting) < (at_once - len(self.jobs)) * self.section.group_size

    def begin(self, work: Work, command: list[str]) -> None:
        """Take a work into the next job that is submitted."""
        self.waiting.append((work, command))

    def found(self, work: Work) -> bool:
        """Whether a job of an earlier loop has the work.

        Raises
        ------
        InputError
            It has, and cannot be asked for.
        """
        if not (work.part / JOB).is_file():
            return False
        record = read_json(work.part / JOB)
        try:
            batch_type, token, number = record["batch_type"], record["token"], record["id"]
        except (KeyError, TypeError):
            raise job_of_another(work.part, "and the record of its job is damaged") from None
        if batch_type != self.section.batch_type:
            raise job_of_another(work.part, f"{batch_type}, and would now be asked for of {self.section.batch_type}")
        if number is None and _status(work, token) is None:  # the loop was killed while it submitted this job
            if not _withdrawn(work, token):
                raise job_of_another(work.part, "by a loop that was killed before it knew the job, which has begun")
            _forget(work, token)
            return False
        for job in self.jobs:
            if job.token == token:
                job.works.append(work)
                return True
        known = self.section.job(self.top, token, ["true"])
        known.job_id = number or "unknown"
        self.jobs.append(_Job(token, known, [work]))
        log.info("%s: found again in job %s", work.title, self.jobs[-1].id)
        return True

    def ended(self) -> Generator[tuple[Work, int], None, None]:
        """The works whose commands have ended; also submits the next job."""
        if self.waiting and time.monotonic() >= self.next_try:
            self._submit()
        for job in [job for job in self.jobs if time.monotonic() >= job.look_at]:
            is_over = self._is_over(job)
            for work in list(job.works):
                status = _status(work, job.token)
                if status is None and not is_over:
                    continue
                job.works.remove(work)
                if not job.works:
                    self.jobs.remove(job)
                try:
                    if status is None or status in ENDED_FROM_OUTSIDE:
                        status = self._begin_again(work, job, LOST if status is None else status)
                    if status is not None:
                        yield work, status
                finally:  # when the work is finished, which the next loop would do if this one were killed
                    _forget(work, job.token)
            age = time.monotonic() - job.submitted
            job.look_at = time.monotonic() + min(max(age / 4, SHORTEST_LOOK), LONGEST_LOOK)

    def leave(self) -> None:
        """Leave the jobs in the queue, for the next loop."""
        if self.jobs:
            ids = " ".join(job.id for job in self.jobs)
            log.info(
                "%s left in the queue, to be found again by the same command. To end: %s %s",
                counted(len(self.jobs), "job"), PROGRAMS[self.section.batch_type][1], ids,
            )  # fmt: skip

    def _submit(self) -> None:
        """Submit a job for as many works as it takes.

        Raises
        ------
        RunError
            The queue system refuses it.
        """
        n = min(len(self.waiting), self.section.group_size)
        group, token = self.waiting[: int(n)], secrets.token_hex(4)
        known = self.section.job(self.top, token, [_script(work, words, token) for work, words in group])
        job = _Job(token, known, [work for work, _ in group])
        job.folder.mkdir(parents=True)
        record = {"batch_type": self.section.batch_type, "token": token, "id": None}
        for work in job.works:
            (work.part / f"job.{token}").touch()
            write_json(work.part / JOB, record)
        try:
            known.submit_job()
        except RuntimeError as error:
            for work in job.works:
                _forget(work, token)
            raise RunError(
                f"a job cannot be submitted: {str(error).strip()}", where=str(job.folder),
                remedy="correct 'queue'; the same command goes on from there",
            ) from None  # fmt: skip
        if not known.job_id:
            log.info("the queue takes no more jobs for now")
            for work in job.works:
                _forget(work, token)
            shutil.rmtree(job.folder)
            self.next_try = time.monotonic() + LONGEST_LOOK
            return
        for work in job.works:
            write_json(work.part / JOB, record | {"id": known.job_id})
            log.info("%s: submitted in job %s", work.title, job.id)
        del self.waiting[: len(group)]
        self.jobs.append(job)

    def _is_over(self, job: _Job) -> bool:
        """Whether a job has left the queue, and a status that is missing was not left; asked if one is missing."""
        if all(_status(work, job.token) is not None for work in job.works):
            return False
        try:
            state = job.known.machine.check_status(job.known).name
        except Exception as error:  # a failed command, or one that has answered something unexpected
            if not self.silent:
                log.warning("the queue system does not answer, and is asked again: %s", str(error).strip())
            self.silent = True
            return False
        self.silent = False
        if state == "running" and not job.runs:
            job.runs = True
            log.info("job %s runs: %s", job.id, ", ".join(work.title for work in job.works))
        if state not in ("terminated", "finished"):
            job.missed_at = None
            return False
        now = time.monotonic()
        job.missed_at = now if job.missed_at is None else job.missed_at
        return now - job.missed_at >= (0.0 if self.section.batch_type == "Shell" else LATE)

    def _begin_again(self, work: Work, job: _Job, status: int) -> int | None:
        """Let a work whose job was ended from outside go on in another one, as often as `retry_count` says.

        Returns its exit status if it does not: the given one, or 0 if nothing is left to do.
        """
        done, most = self.retries.get(work.folder, 0), int(self.section.machine["retry_count"])
        if done >= most:
            return status
        command = work.begin(work.part)
        if command is None:
            return 0
        self.retries[work.folder] = done + 1
        self.waiting.append((work, command))
        log.warning(
            "%s: job %s was ended by a limit of time or memory, by a failed node or by hand; it goes on in another one "
            "(%d of %d)", work.title, job.id, done + 1, most,
        )  # fmt: skip
        return None


def _script(work: Work, command: list[str], token: str) -> str:
    """Shell commands that do a work, unless it was withdrawn from this job, and leave the exit status."""
    part, mark = work.part.absolute(), f"job.{token}"
    directory = shlex.quote(str((work.directory or part).absolute()))
    ranks = sorted(os.environ.keys() - unlaunched(os.environ).keys())
    return "\n".join((
        f"cd {shlex.quote(str(part))} || exit 0",
        # The second is for a job that the queue system starts once more.
        f"mv {mark} {mark}.begun 2> /dev/null || test -e {mark}.begun || exit 0",
        f"unset {' '.join(ranks)}" if ranks else "",
        f"( cd {directory} && {shlex.join(command)} ) < /dev/null >> {LOG} 2>&1",
        f"echo $? > {mark}.part; mv {mark}.part {mark}.status",
    ))  # fmt: skip


def _status(work: Work, token: str) -> int | None:
    """The exit status that a job has left."""
    try:
        return int((work.part / f"job.{token}.status").read_text())
    except (OSError, ValueError):
        return None


def _withdrawn(work: Work, token: str) -> bool:
    """Take back the permission to begin; whether the job had not begun."""
    try:
        (work.part / f"job.{token}").unlink()
    except FileNotFoundError:
        return False
    return True


def _forget(work: Work, token: str) -> None:
    """Remove a job's files from a work's folder; if it has not begun, it never does."""
    for folder in (work.part, work.folder):
        for name in (f"job.{token}", JOB, *(f"job.{token}.{end}" for end in ("begun", "part", "status"))):
            (folder / name).unlink(missing_ok=True)
