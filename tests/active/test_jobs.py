"""Works as jobs, which dpdispatcher's batch type `Shell` really runs, without a queue system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dphpc.active import jobs as jobs_module
from dphpc.active.jobs import Jobs
from dphpc.active.queue import sections
from dphpc.active.work import JOB, Stopped, Work, Workshop
from dphpc.core.errors import InputError, RunError
from tests.active.test_work import shell

WAIT = "timeout 60 sh -c 'until test -f ../go; do sleep 0.05; done'"
"""Ends when there is a file `go`, and no job stays behind where a test has failed."""

FULL = "Job violates accounting/QOS policy"
SHELL: dict[str, Any] = {"machine": {"batch_type": "Shell"}}


def jobs(top: Path, retry_count: int = 0, **resources: Any) -> Jobs:
    machine = SHELL["machine"] | {"retry_count": retry_count}
    return Jobs(sections({"md": {"machine": machine, "resources": resources}})["md"], top)


def do(top: Path, *works: Work, at_once: int = 99, retry_count: int = 0, **resources: Any) -> None:
    workshop = Workshop(top)
    with workshop.alone():
        workshop.do(works, at_once, jobs=jobs(top, retry_count, **resources))


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not appear"
        time.sleep(0.02)


def record(work: Work) -> dict[str, Any]:
    return json.loads((work.part / JOB).read_text())


def ended_by(what: Any) -> threading.Thread:
    thread = threading.Thread(target=what)
    thread.start()
    return thread


def kill_job(number: int) -> None:
    """End a job and what it has started."""
    children = subprocess.run(["pgrep", "-P", str(number)], capture_output=True, text=True).stdout.split()
    os.kill(number, signal.SIGKILL)
    for child in children:
        kill_job(int(child))


def leave_running(top: Path, *works: Work, until: Path, **options: Any) -> None:
    """Stop a loop when a file is there."""

    def interrupt() -> None:
        wait_for(until)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = ended_by(interrupt)
    with pytest.raises(Stopped):
        do(top, *works, **options)
    thread.join()


def test_a_job_does_its_works_and_leaves_only_what_they_made(tmp_path: Path) -> None:
    works = [shell(tmp_path / name, "pwd; echo once >> ../count") for name in ("a", "b c")]
    do(tmp_path, *works)
    assert (tmp_path / "b c" / "log").read_text().strip() == str(tmp_path / "b c.part")
    do(tmp_path, *works)
    assert (tmp_path / "count").read_text() == "once\n" * 2
    for work in works:
        assert sorted(path.name for path in work.folder.iterdir()) == ["log", "record.json"]
    assert len(list((tmp_path / "queue").iterdir())) == 2


@pytest.mark.parametrize(("group_size", "n_jobs"), [(1, 5), (2, 3), (0, 1)])
def test_works_share_jobs(tmp_path: Path, group_size: int, n_jobs: int) -> None:
    do(tmp_path, *(shell(tmp_path / name, "true") for name in "abcde"), group_size=group_size)
    assert len(list((tmp_path / "queue").iterdir())) == n_jobs


def test_so_many_jobs_are_in_the_queue(tmp_path: Path) -> None:
    script = "echo >> ../running; sleep 0.3; wc -l < ../running > seen; sed -i 1d ../running"
    do(tmp_path, *(shell(tmp_path / name, script) for name in "abc"), at_once=1)
    assert [(tmp_path / name / "seen").read_text() for name in "abc"] == ["1\n"] * 3


def test_exit_statuses_are_the_commands(tmp_path: Path) -> None:
    accepts = Work("a", tmp_path / "a", "r", {}, lambda _: ["/bin/sh", "-c", "exit 3"], accept=lambda s, _: s == 3)
    fails = shell(tmp_path / "b", "echo the reason >&2; echo begun >> tries; test $(wc -l < tries) -gt 1")
    do(tmp_path, accepts)
    with pytest.raises(RunError, match=r"b ended with status 1\n  \| the reason"):
        do(tmp_path, fails)
    do(tmp_path, fails)  # the cause is mended
    assert (tmp_path / "b" / "tries").read_text() == "begun\n" * 2


def test_a_job_is_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dphpc")
    script = f"echo begun >> ../count; touch ../begun; {WAIT}"
    works = [shell(tmp_path / name, script) for name in "ab"]
    leave_running(tmp_path, *works, until=tmp_path / "begun", group_size=2)
    number = record(works[0])["id"]
    assert f"1 job left in the queue, to be found again by the same command. To end: kill {number}" in caplog.text
    crew = jobs(tmp_path)
    assert all(crew.found(work) for work in works)
    assert len(crew.jobs) == 1
    (tmp_path / "go").touch()
    do(tmp_path, *works, group_size=1)
    assert f"a: found again in job {number}" in caplog.text
    assert (tmp_path / "count").read_text() == "begun\n" * 2
    assert not list(tmp_path.glob("*.part"))


def test_what_a_job_did_while_no_loop_ran_counts(tmp_path: Path) -> None:
    script = f"echo begun >> ../count; touch ../begun; {WAIT}; exit 5"
    work = shell(tmp_path / "a", script)
    leave_running(tmp_path, work, until=tmp_path / "begun")
    (tmp_path / "go").touch()
    wait_for(work.part / f"job.{record(work)['token']}.status")
    with pytest.raises(RunError, match="a ended with status 5"):
        do(tmp_path, work)
    assert (tmp_path / "count").read_text() == "begun\n"


def test_a_loop_that_is_killed_while_it_finishes_a_work_loses_nothing(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def killed(_: Path) -> None:
        (tmp_path / "saved").write_text((tmp_path / "a.part" / JOB).read_text())  # as it was at that moment
        raise Killed

    words = ["/bin/sh", "-c", "echo once >> ../count"]
    with pytest.raises(Killed):
        do(tmp_path, Work("a", tmp_path / "a", "r", {}, lambda _: words, killed))
    token = json.loads((tmp_path / "saved").read_text())["token"]
    (tmp_path / "saved").rename(tmp_path / "a.part" / JOB)
    (tmp_path / "a.part" / f"job.{token}.status").write_text("0\n")
    do(tmp_path, Work("a", tmp_path / "a", "r", {}, lambda _: words))
    assert (tmp_path / "count").read_text() == "once\n"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["log", "r"]


def test_a_job_that_was_ended_goes_on_in_another_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = "echo begun >> ../count; test $(wc -l < ../count) -gt 1 || sleep 60"
    work = shell(tmp_path / "a", script)

    def cancel() -> None:
        wait_for(tmp_path / "count")
        kill_job(record(work)["id"])

    thread = ended_by(cancel)
    do(tmp_path, work, retry_count=1)
    thread.join()
    assert "it goes on in another one (1 of 1)" in caplog.text
    assert (tmp_path / "count").read_text() == "begun\n" * 2


@pytest.mark.parametrize(
    ("script", "how"), [("kill -9 $PPID $$", "no exit status, as its"), ("exit 143", "status 143")]
)
def test_a_job_that_is_ended_again_and_again_is_no_hang(tmp_path: Path, script: str, how: str) -> None:
    with pytest.raises(RunError, match=f"a ended with {how}"):
        do(tmp_path, shell(tmp_path / "a", f"echo begun >> ../count; {script}"), retry_count=1)
    assert (tmp_path / "count").read_text() == "begun\n" * 2


def test_a_job_whose_submission_was_interrupted_does_not_begin(tmp_path: Path) -> None:
    first = f"test $(wc -l < ../count) -gt 1 || {WAIT}"
    work = shell(tmp_path / "a", f"echo begun >> ../count; touch ../begun; {first}")
    leave_running(tmp_path, work, until=tmp_path / "begun")
    here = record(work)
    (work.part / JOB).write_text(json.dumps(here | {"id": None}))  # as it stands while the job is submitted
    with pytest.raises(InputError, match="a loop that was killed before it knew the job, which has begun"):
        do(tmp_path, work)
    (work.part / f"job.{here['token']}.begun").rename(work.part / f"job.{here['token']}")  # it waits yet
    do(tmp_path, work)
    assert (tmp_path / "count").read_text() == "begun\n" * 2
    work.part.mkdir()
    script = next((tmp_path / "queue" / here["token"]).glob("*.sub.run"))
    subprocess.run(["bash", "-c", f"REMOTE_ROOT={script.parent}; . {script}"], check=True)  # the late job
    assert (tmp_path / "count").read_text() == "begun\n" * 2
    (tmp_path / "go").touch()


def test_a_job_is_not_lost_with_its_section(tmp_path: Path) -> None:
    work = shell(tmp_path / "a", f"touch ../begun; {WAIT}")
    leave_running(tmp_path, work, until=tmp_path / "begun")
    workshop = Workshop(tmp_path)
    with (
        pytest.raises(InputError, match="given to a queue system, and is to be done by a process now"),
        workshop.alone(),
    ):
        workshop.do([work], 1)
    (work.part / JOB).write_text(json.dumps(record(work) | {"batch_type": "PBS"}))
    with pytest.raises(InputError, match="given to a queue system, PBS, and would now be asked for of Shell"):
        do(tmp_path, work)
    (work.part / JOB).write_text("[]")
    with pytest.raises(InputError, match="the record of its job is damaged"):
        do(tmp_path, work)
    (tmp_path / "go").touch()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Jobs]:
    """Jobs for programs `sbatch` and `squeue` with given scripts."""

    def make(**scripts: str) -> Jobs:
        (tmp_path / "bin").mkdir()
        for name, script in scripts.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        machine = {"batch_type": "Slurm", "retry_count": 0}
        return Jobs(sections({"md": {"machine": machine, "resources": {"queue_name": "gppu"}}})["md"], tmp_path)

    return make


def test_a_queue_that_refuses_a_job(tmp_path: Path, slurm: Callable[..., Jobs]) -> None:
    jobs = slurm(sbatch="echo 'invalid partition specified: gppu' >&2; exit 1")
    workshop = Workshop(tmp_path)
    with workshop.alone(), pytest.raises(RunError, match=r"(?s)a job cannot be submitted: .*invalid partition"):
        workshop.do([shell(tmp_path / "a", "true")], 1, jobs=jobs)
    do(tmp_path, shell(tmp_path / "a", "true"))
    assert (tmp_path / "a" / "log").exists()


def test_a_status_may_be_seen_after_the_job_has_gone(
    tmp_path: Path, slurm: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = "(sleep 1.5; bash ${!#}) > /dev/null 2>&1 & echo 7"
    jobs, workshop = slurm(sbatch=late, squeue="echo JOBID ST"), Workshop(tmp_path)
    with workshop.alone():
        workshop.do([shell(tmp_path / "a", "true")], 1, jobs=jobs)
        monkeypatch.setattr(jobs_module, "LATE", 0.2)
        with pytest.raises(RunError, match="b ended with no exit status"):
            workshop.do([shell(tmp_path / "b", "true")], 1, jobs=jobs)


def test_a_queue_that_is_full_or_does_not_answer_is_asked_again(
    tmp_path: Path, slurm: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dphpc")
    monkeypatch.setattr(jobs_module, "LONGEST_LOOK", 0.5)
    full = f"cd {tmp_path}; echo >> tries; [ $(wc -l < tries) -gt 1 ] || {{ echo QOS: {FULL} >&2; exit 1; }}"
    jobs = slurm(sbatch=f"s=$PWD/${{!#}}; {full}; (sleep 1.5; cd ${{s%/*}}; bash $s) > /dev/null 2>&1 & echo 7",
                 squeue="echo slurm is down >&2; exit 1")  # fmt: skip
    workshop = Workshop(tmp_path)
    with workshop.alone():
        workshop.do([shell(tmp_path / "a", "true")], 1, jobs=jobs)
    assert caplog.text.count("the queue takes no more jobs for now") == 1
    assert caplog.text.count("the queue system does not answer, and is asked again") == 1


def test_a_job_is_no_rank_of_what_started_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "1")
    do(tmp_path, shell(tmp_path / "a", 'echo "rank $PMI_RANK"'), envs={"PMI_SIZE": "2"})
    assert (tmp_path / "a" / "log").read_text().strip() == "rank"


def test_nothing_is_said_by_dpdispatcher(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom tests.active.test_jobs import *\n"
    code += "do(Path.cwd(), shell(Path.cwd() / 'a', 'true'))"
    command = [sys.executable, "-c", code, str(Path(__file__).parents[2])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "dpdispatcher.log").exists()
