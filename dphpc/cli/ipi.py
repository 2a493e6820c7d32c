"""dphpc ipi."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dphpc.cli.app import Device, command, exit_if_stopped


@command("ipi", repeated=("-t", "--type-map", "--fparam"))
def ipi(
    input: Annotated[
        Path | None,
        typer.Argument(metavar="INPUT", help="The JSON file of DeePMD-kit's dp_ipi; options go before it."),
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Model file.")] = None,
    structure: Annotated[
        Path | None, typer.Option("--structure", "-s", help="Structure whose atoms are i-PI's, in its order.")
    ] = None,
    unix: Annotated[str | None, typer.Option(help="Name of i-PI's unix socket, or its path.")] = None,
    host: Annotated[str | None, typer.Option(help="Machine on which i-PI listens; localhost if not given.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port on which it listens.")] = None,
    wait: Annotated[float, typer.Option(min=0.0, help="Seconds that i-PI may need until it listens.")] = 60.0,
    type_map: Annotated[
        list[str] | None,
        typer.Option("--type-map", "-t", help="Species of the structure's types, where its file does not name them."),
    ] = None,
    fparam: Annotated[list[float] | None, typer.Option(help="Frame parameters, if the model takes them.")] = None,
    precision: Annotated[str, typer.Option(help="float64, mixed, tf32 or float32.")] = "float64",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; OMP_NUM_THREADS or all cores if not given.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Driver for i-PI: evaluates the structures that a server sends. Start several for several beads.

    It ends when i-PI does. After SIGINT, SIGTERM or SIGUSR1 the status is 128 + signal.
    """
    from dphpc.interfaces.ipi import driver_input, run_ipi

    served = run_ipi(
        driver_input(input, model, structure, unix, host, port), type_map=type_map, fparam=fparam, wait=wait,
        precision=precision, threads=threads, device=device,
    )  # fmt: skip
    exit_if_stopped(served.stopped_by)
