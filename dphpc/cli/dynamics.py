"""dphpc md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dphpc.cli.app import command


@command("md")
def md(input: Annotated[Path, typer.Argument(metavar="RUN", help="Run file, YAML or JSON.")]) -> None:
    """Molecular dynamics; on several ranks as `mpirun -n N dphpc md run.yaml`."""
    from dphpc.md.run import run_md

    run_md(input)
