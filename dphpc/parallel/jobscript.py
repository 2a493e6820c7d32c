"""Slurm job scripts: the templates of `jobscripts/`, filled in and submitted."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from dphpc.core.errors import InputError
from dphpc.core.probes import output_of

SRUN_PLUGINS = {"Open MPI": "pmix", "MPICH": "pmi2", "Intel": "pmi2", "MVAPICH": "pmi2"}
"""Word in an MPI's name -> what `srun --mpi=` needs to start its ranks."""

MPIRUN, NO_MPI = "mpirun", "none"
"""In place of a plug-in: ranks are started by mpirun; or by srun without MPI, which only training can do."""

FORMS = {
    "time": (r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", "30 (minutes), 30:00, 12:00:00, 1-12, 1-12:00 or 1-12:00:00"),
    "mem": (r"\d+[KMGT]?", "a number with K, M, G or T, as in 64G; without a letter it is in M, and 0 is all of it"),
}
"""Option of sbatch -> pattern of the values that it takes, in capitals, and what a message says of them."""


def job_script(
    command: str, arguments: Sequence[str], resources: Mapping[str, str], *, mpi: str = "auto", scaling: bool = False
) -> str:
    """The script of a job, from the template for its kind.

    Parameters
    ----------
    command
        "md", "train" or "learn".
    arguments
        The command's input and options.
    resources
        Options of sbatch and their values; the template's own where one is missing.  With `gpus-per-node` the command
        runs on GPUs, one rank on each.
    mpi
        The plug-in for `srun --mpi=`; "mpirun" to start ranks by mpirun, "none" for training without MPI, "auto" for
        what mpi4py's MPI needs.
    scaling
        Make an array of jobs on 1, 2, 4, … ranks instead of one job.

    Raises
    ------
    InputError
        A value cannot stand in a script or is no time or memory, the MPI is missing or unknown, the job needs MPI and
        `mpi` is "none", or `scaling` is asked for "learn".
    """
    for key in resources.keys() & FORMS.keys():
        pattern, forms = FORMS[key]
        if not re.fullmatch(pattern, resources[key].upper(), re.ASCII):
            raise InputError(f"sbatch does not take '{resources[key]}'", where=f"--{key}", expected=forms)
    if mpi == NO_MPI and (command != "train" or scaling):
        raise InputError(
            "this job's ranks need MPI", where="--mpi none", expected=f"pmix, pmi2 or {MPIRUN}",
            remedy="without MPI only training runs on several ranks",
        )  # fmt: skip
    if scaling and command == "learn":
        raise InputError("a loop is no scaling test", where="--scaling", expected="md or train")
    several = max(int(resources.get(key, 1)) for key in ("nodes", "ntasks-per-node")) > 1 or mpi != "auto"
    kind = {"md": "-cpu", "train": "-mpi" if several else "-cpu", "learn": ""}[command]
    on_gpus: list[str] = []  # for `scaling`: the templates for GPUs have these words themselves
    if "gpus-per-node" in resources and command != "learn":  # a loop's own files say what runs on GPUs
        kind, on_gpus = "-gpu", ["--device", "cuda"]
        resources = {"ntasks-per-node": resources["gpus-per-node"], **resources}
    text = template("scaling.slurm" if scaling else f"{command}{kind}.slurm")
    words = [command, *on_gpus, *arguments] if scaling else arguments
    here = shlex.quote(str(Path(sys.executable).parent))
    variables = {"arguments": f"({shlex.join(words)})", "PATH": f'{here}:"$PATH"'}
    if "\nmpi=" in text:
        if mpi == "auto":
            library = mpi_library()
            mpi = NO_MPI if library is None and command == "train" and not scaling else srun_plugin(library)
        variables["mpi"] = shlex.quote(mpi)
    if mpi == NO_MPI and "--data-parallel" not in arguments:
        variables["arguments"] = f"({shlex.join([*words, '--data-parallel', 'torch'])})"
    script = fill(text, resources, variables)
    if scaling:
        ranks = math.prod(
            int(n) for n in re.findall(r"^#SBATCH --(?:nodes|ntasks-per-node)=(\d+)", script, re.MULTILINE)
        )
        script = fill(script, {"array": f"0-{ranks.bit_length() - 1}%1"}, {})
    return script


def template(name: str) -> str:
    """The text of a file of `jobscripts/`."""
    return files("dphpc").joinpath("_jobscripts", name).read_text(encoding="utf-8")


def fill(script: str, directives: Mapping[str, str], variables: Mapping[str, str]) -> str:
    """A template with values filled in; the comments beside them stay.

    Parameters
    ----------
    directives
        Options of sbatch to their values: lines `#SBATCH --key=…`, switched on where the template has `##SBATCH`.
    variables
        Shell variables to what is assigned to them, as the shell reads it: lines `name=…` or `export name=…`.

    Raises
    ------
    InputError
        A directive's value would not be one word.
    """
    for key, value in directives.items():
        if not re.fullmatch(r"[^\s#]+", value):
            raise InputError(f"'{value}' cannot stand in a job script", where=f"--{key}", expected="one word without #")
        old = _only(rf"^##?SBATCH --{re.escape(key)}=\S+( *)", script)
        new = f"#SBATCH --{key}={value}"
        if old[1]:  # a comment follows, which stays in its column
            new = new.ljust(len(old[0]) - 1) + " "
        script = script[: old.start()] + new + script[old.end() :]
    for name, value in variables.items():
        old = _only(rf"^(?:export )?{name}=(.*)$", script)
        script = script[: old.start(1)] + value + script[old.end(1) :]
    return script


def _only(pattern: str, script: str) -> re.Match[str]:
    """The only match of a pattern in a template."""
    found = list(re.finditer(pattern, script, re.MULTILINE))
    assert len(found) == 1, f"the template has {len(found)} lines like {pattern}"
    return found[0]


def submit(path: Path) -> str:
    """Hand a script to sbatch; returns what it says.

    Raises
    ------
    InputError
        sbatch is missing, or refuses the script.
    """
    require_sbatch()
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"sbatch refuses the script:\n{done.stderr.strip()}", where=str(path))
    return done.stdout.strip()


