"""Communication between ranks; the only importer of mpi4py.

`world()` is MPI when the process was started by an MPI launcher (or mpi4py was already loaded), and
one rank alone otherwise, so that nothing here needs MPI to be installed.

When a rank fails: before a run, after each phase, `together` lets all ranks raise the same error, which one
of them prints.  During a run `ends_together` aborts the job with one message, so that no rank waits for one
that has ended.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DphpcError, InputError, RunError
from dphpc.parallel.launch import launched

T = TypeVar("T")
Operation = Literal["sum", "min", "max"]


class Exchange(Protocol):
    """Messages under way; `wait` must be called even if `ready` was true."""

    def ready(self) -> bool:
        """Whether all have been sent and received; asking drives MPI's progress."""

    def wait(self) -> None:
        """Wait for all messages; their arrays must not be touched before."""


Message = tuple[int, NDArray]
"""A partner's rank and a contiguous array."""


class Communicator(Protocol):
    """A group of ranks.  All methods except `abort` and `post` are collective.

    `node_size` is the number of ranks on this rank's node, `node_rank` its rank among them.  `handle` is mpi4py's
    communicator, for other libraries that use MPI; None without MPI.
    """

    rank: int
    size: int
    node_size: int
    node_rank: int
    handle: Any

    def allreduce(self, values: NDArray, operation: Operation = "sum") -> NDArray:
        """The values (an array of numbers) combined over all ranks."""

    def start_sum(self, values: NDArray) -> Exchange:
        """Begin to add up a contiguous array of float64 or float32 over all ranks, in place."""

    def exchange(self, rows: NDArray) -> NDArray:
        """All-to-all: rank k gets row k of every rank's array (size, …), as an array (size, …)."""

    def stack(self, row: NDArray) -> NDArray:
        """All ranks' arrays (…) as one (size, …), on every rank."""

    def bcast(self, value: T) -> T:
        """Rank 0's value."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        """Begin to send arrays and to fill others, at most one each way for a pair of ranks."""

    def allgather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    def abort(self, message: str) -> NoReturn:
        """End the job on all ranks after printing `message`."""


class Requests:
    """MPI requests, or none."""

    def __init__(self, requests: list[Any]) -> None:
        self._requests = requests

    def ready(self) -> bool:
        """MPI_Testall."""
        return not self._requests or bool(self._requests[0].Testall(self._requests))

    def wait(self) -> None:
        """MPI_Waitall."""
        if self._requests:
            self._requests[0].Waitall(self._requests)


class Serial:
    """One rank by itself."""

    rank = 0
    size = 1
    node_size = 1
    node_rank = 0
    handle = None

    def allreduce(self, values: NDArray, operation: Operation = "sum") -> NDArray:
        """The values themselves."""
        return np.array(values)

    def start_sum(self, values: NDArray) -> Exchange:
        """The values stay as they are."""
        return Requests([])

    def exchange(self, rows: NDArray) -> NDArray:
        """The rows themselves."""
        return rows

    def stack(self, row: NDArray) -> NDArray:
        """The row alone."""
        return row[None]

    def bcast(self, value: T) -> T:
        """The value itself."""
        return value

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        """There is nobody to send to."""
        assert not sends and not receives
        return Requests([])

    def allgather(self, value: T) -> list[T]:
        """The value alone."""
        return [value]

    def barrier(self) -> None:
        """Nobody to wait for."""

    def abort(self, message: str) -> NoReturn:
        """End this process."""
        print(message, file=sys.stderr, flush=True)
        raise SystemExit(1)


class Mpi:
    """The ranks of an mpi4py communicator."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self._comm = self.handle = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.node_size: int = node.Get_size()
        self.node_rank: int = node.Get_rank()
        node.Free()
        self._operations = {"sum": MPI.SUM, "min": MPI.MIN, "max": MPI.MAX}
        self._in_place = MPI.IN_PLACE

    def allreduce(self, values: NDArray, operation: Operation = "sum") -> NDArray:
        """MPI_Allreduce."""
        values = np.ascontiguousarray(values)
        result = np.empty_like(values)
        self._comm.Allreduce(values, result, self._operations[operation])
        return result

    def start_sum(self, values: NDArray) -> Exchange:
        """MPI_Iallreduce."""
        return Requests([self._comm.Iallreduce(self._in_place, values)])

    def exchange(self, rows: NDArray) -> NDArray:
        """MPI_Alltoall of raw bytes."""
        rows = np.ascontiguousarray(rows)
        result = np.empty_like(rows)
        self._comm.Alltoall(_bytes(rows), _bytes(result))
        return result

    def stack(self, row: NDArray) -> NDArray:
        """MPI_Allgather of raw bytes."""
        row = np.ascontiguousarray(row)
        result = np.empty((self.size, *row.shape), row.dtype)
        self._comm.Allgather(_bytes(row), _bytes(result))
        return result

    def bcast(self, value: T) -> T:
        """MPI_Bcast; large arrays travel without a copy."""
        if self._comm.bcast(isinstance(value, np.ndarray)):
            return self._bcast_array(value)  # type: ignore[return-value, arg-type]
        return self._comm.bcast(value)

    def _bcast_array(self, value: NDArray) -> NDArray:
        shape, dtype = self._comm.bcast((value.shape, value.dtype) if self.rank == 0 else None)
        array = np.ascontiguousarray(value) if self.rank == 0 else np.empty(shape, dtype)
        self._comm.Bcast(array.reshape(-1).view(np.uint8))
        return array

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        """MPI_Irecv and MPI_Isend of raw bytes."""
        requests = [self._comm.Irecv(_bytes(array), rank) for rank, array in receives]
        requests += [self._comm.Isend(_bytes(array), rank) for rank, array in sends]
        return Requests(requests)

    def allgather(self, value: T) -> list[T]:
        """MPI_Allgather of Python objects."""
        return self._comm.allgather(value)

    def barrier(self) -> None:
        """MPI_Barrier."""
        self._comm.Barrier()

    def abort(self, message: str) -> NoReturn:
        """MPI_Abort."""
        print(message, file=sys.stderr, flush=True)
        self._comm.Abort(1)
        raise SystemExit(1)


