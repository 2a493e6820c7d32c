"""dphpc plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dphpc.cli.app import command


@command("plot", repeated=("--label", "--pair"))
def plot(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[lcurve|parity|thermo|rdf|devi|rounds] FILE...", help="The kind, guessed if not given, and files."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG, PDF or SVG; KIND.png if not given.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="Names of the files in the legend.")] = None,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Frames left out at a trajectory's start (rdf).")] = 0,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="Two species (rdf), as --pair O H; all atoms if not given.")
    ] = None,
) -> None:
    """Draw lcurve.out, parity of `dphpc test -d`, thermo.csv, RDF, model_devi.out or rounds.csv."""
    from dphpc.plots.draw import KINDS, draw
    from dphpc.plots.style import save

    named = arguments[0] in KINDS and (len(arguments) > 1 or not Path(arguments[0]).exists())
    kind = arguments[0] if named else None
    kind, figure = draw(kind, arguments[1 if kind else 0 :], label or (), skip, pair or ())
    print(save(figure, output or Path(f"{kind}.png")))
