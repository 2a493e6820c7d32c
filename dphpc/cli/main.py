"""The `dphpc` command: flags before the command, and the commands themselves."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from dphpc.cli.app import app, repeated_options

COMMAND_MODULES = (
    "training",
    "evaluation",
    "dynamics",
    "learning",
    "ipi",
    "lammps",
    "data",
    "plotting",
    "slurm",
    "horovod",
    "doctor",
)
"""Modules of this package that register commands, in the order of the help page."""

BACKEND_FLAGS = (
    *("--pt", "--pytorch", "--tf", "--tensorflow", "--tf2", "--tensorflow2", "--jax", "--pd", "--paddle"),
    *("--dp", "--dpmodel", "--np", "--numpy", "--pt-expt", "--pytorch-exportable"),
)
"""DeePMD-kit's flags before the command; accepted without effect, so that scripts still run."""


OTHERS = {
    "convert-from": "dp convert-from brings an old model up to date, which dphpc reads",
    "doc-train-input": "docs/train.md has what dphpc adds, all other keys mean what they do in DeePMD-kit",
    **dict.fromkeys(("embed", "gui", "transfer", "pretrained", "train-nvnmd"), "dphpc has no counterpart"),
}
"""DeePMD-kit's commands that are not here, and what to do instead."""


@app.callback()
def everything(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=lambda on: _version(on)),
    ] = False,
    backend: Annotated[str, typer.Option("--backend", "-b", hidden=True)] = "",
    backend_flag: Annotated[bool, typer.Option(*BACKEND_FLAGS, hidden=True)] = False,
) -> None:
    """Train neural-network potentials on ab-initio data and run molecular dynamics with them."""


def _version(wanted: bool) -> None:
    if wanted:
        from dphpc import __version__

        print(f"dphpc {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end.

    Status 0, 1 for an error, 2 for wrong usage, 128 + the signal that ended it; `md` has some more.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = next((a for a in given if not a.startswith("-")), "")
    if name in OTHERS:
        print(f"error: {name} is a command of DeePMD-kit alone\n  remedy:   {OTHERS[name]}", file=sys.stderr)
        sys.exit(2)
    for module in COMMAND_MODULES:
        importlib.import_module(f"dphpc.cli.{module}")
    app(args=_repeat_flags(given), prog_name="dphpc")


def _repeat_flags(arguments: list[str]) -> list[str]:
    """`-t O H` as `-t O -t H`, for the flags that `dp` lets take several values."""
    name = next((a for a in arguments if a in repeated_options), "")
    result: list[str] = []
    flag = ""
    for i, argument in enumerate(arguments):
        if argument.startswith("-") and not argument.lstrip("-.")[:1].isdigit():  # -93.5 is a value
            flag = argument if argument in repeated_options.get(name, ()) else ""
        elif flag and arguments[i - 1] != flag:
            result.append(flag)
        result.append(argument)
    return result
