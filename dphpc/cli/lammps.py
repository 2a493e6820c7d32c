"""dphpc lammps: the plugin with pair_style dphpc, and models for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from dphpc.cli.app import app, command, show_result

log = logging.getLogger(__name__)

group = typer.Typer(help="pair_style dphpc for LAMMPS: build the plugin, export models.", no_args_is_help=True)
app.add_typer(group, name="lammps")


@command("build", to=group)
def build(
    lammps: Annotated[
        Path | None,
        typer.Option("--lammps", help="LAMMPS' sources or installation; this Python's package `lammps` if not given."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The plugin.")] = None,
    mpi: Annotated[Path | None, typer.Option("--mpi", help="Folder of the mpi.h that LAMMPS has.")] = None,
    isa: Annotated[
        str | None, typer.Option("--isa", help="v2, v3 or v4 of x86-64, for other machines than this one.")
    ] = None,
    bigbig: Annotated[
        bool, typer.Option("--bigbig", help="LAMMPS was compiled with LAMMPS_BIGBIG and does not say so.")
    ] = False,
) -> None:
    """Compile the plugin against a LAMMPS' headers, and say how to load it."""
    from dphpc.interfaces.lammps import build

    log.info("compiling, which takes some ten seconds")
    show_result(str(build(lammps, output, mpi, isa, big=bigbig)))


@command("export", to=group)
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, compressed or not.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="What LAMMPS reads.")] = Path("model.dphpc"),
) -> None:
    """Write a model as pair_style dphpc reads it."""
    from dphpc.interfaces.lammps_model import export_file

    show_result(str(export_file(model, output)))
