"""Sums of gradients over the ranks of a training: by plain MPI, torch.distributed or Horovod.

The only importer of Horovod.  All three give the same sums; they differ in how the data travel (torch's NCCL: directly
between GPUs) and in what is installed on a machine.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, distributed

from dphpc.core.errors import InputError
from dphpc.parallel.back_ends import Compression, DataParallel
from dphpc.parallel.comm import Communicator, Exchange, Requests, together
from dphpc.parallel.process_group import ProcessGroup, Works

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class GradientSum(Protocol):
    """Adds up tensors over all ranks; every rank calls with the same shapes in the same order."""

    def start(self, values: Tensor) -> Exchange:
        """Begin to sum a contiguous tensor in place; it holds the sum after `wait` of the exchange."""

    def describe(self) -> str:
        """One line for the log."""


class Then:
    """An exchange after which `finish` is called."""

    def __init__(self, exchange: Exchange, finish: Callable[[], object]) -> None:
        self._exchange, self._finish = exchange, finish

    def ready(self) -> bool:
        """Whether the exchange is ready."""
        return self._exchange.ready()

    def wait(self) -> None:
        """Wait for the exchange, then finish."""
        self._exchange.wait()
        self._finish()


class MpiSum:
    """MPI_Iallreduce through mpi4py."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def start(self, values: Tensor) -> Exchange:
        """See `GradientSum.start`."""
        return self._comm.start_sum(values.numpy())

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return "MPI"


class TorchSum:
    """torch.distributed: NCCL where each rank's gradients are on a GPU of its own, else Gloo.  Open until `close`.

    Attributes
    ----------
    between_gpus
        Whether sums go by NCCL, between GPUs; Gloo takes tensors in host memory.
    """

    def __init__(self, comm: Communicator, device: torch.device) -> None:
        self._own = None if isinstance(comm, ProcessGroup) else ProcessGroup.beside(comm)
        self._shared = device.type == "cuda" and not one_gpu_each(comm.allgather(_gpu(device)))
        self.between_gpus = device.type == "cuda" and not self._shared and distributed.is_nccl_available()
        self._group = distributed.new_group(backend="nccl") if self.between_gpus else None

    def start(self, values: Tensor) -> Exchange:
        """See `GradientSum.start`."""
        return Works([distributed.all_reduce(values, group=self._group, async_op=True)])

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        how = "NCCL" if self.between_gpus else "Gloo, as ranks share a GPU" if self._shared else "Gloo"
        return f"torch.distributed ({how})"

    def close(self) -> None:
        """Leave the process groups that were made for this sum."""
        if self._own is not None:
            self._own.close()
        elif self._group is not None:
            distributed.destroy_process_group(self._group)


class HorovodHandle:
    """A sum by Horovod that is under way."""

    def __init__(self, hvd: Any, handle: int) -> None:
        self._hvd, self._handle = hvd, handle

    def ready(self) -> bool:
        """Whether the sum is done."""
        return bool(self._hvd.poll(self._handle))

    def wait(self) -> None:
        """Wait for the sum."""
        self._hvd.synchronize(self._handle)


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

    def start(self, values: Tensor) -> Exchange:
        """See `GradientSum.start`."""
        # Horovod matches the ranks' tensors by name and remembers every name, so names are used again.  They are the
        # same on all ranks, and the same in each step, as a step begins all its sums before it waits for any.
        handle = self._hvd.allreduce_async_(values, op=self._hvd.Sum, name=f"dphpc.{self._n_open}")
        self._n_open += 1
        return Then(HorovodHandle(self._hvd, handle), self._closed)

    def _closed(self) -> None:
        self._n_open -= 1

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return "Horovod"

    def close(self) -> None:
        """End Horovod's threads."""
        self._hvd.shutdown()


