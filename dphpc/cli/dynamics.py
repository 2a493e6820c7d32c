"""dphpc md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dphpc.cli.app import DeviceOfInput, command, exit_if_stopped
from dphpc.core.errors import EXIT_STOPPED_ABOVE


def _not_restart(given: bool) -> None:
    if given:
        raise typer.BadParameter(
            "a run goes on from its own restart file by --continue, from another one by 'structure: restart.h5' in RUN"
        )


@command("md", parallel=True)
def md(
    input: Annotated[Path, typer.Argument(metavar="RUN", help="Run file, YAML or JSON.")],
    resume: Annotated[
        bool, typer.Option("--continue", help="Go on from the run's own restart file, if it has left one.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", hidden=True, callback=_not_restart)] = False,
    device: DeviceOfInput = None,
) -> None:
    """Molecular dynamics; on several ranks as `mpirun -n N dphpc md run.yaml`.

    SIGINT, SIGTERM and SIGUSR1 end a run after the present step with a restart file; status 128 + signal. A run that
    ends because the deviation is above 'stop_above' has status 3; one whose atoms go astray (lost, too near, forces
    that are too large or no numbers), 4.
    """
    from dphpc.md.run import run_md

    result = run_md(input, resume=resume, device=device)
    exit_if_stopped(result.stopped_by)
    if result.stopped_above is not None:
        raise typer.Exit(EXIT_STOPPED_ABOVE)
