"""How this process was started, alone or as one of several ranks, found from the environment without MPI."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

LAUNCHERS: tuple[tuple[str, str, str], ...] = (
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE"),
    ("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PALS", "PALS_RANKID", "PALS_SIZE"),
    # Slurm sets these for `srun` only; SLURM_NTASKS stands in plain batch scripts too.
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
"""Name of a launcher, its variable with the rank, its variable with the number of ranks."""

START_ANYWHERE = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
"""Lets Open MPI 4 and 5 start ranks as root and more of them than cores, as in a container; MPICH ignores these."""

_OF_A_RANK = re.compile(
    r"OMPI_(COMM_WORLD_|UNIVERSE_SIZE|APP_CTX_|NUM_APP_CTX|ARGV|COMMAND|FIRST_RANKS|FILE_LOCATION)"
    r"|OMPI_MCA_(orte_|ess|initial_wdir$|pmix$)|PRTE_LAUNCHED|PMIX_(?!MCA_)|PMI2?_|HYDI_|MPI_LOCAL"
    r"|MV2_COMM_WORLD_|MPISPAWN_|PALS_|SLURM_(PROCID|LOCALID|GTIDS|STEP|PMI)"
)
"""Variables that a launcher sets for each rank, but none that users set for it (`OMPI_MCA_btl`, `SLURM_JOB_ID`)."""


class Launch(NamedTuple):
    """A start of ranks by a launcher (empty: by none), and the rank of this process."""

    launcher: str = ""
    rank: int = 0
    size: int = 1


def launched() -> Launch:
    """How this process was started, from the environment."""
    for name, rank, size in LAUNCHERS:
        if os.environ.get(rank, "").isdigit() and os.environ.get(size, "").isdigit():
            return Launch(name, int(os.environ[rank]), int(os.environ[size]))
    return Launch()


def unlaunched(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without a launcher's variables, for child processes that are no ranks but may start some."""
    return {name: value for name, value in environment.items() if not _OF_A_RANK.match(name)}


def without_mpi() -> bool:
    """Whether srun started several ranks without a plug-in for MPI (`--mpi=none`)."""
    launch = launched()
    return launch.launcher == "srun" and launch.size > 1 and "PMIX_RANK" not in os.environ


def meeting_point() -> tuple[str, int]:
    """Host and port at which the ranks of a Slurm step meet.

    MASTER_ADDR and MASTER_PORT if they are set; else the step's first node, and a port that follows from the numbers of
    job and step and lies below the range of ephemeral ports.
    """
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    alone = os.environ.get("SLURM_STEP_NUM_NODES") == "1"
    host = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if alone else first_host(nodes))
    job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return host, int(os.environ.get("MASTER_PORT") or 10_000 + (7 * job + step) % 20_000)


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: `node03` of `node[03-05,08],login1`."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0]