def require_sbatch() -> None:
    """Refuse to submit on a machine without Slurm."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "there is no sbatch on this machine: nothing can be submitted", where="--submit",
            remedy="leave out --submit and hand the script to sbatch on the cluster's login node",
        )  # fmt: skip


def mpi_library() -> str | None:
    """The version text of the MPI that mpi4py loads, or None; asked in a child process, as a library may abort."""
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    return output_of(sys.executable, "-c", code)


def srun_plugin(library: str | None) -> str:
    """The plug-in that `srun --mpi=` needs for an MPI; `MPIRUN` if this cluster's srun does not have it.

    Parameters
    ----------
    library
        As `mpi_library` returns it.

    Raises
    ------
    InputError
        There is no MPI, or it is not known how srun starts its ranks.
    """
    choose = f"--mpi pmix, --mpi pmi2 or --mpi {MPIRUN}"
    if library is None:
        raise InputError(
            "mpi4py finds no MPI to start ranks with",
            remedy=f"pip install mpi4py with the cluster's MPI loaded, or say {choose}",
        )
    found = next((plugin for word, plugin in SRUN_PLUGINS.items() if word in library), None)
    if found is None:
        raise InputError(f"how srun starts this MPI is not known: {library.splitlines()[0]}", remedy=f"say {choose}")
    return found if found in _srun_list(found) else MPIRUN


def _srun_list(otherwise: str) -> list[str]:
    """The plug-ins of this machine's srun; without Slurm, `otherwise` alone."""
    if shutil.which("srun") is None:
        return [otherwise]
    done = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).split() if done.returncode == 0 else [otherwise]
