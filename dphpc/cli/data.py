"""dphpc data: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dphpc.cli.app import app, command, show_result

data = typer.Typer(no_args_is_help=True, help="Training data.")
app.add_typer(data, name="data")


@command("convert", repeated=("-t", "--type-map"), to=data)
def convert_data(
    sources: Annotated[list[Path], typer.Argument(metavar="IN...", help="Files or systems that dpdata or ASE reads.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A folder of systems (npy), FILE.hdf5 or NAME.lmdb.")],
    format: Annotated[
        str | None,
        typer.Option("--format", help="Of IN: vasp/outcar, qe/pw/scf, ase/extxyz ...; guessed if not given."),
    ] = None,
    output_format: Annotated[
        str | None, typer.Option("--output-format", help="deepmd/npy, deepmd/npy/mixed, deepmd/hdf5 or deepmd/lmdb.")
    ] = None,
    type_map: Annotated[
        list[str] | None, typer.Option("--type-map", "-t", help="Order of the species, as in -t O H, after IN and OUT.")
    ] = None,
    hold_out: Annotated[
        float,
        typer.Option(
            "--hold-out",
            min=0.0,
            max=1.0,
            help="Fraction of the frames for validation, written to OUT_valid beside OUT.",
        ),
    ] = 0.0,
) -> None:
    """Convert labelled structures into training data."""
    from dphpc.train.convert import convert

    show_result("\n".join(convert(sources, target, format, output_format, type_map, hold_out).lines()))
