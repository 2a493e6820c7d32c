"""Ranks that communicate by torch.distributed, for a training without MPI; used like `comm.Mpi`."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import os
import platform
import socket
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from dphpc.core.errors import InputError
from dphpc.parallel.comm import Communicator, Exchange, Message, Operation, from_first, together
from dphpc.parallel.launch import launched, meeting_point

T = TypeVar("T")

MEETING = datetime.timedelta(minutes=5)
"""How long ranks wait for one another at the start; then the job fails."""

WORKING = datetime.timedelta(days=30)
"""The same later, e.g. while one rank reads data for all.  A rank that dies is noticed at once, by its connections."""


class Works:
    """Operations of torch.distributed under way."""

    def __init__(self, works: list[Any]) -> None:
        self._works = works

    def ready(self) -> bool:
        """Whether all are done."""
        return all(work.is_completed() for work in self._works)

    def wait(self) -> None:
        """Wait for all operations; their tensors must not be touched before."""
        for work in self._works:
            work.wait()


class ProcessGroup:
    """The ranks of torch.distributed's default process group, through Gloo.

    Parameters
    ----------
    rank, size
        Rank of this process, and number of ranks.
    host, port
        Address at which rank 0 listens and the others connect.

    Raises
    ------
    InputError
        The ranks do not meet there; rank 0 prints it, as it fails whenever another one does.
    """

    handle = None

    def __init__(self, rank: int, size: int, host: str, port: int) -> None:
        self.rank, self.size = rank, size
        try:
            self._store = distributed.TCPStore(host, port, size, is_master=rank == 0, timeout=MEETING)
            distributed.init_process_group("gloo", store=self._store, rank=rank, world_size=size, timeout=WORKING)
        except (RuntimeError, OSError) as error:
            failed = InputError(
                f"the ranks cannot meet at {host}:{port}: {str(error).splitlines()[0]}",
                remedy="set MASTER_ADDR and MASTER_PORT to a host that all nodes reach and to a free port of it",
            )
            failed.speaks = rank == 0
            raise failed from None
        nodes = self.allgather(platform.node())
        self.node_size, self.node_rank = nodes.count(nodes[rank]), nodes[:rank].count(nodes[rank])
        self._operations = {op: getattr(distributed.ReduceOp, op.upper()) for op in ("sum", "min", "max")}

    @classmethod
    def beside(cls, comm: Communicator) -> ProcessGroup:
        """A group of the ranks of another communicator, until `close`; collective."""
        with together(comm):
            require_distributed()
        host, port = from_first(comm, lambda: _free_address(comm.node_size == comm.size))
        return cls(comm.rank, comm.size, host, port)

    def close(self) -> None:
        """Leave the group; collective."""
        distributed.destroy_process_group()

    def leave(self) -> None:
        """Leave the group at the process's end, once all ranks are there: a broken connection would end the others."""
        with contextlib.suppress(RuntimeError):  # another rank has ended without this barrier
            distributed.barrier()
        self.close()

    def allreduce(self, values: NDArray, operation: Operation = "sum") -> NDArray:
        """See `Communicator.allreduce`."""
        result = np.array(values)
        distributed.all_reduce(torch.from_numpy(result), self._operations[operation])
        return result

    def start_sum(self, values: NDArray) -> Exchange:
        """See `Communicator.start_sum`."""
        return Works([distributed.all_reduce(torch.from_numpy(values), async_op=True)])

    def exchange(self, rows: NDArray) -> NDArray:
        """See `Communicator.exchange`."""
        rows = np.ascontiguousarray(rows)
        result = np.empty_like(rows)
        distributed.all_to_all_single(_bytes(result), _bytes(rows))
        return result

    def stack(self, row: NDArray) -> NDArray:
        """See `Communicator.stack`."""
        row = np.ascontiguousarray(row)
        result = np.empty((self.size, *row.shape), row.dtype)
        distributed.all_gather(list(_bytes(result).view(self.size, row.nbytes).unbind()), _bytes(row))
        return result

    def bcast(self, value: T) -> T:
        """See `Communicator.bcast`."""
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        """See `Communicator.post`."""
        works = [distributed.irecv(_bytes(array), rank) for rank, array in receives]
        return Works([*works, *(distributed.isend(_bytes(array), rank) for rank, array in sends)])

    def allgather(self, value: T) -> list[T]:
        """See `Communicator.allgather`."""
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """See `Communicator.barrier`."""
        distributed.barrier()

    def abort(self, message: str) -> NoReturn:
        """End this process; the others end as their connections break.  Only the first to abort prints its message."""
        try:
            first = self._store.add("aborted", 1) == 1
        except RuntimeError:  # rank 0 has gone, and has said why
            first = False
        if first:
            print(message, file=sys.stderr, flush=True)
        os._exit(1)


@functools.cache
def slurm_ranks() -> ProcessGroup:
    """The ranks of this Slurm step, from its environment; collective.

    Raises
    ------
    InputError
        They do not meet, or torch was built without torch.distributed.
    """
    require_distributed()
    _, rank, size = launched()
    group = ProcessGroup(rank, size, *meeting_point())
    atexit.register(group.leave)
    return group


def require_distributed() -> None:
    """Raise InputError if torch was built without torch.distributed."""
    if not distributed.is_available():
        raise InputError("this torch was built without torch.distributed", remedy="--data-parallel mpi")


def _free_address(same_node: bool) -> tuple[str, int]:
    """Host and a free port of this machine, for the other ranks to connect to."""
    host = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if same_node else socket.gethostname())
    with socket.socket() as probe:
        probe.bind(("", 0))
        return host, int(probe.getsockname()[1])


def _bytes(array: NDArray) -> Tensor:
    assert array.flags.c_contiguous
    return torch.from_numpy(array.reshape(-1).view(np.uint8))
