"""dphpc learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dphpc.cli.app import command, exit_if_stopped


@command("learn", parallel=True)  # all ranks, if there are several, say that there should be one
def learn_in_rounds(
    input: Annotated[Path, typer.Argument(metavar="RUN", help="Run file, YAML or JSON.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, and do nothing.")
    ] = False,
) -> None:
    """Active learning: train a committee, explore by MD, label what it does not know, train again.

    The same command goes on with a loop that was interrupted; what is done is not done again. SIGINT and SIGTERM end
    the steps in order, and leave jobs in the queue; status 128 + signal.
    """
    from dphpc.active.loop import learn

    exit_if_stopped(learn(input, dry_run=dry_run).stopped_by)
