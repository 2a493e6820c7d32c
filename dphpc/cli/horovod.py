"""dphpc horovod: build it against this machine's torch and MPI, and try it."""

from __future__ import annotations

import typer

from dphpc.cli.app import app, command
from dphpc.core.errors import RunError

group = typer.Typer(help="Horovod for data-parallel training; optional.", no_args_is_help=True)
app.add_typer(group, name="horovod")


@command("build", to=group)
def build() -> None:
    """Build Horovod's wheel for this Python, torch and MPI (some minutes), unless the cache has it."""
    from dphpc.parallel.horovod_wheel import find_or_build

    print(find_or_build())


@command("install", to=group)
def install() -> None:
    """Install that wheel here, built first where the cache has none, and try it on two ranks."""
    from dphpc.parallel import horovod_wheel

    horovod_wheel.install(horovod_wheel.find_or_build())


@command("test", to=group, parallel=True)
def test() -> None:
    """Add up numbers of all ranks by Horovod and by MPI: `mpirun -n 2 dphpc horovod test`."""
    from dphpc.parallel.comm import agree, world
    from dphpc.parallel.gradients import difference_from_mpi

    comm = world()
    error = difference_from_mpi("horovod", comm)
    agree(comm, RunError(f"Horovod's sum differs from MPI's by {error:.1e}") if error > 1e-12 else None)
    if comm.rank == 0:
        print(f"Horovod adds up {comm.size} ranks' gradients as MPI does (to {error:.0e})")