def world() -> Communicator:
    """All ranks that were started together.

    Raises
    ------
    InputError
        Several ranks were started but mpi4py is missing, or its MPI is not the launcher's.
    """
    launcher, _, size = launched()
    if not launcher and "mpi4py.MPI" not in sys.modules:
        return Serial()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if size == 1:
            return Serial()
        raise InputError(
            f"{size} ranks were started, but mpi4py cannot be used: {error}",
            expected="mpi4py, built against the MPI whose launcher is used",
            remedy="pip install 'dphpc[mpi]', or pip install --no-binary=mpi4py mpi4py with the machine's MPI loaded",
        ) from None
    comm = MPI.COMM_WORLD
    if launcher and comm.Get_size() != size:
        raise InputError(
            f"{launcher} started {size} ranks, but mpi4py's MPI ({MPI.get_vendor()[0]}) sees {comm.Get_size()}",
            expected="the launcher of the MPI that mpi4py was built against",
            remedy="use that MPI's mpirun, or srun with a matching --mpi=pmi2|pmix; a training can do without: "
            "srun --mpi=none and --data-parallel torch",
        )
    return Mpi(comm) if comm.Get_size() > 1 else Serial()


def agree(comm: Communicator, error: BaseException | None) -> None:
    """Raise on all ranks if any rank has an error; collective.

    The error of the lowest failing rank is raised everywhere, marked so that this rank alone prints it.
    """
    if not comm.allreduce(np.array([error is not None], np.int64), "max")[0]:
        return
    if error is not None and not isinstance(error, DphpcError):
        # A bug on one rank: the message carries its traceback, which the other ranks do not have.
        text = "".join(traceback.format_exception(error)) if comm.size > 1 else ""
        bug = f"rank {comm.rank} failed: {error!r}\n{text}".rstrip()
        shared: DphpcError | None = RunError(str(error) if isinstance(error, OSError) else bug)
    else:
        shared = error
    if comm.size == 1:
        assert error is not None
        raise error
    errors = comm.allgather(shared)
    first = next(i for i, e in enumerate(errors) if e is not None)
    raised = errors[first]
    assert raised is not None
    raised.speaks = comm.rank == first
    raised.agreed = True
    raise raised


@contextlib.contextmanager
def together(comm: Communicator) -> Iterator[None]:
    """A phase in which each rank works by itself: if one fails in it, all raise at its end.

    No communication inside, or the others would wait for the rank that failed.
    """
    error: BaseException | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    agree(comm, error)


def from_first(comm: Communicator, work: Callable[[], T]) -> T:
    """Call `work` on rank 0 only and return its result on all ranks; if it fails, all raise its error.  Collective."""
    result: T | None = None
    with together(comm):
        if comm.rank == 0:
            result = work()
    return comm.bcast(result)  # type: ignore[return-value]


@contextlib.contextmanager
def ends_together(comm: Communicator) -> Iterator[None]:
    """A phase with communication: if one rank fails in it, it aborts the job with one message."""
    try:
        yield
    except BaseException as error:
        if comm.size == 1 or (isinstance(error, DphpcError) and error.agreed):
            raise
        own = f"error: {error}" if isinstance(error, DphpcError) else traceback.format_exc()
        comm.abort(f"rank {comm.rank} of {comm.size}: {own}")


def _bytes(array: NDArray) -> NDArray[np.uint8]:
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)
