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
            metavar="[lcurve|parity|thermo|rdf|msd|devi|rounds] FILE...",
            help="The kind, guessed if not given, and files.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG, PDF or SVG, KIND.png if not given; CSV of rdf and msd.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="Names of the files in the legend.")] = None,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Frames left out at a trajectory's start (rdf, msd).")] = 0,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="Two species (rdf), as --pair O H; all atoms if not given.")
    ] = None,
    r_max: Annotated[float, typer.Option("--rmax", min=0.1, max=100.0, help="Range of r in Å (rdf).")] = 6.0,
    interval: Annotated[
        float | None, typer.Option("--interval", min=1e-6, help="fs between frames, if the file has no times (msd).")
    ] = None,
) -> None:
    """Draw lcurve.out, parity of `dphpc test -d`, thermo.csv, RDF, diffusion, model_devi.out or rounds.csv."""
    from dphpc.plots.draw import KINDS, Options, draw
    from dphpc.plots.style import save

    named = arguments[0] in KINDS and (len(arguments) > 1 or not Path(arguments[0]).exists())
    kind = arguments[0] if named else None
    table = output if output and output.suffix.lower() == ".csv" else None
    options = Options(skip, tuple(pair or ()), r_max, interval, table)
    kind, figure = draw(kind, arguments[1 if kind else 0 :], label or (), options)
    print(table or save(figure, output or Path(f"{kind}.png")))