class ShortMpiSum:
    """Sums by MPI of numbers sent in half precision; each rank sums one part of the tensor, in float32, for all.

    A rank sends and receives as much as in a ring all-reduce, 2·(N − 1)/N of the tensor, at two bytes a number.
    """

    def __init__(self, comm: Communicator, compression: Literal["fp16", "bf16"]) -> None:
        self._comm, self.compression = comm, compression

    def start(self, values: Tensor) -> Exchange:
        """See `GradientSum.start`; the sum is complete on return."""
        size, n, dtype = self._comm.size, values.numel(), _DTYPES[self.compression]
        short = torch.zeros(size * -(-n // size), dtype=dtype)
        short[:n] = values
        parts = self._comm.exchange(short.view(torch.int16).view(size, -1).numpy())
        summed = torch.from_numpy(parts).view(dtype).float().sum(dim=0).to(dtype)
        everywhere = self._comm.stack(summed.view(torch.int16).numpy())
        values.copy_(torch.from_numpy(everywhere).view(dtype).view(-1)[:n])
        return Requests([])

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return f"MPI in {self.compression}"


class ShortSum:
    """Sums by a library in half precision: 11 (fp16) or 8 (bf16) significant bits of each number."""

    def __init__(self, inner: GradientSum, compression: Literal["fp16", "bf16"]) -> None:
        self._inner, self.compression = inner, compression

    def start(self, values: Tensor) -> Exchange:
        """See `GradientSum.start`."""
        short = values.to(_DTYPES[self.compression])
        return Then(self._inner.start(short), lambda: values.copy_(short))

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return f"{self._inner.describe()} in {self.compression}"


class ThroughHost:
    """Sums of tensors on a GPU by a library that takes tensors in host memory."""

    def __init__(self, inner: GradientSum) -> None:
        self._inner = inner

    def start(self, values: Tensor) -> Exchange:
        """See `GradientSum.start`."""
        here = values.to("cpu", copy=True)
        return Then(self._inner.start(here), lambda: values.copy_(here))

    def describe(self) -> str:
        """See `GradientSum.describe`."""
        return f"{self._inner.describe()} through the host"


@contextlib.contextmanager
def gradient_sum(
    kind: DataParallel, comm: Communicator, compression: Compression = "none", device: str | torch.device = "cpu"
) -> Iterator[GradientSum]:
    """A sum of this kind over all ranks, open inside the context; collective.

    `auto` is MPI for gradients in host memory: the ranks use it anyway, and between CPUs torch was measured to be no
    faster.  For gradients on GPUs it is torch if that has NCCL.

    Parameters
    ----------
    device
        Device that holds this rank's gradients: "cpu", "cuda" or "cuda:1".

    Raises
    ------
    InputError
        A library is missing or does not fit the ranks, or cannot add numbers of that precision.
    """
    device = torch.device(device)
    if kind == "auto":
        kind = "torch" if device.type == "cuda" and distributed.is_nccl_available() else "mpi"
    with together(comm):
        if comm.size > 1 and (kind, compression) == ("horovod", "bf16"):
            raise InputError("Horovod has no bf16", where="dphpc/gradient_compression", expected="fp16 or none")
    library: TorchSum | HorovodSum | None = None
    sums: GradientSum
    if kind == "mpi" or comm.size == 1:
        sums = MpiSum(comm) if compression == "none" else ShortMpiSum(comm, compression)
    else:
        sums = library = TorchSum(comm, device) if kind == "torch" else HorovodSum(comm)
    if device.type != "cpu" and not (isinstance(library, TorchSum) and library.between_gpus):
        sums = ThroughHost(sums)
    if library is not None and compression != "none":
        sums = ShortSum(sums, compression)
    try:
        yield sums
    finally:
        if library is not None:
            library.close()


def one_gpu_each(gpus: list[tuple[str, str]]) -> bool:
    """Whether each rank has a GPU of its own, as NCCL demands; `gpus` holds (node, GPU) of each rank."""
    return len(set(gpus)) == len(gpus)


def difference_from_mpi(kind: DataParallel, comm: Communicator) -> float:
    """Largest difference between a library's sum of random numbers of order 1 and MPI's own; collective."""
    ours = torch.randn(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(comm.rank))
    expected = torch.from_numpy(comm.allreduce(ours.numpy()))
    with gradient_sum(kind, comm) as gradients:
        gradients.start(ours).wait()
    return float((ours - expected).abs().max())


def _gpu(device: torch.device) -> tuple[str, str]:
    """A GPU's node and UUID; its index counts the GPUs that a process sees, which may differ from rank to rank."""
    return platform.node(), str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index))
