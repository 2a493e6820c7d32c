"""A Slurm cluster of one node: munged, slurmctld and slurmd in a folder, started by hand, on loopback."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dphpc.parallel.launch import START_ANYWHERE

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin"])
"""Daemons live where not every user looks."""

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
FirstJobId={first}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""The node claims 4 cores and 2 GPUs, whatever it has.

Numbers of jobs begin anywhere: MPICH names its shared memory after them, and what a killed job of an earlier cluster
left of it makes one of the same number fail.
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster and the environment in which its commands find it."""

    environment: dict[str, str]

    def __call__(self, *words: str, cwd: Path | None = None) -> str:
        """Standard output of a command."""
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells: JobState, Restarts, …"""
        words = self("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def finished(self, number: str, seconds: float = 300.0) -> dict[str, str]:
        """The job at its end; where it was put back into the queue it need not wait the two minutes that Slurm says."""

        def at_end() -> bool:
            job = self.job(number)
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime":
                self("scontrol", "update", f"jobid={number}", "starttime=now")
            return job["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")

        until(at_end, seconds, f"the end of job {number}")
        return self.job(number)


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something, and fail where it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)


def missing() -> list[str]:
    """What of Slurm and munge this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start the daemons, yield the cluster, stop them and all that runs on it."""
    munge, host = folder / "munge", socket.gethostname().split(".")[0]
    for path in (munge, folder / "state", folder / "spool"):
        path.mkdir(mode=0o700)
    controller, node = free_ports(2)
    first = random.randrange(1, 60_000_000)
    conf = CONF.format(host=host, controller=controller, node=node, folder=folder, first=first)
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    (munge / "key").write_bytes(os.urandom(128))
    (munge / "key").chmod(0o600)
    # Tests may themselves run in a job of another cluster.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    found = Cluster({**outside, **START_ANYWHERE, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")})
    with ExitStack() as running:
        files = [f"--{what}={munge / what.removesuffix('-file')}" for what in ("socket", "key-file", "pid-file")]
        files += [f"--{what}={munge / what.removesuffix('-file')}" for what in ("log-file", "seed-file")]
        running.enter_context(daemon(["munged", "--foreground", "--force", *files], found, folder))
        until((munge / "socket").exists, 30, "munged")
        running.enter_context(daemon(["slurmctld", "-D", "-c"], found, folder))
        running.enter_context(daemon(["slurmd", "-D", "-N", host], found, folder))
        running.callback(end_jobs, found)
        until(lambda: is_idle(found), 60, f"slurmd; its messages are in {folder}")
        yield found


@contextmanager
def daemon(words: Sequence[str], found: Cluster, folder: Path) -> Iterator[None]:
    """A daemon in the foreground of a session of its own."""
    with (
        open(folder / f"{words[0]}.out", "w") as out,
        subprocess.Popen(words, env=found.environment, stdout=out, stderr=out, start_new_session=True) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def is_idle(found: Cluster) -> bool:
    """Whether the node is there and waits for work; sinfo fails as long as slurmctld does not answer."""
    words = ["sinfo", "--noheader", "--format=%t"]
    done = subprocess.run(words, env=found.environment, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() == "idle"


def end_jobs(found: Cluster) -> None:
    """Cancel what a failed test left, so that nothing outlives the daemons."""
    found("scancel", "--user=root")
    with contextlib.suppress(AssertionError):
        until(lambda: not found("squeue", "--noheader"), 60, "cancelled jobs")


def free_ports(n: int) -> list[int]:
    """Numbers of TCP ports that nobody uses."""
    with ExitStack() as open_:
        sockets = [open_.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
