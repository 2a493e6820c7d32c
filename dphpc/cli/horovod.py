"""dphpc horovod: build it against this machine's torch and MPI, and try it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from dphpc.cli.app import app, command
from dphpc.core.errors import InputError, RunError
from dphpc.parallel.launch import START_ANYWHERE

VERSION = "0.28.1"
"""The last release (2023)."""

BUILD = {
    # It asks for C++14, torch's headers need 20; flags that are added elsewhere are taken out again.
    "CMAKE_CXX_COMPILER_LAUNCHER": 'bash;-c;exec "${@/#-std=c++1[14]/-std=c++20}";_',
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_GLOO": "1",
}
"""Environment of the build."""

TOOLS = {"mpicxx": "the MPI's compiler", "cmake": "pip install cmake", "g++": "apt install g++, or module load gcc"}
"""Programs that the build calls, and how to get them."""

group = typer.Typer(help="Horovod for data-parallel training; optional.", no_args_is_help=True)
app.add_typer(group, name="horovod")


@command("install", to=group)
def install() -> None:
    """Build Horovod for this environment (some minutes), and try it on two ranks."""
    path = _path()
    missing = [f"{tool} ({how})" for tool, how in TOOLS.items() if shutil.which(tool, path=path) is None]
    missing += [f"{name} (pip install {name})" for name in ("torch", "mpi4py") if find_spec(name) is None]
    if missing:
        raise InputError(f"Horovod cannot be built without {', '.join(missing)}")
    _require_headers(path)
    pip = [sys.executable, "-m", "pip", "install"]
    env = {**os.environ, **BUILD, "PATH": path, "MAKEFLAGS": os.environ.get("MAKEFLAGS", "-j1")}
    print(f"building Horovod {VERSION} with {shutil.which('mpicxx', path=path)}; this takes minutes", flush=True)
    _run([*pip, "--quiet", "setuptools<81", "wheel", "packaging", "psutil", "cloudpickle", "pyyaml"], env)
    _run([*pip, "--no-build-isolation", "--no-cache-dir", "--no-deps", f"horovod=={VERSION}"], env)
    mpirun = shutil.which("mpirun", path=path)
    if mpirun is None:
        raise RunError("Horovod is built, but there is no mpirun to try it with", remedy="load the MPI's module")
    _run([mpirun, "-n", "2", sys.executable, "-m", "dphpc", "horovod", "test"], env | START_ANYWHERE)


@command("test", to=group)
def test() -> None:
    """Add up numbers of all ranks by Horovod and by MPI: `mpirun -n 2 dphpc horovod test`."""
    from dphpc.parallel.comm import agree, world
    from dphpc.parallel.gradients import difference_from_mpi

    comm = world()
    error = difference_from_mpi("horovod", comm)
    agree(comm, RunError(f"Horovod's sum differs from MPI's by {error:.1e}") if error > 1e-12 else None)
    if comm.rank == 0:
        print(f"Horovod adds up {comm.size} ranks' gradients as MPI does (to {error:.0e})")


def _require_headers(path: str) -> None:
    """Refuse an mpicxx that has no mpi.h, as Linux packages without their -dev part leave it."""
    words = ["mpicxx", "-x", "c++", "-fsyntax-only", "-"]
    done = subprocess.run(
        words, input="#include <mpi.h>\n", env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise InputError(
            f"{shutil.which('mpicxx', path=path)} cannot compile an MPI program: {why}",
            remedy="install the MPI's headers, e.g. apt install libopenmpi-dev or libmpich-dev",
        )


def _path() -> str:
    """PATH with this environment's programs first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _run(words: list[str], env: dict[str, str]) -> None:
    result = subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise RunError(f"{' '.join(words[:6])} … failed:\n{result.stdout[-4000:]}")
    print(result.stdout.strip()[-400:], flush=True)
