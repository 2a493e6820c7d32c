"""How much memory a run takes, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dphpc.core.errors import InputError
from dphpc.core.memory import memory_available
from dphpc.core.state import FIELDS
from dphpc.parallel.comm import Communicator
from dphpc.parallel.domain import Domain
from dphpc.potential.contract import Potential

PROCESS_BYTES = 300e6
"""Python, its libraries and the model, of one rank (271 MB at its peak with the water model)."""

WORK_BYTES = 2 * 24 + 2 * 8
"""Of the engine for each local atom: displacements, positions at the last rebuild, mass and its inverse."""

GHOST_BYTES = 4 + 24 + 24 + 8 + 8 + 4
"""Of the halo for each ghost: index to send, displacement, message buffer; place, group and owner on the way back."""

SEARCH_BYTES = 56
"""Of the neighbor search for each local atom and ghost, while it runs."""


@dataclass(frozen=True)
class Estimate:
    """Bytes: for each local atom, its ghosts included, and of all ranks of the fullest node."""

    per_atom: float
    total: float
    node: float
    available: float

    def __str__(self) -> str:
        return (
            f"{self.per_atom / 1e3:.2f} kB/atom, {self.total / 1e9:.2f} GB in total; "
            f"{self.node / 1e9:.2f} GB on a node with {self.available / 1e9:.1f} GB available"
        )


def estimate(
    n_atoms: int, domain: Domain, potential: Potential, reach: float, comm: Communicator, more: float = 0.0
) -> Estimate:
    """What the run will take, for a uniform density; collective.

    Parameters
    ----------
    reach
        Å, of the neighbor list.
    more
        Bytes for each local atom that are needed beside.
    """
    neighbors = min(4.0 / 3.0 * np.pi * reach**3 * n_atoms / domain.box.volume, 1e5)
    ghosts = domain.ghost_ratio(reach)
    state = sum(np.dtype(f.dtype).itemsize * int(np.prod(f.shape)) for f in FIELDS) * 9 / 8
    per_atom = (
        (1.0 + ghosts) * (state + SEARCH_BYTES) + ghosts * GHOST_BYTES
        + WORK_BYTES + 8 + 4 * neighbors + potential.memory_per_atom() + more
    )  # fmt: skip
    ranks_on_node = int(comm.allreduce(np.array([comm.node_size]), "max")[0])
    available = float(comm.allreduce(np.array([memory_available()]), "min")[0])
    of_rank = per_atom * n_atoms / comm.size + PROCESS_BYTES
    return Estimate(per_atom, of_rank * comm.size, of_rank * ranks_on_node, available)


def refuse_if_too_large(needed: Estimate, n_atoms: int) -> None:
    """Raise InputError with the numbers if the run does not fit."""
    if needed.node > needed.available:
        fits = int(n_atoms * needed.available / needed.node)
        raise InputError(
            f"{n_atoms:,} atoms need {needed.node / 1e9:.1f} GB on a node, of which {needed.available / 1e9:.1f} GB "
            "are available",
            where=f"memory: {needed}",
            expected=f"at most about {fits:,} atoms on these nodes",
            remedy="use more nodes or a smaller 'replicate'; ignore_memory_limit: true starts all the same",
        )
