"""dphpc slurm."""

from __future__ import annotations

import inspect
import logging
import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dphpc.cli.app import command
from dphpc.core.errors import writing

log = logging.getLogger(__name__)

RESOURCES: dict[str, tuple[str, type, str]] = {
    "nodes": ("-N", int, "Machines."),
    "ntasks_per_node": ("", int, "Ranks on each."),
    "gpus_per_node": ("--gpus", int, "GPUs on each, one rank per GPU: the job runs with --device cuda."),
    "cpus_per_task": ("-c", int, "Threads of a rank."),
    "time": ("-t", str, "Time of one part, as in 1-12:00:00 or 30 (minutes)."),
    "partition": ("-p", str, "The queue."),
    "account": ("-A", str, "Whose time is used."),
    "qos": ("-q", str, "Quality of service."),
    "constraint": ("-C", str, "Only nodes that have this feature."),
    "mem": ("", str, "Memory of a node, as in 64G; 0 is all of it."),
    "job_name": ("-J", str, "What squeue shows."),
}
"""Name of an sbatch option -> short flag, type, help; options that are not given are as in the template."""


class Job(StrEnum):
    """What runs in the job."""

    md = "md"
    train = "train"
    learn = "learn"


def with_resources(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes **resources the options in `RESOURCES`."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[:-1]
    options = []
    for name, (flag, kind, text) in RESOURCES.items():
        flags = [f"--{name.replace('_', '-')}", *([flag] if flag else [])]
        option = typer.Option(*flags, help=text, min=1 if kind is int else None, rich_help_panel="Resources")
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    function.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return function


@command("slurm")
@with_resources
def slurm(
    job: Annotated[Job, typer.Argument(help="What runs: `dphpc md`, `dphpc train` or `dphpc learn`.")],
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="Its run file or training input.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="-- OPTIONS", help="Further options of that command.")
    ] = None,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Instead of one job an array of them on 1, 2, 4, … ranks.")
    ] = False,
    mpi: Annotated[
        str,
        typer.Option(
            help="What `srun --mpi=` is given: pmix, pmi2, …; mpirun: by that; none: training without MPI; auto: as "
            "mpi4py's MPI needs it."
        ),
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The script; md.slurm, train.slurm, … if not given.")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Hand the script to sbatch.")] = False,
    **resources: Any,
) -> None:
    """Write a Slurm job script, each line explained, and submit it with --submit.

    The job stops in order before its time is up, goes back into the queue and on from where it was, until it is done.
    """
    from dphpc.parallel.jobscript import job_script, require_sbatch
    from dphpc.parallel.jobscript import submit as hand_over

    if submit:
        require_sbatch()
    _check(job, input, chained=not scaling)
    given = {name.replace("_", "-"): str(value) for name, value in resources.items() if value is not None}
    script = job_script(job, [str(input), *(options or [])], given, mpi=mpi, scaling=scaling)
    path = output or Path("scaling.slurm" if scaling else f"{job}.slurm")
    with writing(path):
        path.write_text(script, encoding="utf-8")
    print(script, end="")
    log.info("%s", hand_over(path) if submit else f"written; to start it: sbatch {shlex.quote(str(path))}")


def _check(job: Job, input: Path, chained: bool) -> None:
    """Check the input now, so that a mistake does not show only after the job has waited in the queue."""
    if job is Job.md:
        from dphpc.md.setup import read_settings

        read_settings(input, has_potential=False, resume=chained)
        return
    if job is Job.learn:
        from dphpc.active.loop import learn

        learn(input, dry_run=True)
        return
    from dphpc.train.data.storage import find_stores
    from dphpc.train.schema import load_input

    t = load_input(input).training
    for data in (t.training_data, t.validation_data):
        if data is not None:
            find_stores(data.systems, data.rglob_patterns)
