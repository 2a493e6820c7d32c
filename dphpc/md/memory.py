"""Estimate of the memory that a run needs, compared with what is available."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np

from dphpc.core.box import Box
from dphpc.core.device import Device
from dphpc.core.errors import InputError
from dphpc.core.memory import memory_available
from dphpc.core.state import FIELDS
from dphpc.ops.ghosts import cuda as gpu_ghosts
from dphpc.ops.neighbors import cuda as gpu_search
from dphpc.parallel import gpu_halo
from dphpc.parallel.comm import Communicator
from dphpc.parallel.domain import Domain
from dphpc.potential.contract import Potential

PROCESS_BYTES = 300e6
"""Host memory of each rank: Python, its libraries and the model (271 MB at its peak with the water model)."""

WORK_BYTES = 24 + 8
"""The engine's bytes per local atom: its position at the last rebuild, and its displacement since."""

GHOST_BYTES = 4 + 24 + 24
"""The halo's bytes per ghost: index to send, displacement, message buffer."""

SEARCH_BYTES = 56
"""The neighbor search's bytes per local atom and ghost, while it runs."""

GPU_BYTES = 750e6
"""GPU memory of each model of a rank, whatever the number of atoms: tables, nets, what the libraries keep, and a batch
of features (at most `BATCH_BYTES` of ops/energy/tiles.py)."""

GPU_ATOM_BYTES = 24 * 4 + 24 * 3 + 8 + 4 + 12 + 4 + 4 + 24 + 4 + 8 + 8 + 8
"""GPU memory per local atom: position, velocity, force and position when the list was built; copies of the first three
for a window; id, type, images, whether it is fixed, group, sum of forces, center, energy, largest argument of the
table, row of the list."""

GPU_GHOST_BYTES = 24 + 4 + 8 + 24
"""GPU memory per ghost: position, type, id, sum of forces."""

GPU_ROUTE_BYTES = 4 + 24
"""GPU memory per ghost, on a rank that has all atoms: owner and displacement, as the host found them."""

KEPT_BYTES = 8 + 4 + 12 + 4 + 4
"""GPU memory per local atom while atoms are sorted: id, type, images, whether it is fixed and group."""

PART_BYTES = 4 + 4
"""GPU memory per local atom, with several ranks, while parts are formed: whether it is near a face, and its part."""

BORDER_BYTES = 4 + 36
"""GPU memory per atom near a face while it is downloaded: its place and fields; counted for each ghost, as there are
more ghosts than such atoms."""

GPU_CALL_BYTES = 24 + 4 + 24
"""GPU memory per atom and ghost for each model that is called from the host: position, type, sum of forces; a list is
added to them.  The model that drives the run is called so when the host must find out what is wrong with a step."""

HEAD_ROOM = 9 / 8
"""Factor by which arrays that keep their memory may be larger than needed."""

SNAPSHOT_BYTES = HEAD_ROOM * (8 + 4 + 12 + 4 + 24 + 24 + 24)
"""Host memory per local atom while a frame of atoms on a GPU is written: id, type, images, whether it is fixed,
position, velocity, force."""


@dataclass(frozen=True)
class GpuRoom:
    """GPU memory: bytes per local atom, its ghosts included; bytes free for a rank; atoms that fit on all GPUs."""

    per_atom: float
    free: float
    atoms: int

    def __str__(self) -> str:
        return (
            f"{self.free / 1e9:.1f} GB of GPU memory free for each rank, {self.per_atom / 1e3:.2f} kB/atom: "
            f"room for about {self.atoms:,} atoms"
        )


@dataclass(frozen=True)
class Estimate:
    """Memory of a run.

    Attributes
    ----------
    per_atom
        Bytes per local atom, its ghosts included.
    total, node
        Bytes of all ranks, and of the ranks of the node that has most.
    available
        Bytes available on the node that has least.
    gpu
        The same for the GPUs; None if atoms do not live on GPUs.
    box
        The box for which it is, if that is not the first one.
    """

    per_atom: float
    total: float
    node: float
    available: float
    gpu: GpuRoom | None = None
    box: Box | None = None

    def __str__(self) -> str:
        text = (
            f"{self.per_atom / 1e3:.2f} kB/atom, {self.total / 1e9:.2f} GB in total; "
            f"{self.node / 1e9:.2f} GB on a node with {self.available / 1e9:.1f} GB available"
        )
        return text + (f", once the box is {self.box.lengths}" if self.box else "")


def estimate(
    n_atoms: int,
    domain: Domain,
    potential: Potential,
    reach: float,
    comm: Communicator,
    more: float = 0.0,
    device: Device | None = None,
    models: int = 1,
) -> Estimate:
    """The memory that a run will need, for a uniform density; collective.

    Parameters
    ----------
    domain
        The bricks in the thinnest box of the run, as far as it is known: it has the most ghosts.
    reach
        Å: radius of the neighbor list.
    more
        Further bytes per local atom.
    device
        The GPU on which the atoms live, if they do.
    models
        Number of models that are evaluated on the GPU.
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
    gpu = None if device is None else _gpu_room(device, neighbors, ghosts, models, comm)
    return Estimate(per_atom, of_rank * comm.size, of_rank * ranks_on_node, available, gpu)


def _gpu_room(device: Device, neighbors: float, ghosts: float, models: int, comm: Communicator) -> GpuRoom:
    """The memory of a GPU for each of the ranks that share it; collective."""
    of_model = (1.0 + ghosts) * GPU_CALL_BYTES + 4 * neighbors
    more = gpu_search.memory_per_atom(neighbors, ghosts)
    if comm.size == 1:
        of_ghost = GPU_GHOST_BYTES + GPU_ROUTE_BYTES
        more += gpu_ghosts.memory_per_atom(ghosts) + HEAD_ROOM * KEPT_BYTES
    else:
        of_ghost = GPU_GHOST_BYTES + gpu_halo.GPU_GHOST_BYTES + BORDER_BYTES
        more += gpu_ghosts.memory_per_atom(0.0) + HEAD_ROOM * (KEPT_BYTES + PART_BYTES)
    per_atom = HEAD_ROOM * (GPU_ATOM_BYTES + ghosts * of_ghost + models * of_model) + more
    gpus = comm.allgather((platform.node(), device.name))
    free = device.free_memory() / gpus.count(gpus[comm.rank]) - GPU_BYTES * models
    least = max(float(comm.allreduce(np.array([free]), "min")[0]), 0.0)
    return GpuRoom(per_atom, least, int(least / per_atom) * comm.size)


def refuse_if_too_large(needed: Estimate, n_atoms: int) -> None:
    """Raise InputError with the numbers if the run does not fit into memory."""
    if needed.node > needed.available:
        fits = int(n_atoms * needed.available / needed.node)
        raise InputError(
            f"{n_atoms:,} atoms need {needed.node / 1e9:.1f} GB on a node, of which {needed.available / 1e9:.1f} GB "
            "are available",
            where=f"memory: {needed}",
            expected=f"at most about {fits:,} atoms on these nodes",
            remedy="use more nodes or a smaller 'replicate'; ignore_memory_limit: true starts all the same",
        )
    if needed.gpu and n_atoms > needed.gpu.atoms:
        raise InputError(
            f"{n_atoms:,} atoms do not fit into the GPUs' memory",
            where=f"GPU: {needed.gpu}",
            expected=f"at most about {needed.gpu.atoms:,} atoms on these GPUs",
            remedy="use more GPUs or a smaller 'replicate'; ignore_memory_limit: true starts all the same",
        )
