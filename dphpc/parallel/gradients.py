"""Sums of gradients over the ranks of a training: by plain MPI, torch.distributed or Horovod.

The only importer of the last two.  All three add the same numbers; they differ in where those travel (torch's NCCL
between GPUs) and in what a machine's users have at hand.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from dphpc.core.errors import InputError
from dphpc.parallel.comm import Communicator, from_first, together

Kind = Literal["auto", "mpi", "torch", "horovod"]
Compression = Literal["none", "fp16", "bf16"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class GradientSum(Protocol):
    """Adds up tensors over all ranks; every rank calls with the same shapes in the same order."""

    def start(self, values: Tensor) -> Callable[[], None]:
        """Begin to sum a contiguous tensor in place; what is returned waits for it."""

    def describe(self) -> str:
        """One line for the log."""


class MpiSum:
    """MPI_Iallreduce through mpi4py."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def start(self, values: Tensor) -> Callable[[], None]:
        """See `GradientSum.start`."""
        return self._comm.start_sum(values.numpy())

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return "MPI"


class TorchSum:
    """A process group of torch.distributed: Gloo between CPUs.  Open until `close`."""

    def __init__(self, comm: Communicator) -> None:
        from torch import distributed

        self._distributed = distributed
        with together(comm):
            if not distributed.is_available():
                raise InputError("this torch was built without torch.distributed", remedy="--data-parallel mpi")
        address = from_first(comm, lambda: _free_address(comm.node_size == comm.size))
        distributed.init_process_group("gloo", init_method=f"tcp://{address}", rank=comm.rank, world_size=comm.size)

    def start(self, values: Tensor) -> Callable[[], None]:
        """See `GradientSum.start`."""
        return self._distributed.all_reduce(values, async_op=True).wait  # type: ignore[union-attr]

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return "torch.distributed (Gloo)"

    def close(self) -> None:
        """Leave the process group."""
        self._distributed.destroy_process_group()


class HorovodSum:
    """Horovod on the MPI that the ranks were started with."""

    def __init__(self, comm: Communicator) -> None:
        with together(comm):
            try:
                import horovod.torch as hvd
            except ImportError as error:
                raise InputError(
                    f"Horovod cannot be used: {error}", remedy="dphpc horovod install, or --data-parallel mpi or torch"
                ) from None
            hvd.init()
            if hvd.size() != comm.size:
                raise InputError(
                    f"Horovod sees {hvd.size()} ranks, MPI {comm.size}", expected="one MPI for both",
                    remedy="dphpc horovod install, in the environment of this mpirun",
                )  # fmt: skip
        self._hvd = hvd
        self._n_open = 0

    def start(self, values: Tensor) -> Callable[[], None]:
        """See `GradientSum.start`."""
        # Horovod pairs the ranks' tensors by name, and remembers names: a step's are those of the step before.
        handle = self._hvd.allreduce_async_(values, op=self._hvd.Sum, name=f"dphpc.{self._n_open}")
        self._n_open += 1

        def finish() -> None:
            self._n_open -= 1
            self._hvd.synchronize(handle)

        return finish

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return "Horovod"

    def close(self) -> None:
        """End Horovod's threads."""
        self._hvd.shutdown()


class ShortMpiSum:
    """Sums by MPI of numbers that travel in half precision: each rank adds up one part, in float32, for all.

    A rank sends and receives what a ring's all-reduce does, 2·(N − 1)/N of the tensor, at two bytes a number.
    """

    def __init__(self, comm: Communicator, compression: Literal["fp16", "bf16"]) -> None:
        self._comm, self.compression = comm, compression

    def start(self, values: Tensor) -> Callable[[], None]:
        """See `GradientSum.start`; the sum is made at once."""
        size, n, dtype = self._comm.size, values.numel(), _DTYPES[self.compression]
        short = torch.zeros(size * -(-n // size), dtype=dtype)
        short[:n] = values
        parts = self._comm.exchange(short.view(torch.int16).view(size, -1).numpy())
        summed = torch.from_numpy(parts).view(dtype).float().sum(dim=0).to(dtype)
        everywhere = self._comm.stack(summed.view(torch.int16).numpy())
        values.copy_(torch.from_numpy(everywhere).view(dtype).view(-1)[:n])
        return lambda: None

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return f"MPI in {self.compression}"


class ShortSum:
    """Sums that a library makes in half precision: 11 (fp16) or 8 bits (bf16) of each number."""

    def __init__(self, inner: GradientSum, compression: Literal["fp16", "bf16"]) -> None:
        self._inner, self.compression = inner, compression

    def start(self, values: Tensor) -> Callable[[], None]:
        """See `GradientSum.start`."""
        short = values.to(_DTYPES[self.compression])
        wait = self._inner.start(short)

        def finish() -> None:
            wait()
            values.copy_(short)

        return finish

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return f"{self._inner.describe()} in {self.compression}"


@contextlib.contextmanager
def gradient_sum(kind: Kind, comm: Communicator, compression: Compression = "none") -> Iterator[GradientSum]:
    """The sum of that kind between all ranks, for as long as the context lasts; collective.

    `auto` is MPI: the ranks have it already, and between CPUs torch was measured to be no faster.

    Raises
    ------
    InputError
        A library is missing or does not fit the ranks, or cannot add numbers of that precision.
    """
    if kind in ("auto", "mpi") or comm.size == 1:
        yield MpiSum(comm) if compression == "none" else ShortMpiSum(comm, compression)
        return
    with together(comm):
        if (kind, compression) == ("horovod", "bf16"):
            raise InputError("Horovod has no bf16", where="dphpc/gradient_compression", expected="fp16 or none")
    library = TorchSum(comm) if kind == "torch" else HorovodSum(comm)
    try:
        yield library if compression == "none" else ShortSum(library, compression)
    finally:
        library.close()


def difference_from_mpi(kind: Kind, comm: Communicator) -> float:
    """Largest difference between a library's sum of random numbers of order 1 and MPI's own; collective."""
    ours = torch.randn(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(comm.rank))
    expected = torch.from_numpy(comm.allreduce(ours.numpy()))
    with gradient_sum(kind, comm) as gradients:
        gradients.start(ours)()
    return float((ours - expected).abs().max())


def _free_address(same_node: bool) -> str:
    """HOST:PORT of this machine, where the other ranks can meet this one."""
    host = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if same_node else socket.gethostname())
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"
