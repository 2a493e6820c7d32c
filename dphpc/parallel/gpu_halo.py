"""The halo of a rank whose atoms are in a GPU's memory: positions go to ghosts, integer forces come back.

The routes are those of `Halo`, or on one rank periodic images that were found on the GPU.  What other ranks need is
packed on the GPU, copied to pinned host memory, sent by MPI, copied to the GPU and put into its place; a rank's own
ghosts never leave the GPU.  Only with `gpu_aware_mpi` is MPI given GPU memory: one that is not GPU-aware crashes on it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device, Event
from dphpc.parallel.comm import Communicator, Exchange, Requests
from dphpc.parallel.flight import Flight
from dphpc.parallel.halo import Routes, messages

GPU_GHOST_BYTES = 4 + 4 * 24
"""GPU memory for each ghost: index to send, displacement, positions packed and received, forces received."""


class GhostOps(Protocol):
    """The operations on the GPU that a halo needs, see `dphpc.ops.ghosts.cuda.CudaGhosts`."""

    device: Device

    def take(self, array: Array, index: Array, out: Array) -> None:
        """Set `out` (n, …) to the rows of an array at index (n,) int32."""

    def displace(self, source: Array, index: Array | None, displacements: Array, ghosts: Array) -> None:
        """Set ghosts (n, 3) to source[index] + displacements (n, 3); without an index to source + displacements."""

    def add(self, values: Array, index: Array, totals: Array) -> None:
        """Add values (n, 3) to totals (…, 3) at index (n,) int32, both int64."""


class GpuHalo:
    """Refreshes ghosts and reduces their forces in GPU memory.

    Parameters
    ----------
    gpu_aware_mpi
        Whether MPI can read and write GPU memory.
    """

    def __init__(self, comm: Communicator, ops: GhostOps, gpu_aware_mpi: bool = False) -> None:
        self.comm, self.ops = comm, ops
        self._buffers = Buffers(ops.device.zeros)
        self._forward = _Lane(comm, ops.device, np.float64, gpu_aware_mpi)
        self._back = _Lane(comm, ops.device, np.int64, gpu_aware_mpi)

    @property
    def gpu_nbytes(self) -> int:
        """Bytes that the halo keeps on the GPU."""
        return sum(b.nbytes for b in (self._buffers, self._forward.gpu, self._back.gpu))

    @property
    def host_nbytes(self) -> int:
        """Bytes that the halo keeps in pinned host memory."""
        return self._forward.host.nbytes + self._back.host.nbytes

    def follow(self, routes: Routes, n_local: int) -> None:
        """Take over the routes that `Halo.build_ghosts` found; no messages may be under way.

        The caller uploads the state's positions, types and ids, ghosts included.
        """
        send = self._buffers.get("send", routes.send.shape, np.int32)
        displacements = self._buffers.get("displacements", routes.displacements.shape, np.float64)
        for values, array in ((routes.send, send), (routes.displacements, displacements)):
            if values.size:
                self.ops.device.upload(values, array)
        self._take_up(send, displacements, routes.n_own, n_local)
        sent, received = (bounds[1:] - bounds[1] for bounds in (routes.send_bounds, routes.ghost_bounds))
        self._forward.route(routes.partners, sent, received)
        self._back.route(routes.partners, received, sent)

    def follow_images(self, owners: Array, displacements: Array, n_local: int) -> None:
        """Take over the images of a single rank: owners (n_ghost,) int32 and displacements (n_ghost, 3) Å."""
        assert self.comm.size == 1
        self._take_up(owners, displacements, len(owners), n_local)

    @property
    def ways(self) -> Hashable:
        """On a single rank: what decides the launches of `refresh` and `reduce`, for the key of a graph."""
        address = self.ops.device.address
        return address(self._send), address(self._displacements), self._own, self._n_local

    def start_refresh(self, positions: Array) -> Flight:
        """Begin to refresh the ghosts of positions (n_all, 3) float64; collective.

        Until it has landed, only kernels that need no ghosts of other ranks may be launched.
        """
        own, ghosts, displacements = self._own, self._ghosts(positions), self._displacements
        packed = self._buffers.get("packed", (len(self._send) - own, 3), np.float64)
        self.ops.take(positions, self._send[own:], packed)
        flight = self._forward.start(
            packed, lambda received: self.ops.displace(received, None, displacements[own:], ghosts[own:])
        )
        self.ops.displace(positions, self._send[:own], displacements[:own], ghosts[:own])
        return flight

    def start_reduce(self, forces: Array) -> Flight:
        """Begin to add the ghosts' forces (n_all, 3) int64 to their owners'; collective.

        Until it has landed, kernels may add to forces of this rank's atoms, but not to those of other ranks'.
        """
        own, ghosts = self._own, self._ghosts(forces)

        def finish(received: Array) -> None:
            self.ops.add(received, self._send[own:], forces)
            self.ops.add(ghosts[:own], self._send[:own], forces)

        return self._back.start(ghosts[own:], finish)

    def refresh(self, positions: Array) -> None:
        """Refresh the ghosts of positions (n_all, 3) float64; collective."""
        self.start_refresh(positions).land()

    def reduce(self, forces: Array) -> None:
        """Add the ghosts' forces (n_all, 3) int64 to their owners'; collective."""
        self.start_reduce(forces).land()

    def _take_up(self, send: Array, displacements: Array, own: int, n_local: int) -> None:
        self._send, self._displacements, self._own, self._n_local = send, displacements, own, n_local

    def _ghosts(self, array: Array) -> Array:
        return array[self._n_local : self._n_local + len(self._displacements)]


class _Lane:
    """One of the two directions, owners to ghosts or back: rows of three numbers, sent to and got from partners."""

    def __init__(self, comm: Communicator, device: Device, dtype: Any, gpu_aware: bool) -> None:
        self._comm, self._device, self._dtype, self._gpu_aware = comm, device, dtype, gpu_aware
        self.gpu, self.host = Buffers(device.zeros), Buffers(device.pinned)
        self._read: Event = device.mark()  # when what the last messages brought has been read
        self.route([], np.zeros(1, np.int64), np.zeros(1, np.int64))

    def route(self, partners: list[int], sent: NDArray[np.int64], received: NDArray[np.int64]) -> None:
        """Set where each partner's rows begin and end, in what is sent and in what is received."""
        self._read.synchronize()
        self._partners, self._bounds = partners, (sent.tolist(), received.tolist())
        n_sent, n_received = int(sent[-1]), int(received[-1])
        self._incoming = self.gpu.get("incoming", (n_received, 3), self._dtype)
        if not self._gpu_aware:
            self._down = self.host.get("down", (n_sent, 3), self._dtype)
            self._up = self.host.get("up", (n_received, 3), self._dtype)

    def start(self, outgoing: Array, finish: Callable[[Array], None]) -> Flight:
        """Send rows (n_sent, 3) once the GPU has written them; `finish` gets those received (n_received, 3)."""
        device, incoming = self._device, self._incoming
        if not self._partners:
            return Flight(Requests([]), lambda: finish(incoming))
        source, target = outgoing, incoming
        self._read.synchronize()
        if not self._gpu_aware:
            source, target = self._down, self._up
            if len(source):
                device.start_download(outgoing, source)
        written = device.mark()
        sent, received = self._bounds
        arriving = self._comm.post([], messages(self._partners, target, received))

        def land() -> None:
            if not self._gpu_aware and len(target):
                device.start_upload(target, incoming)
            finish(incoming)
            self._read = device.mark()

        leaving = messages(self._partners, source, sent)
        return Flight(_Departing(written, lambda: self._comm.post(leaving, []), arriving), land)


class _Departing:
    """An exchange whose messages are sent once the GPU has written them, and received meanwhile."""

    def __init__(self, written: Event, send: Callable[[], Exchange], arriving: Exchange) -> None:
        self._written, self._send, self._arriving = written, send, arriving
        self._leaving: Exchange | None = None

    def ready(self) -> bool:
        """Whether all have been sent and received; asking starts the sends and drives MPI's progress."""
        if self._leaving is None and self._written.done:
            self._leaving = self._send()
        return self._leaving is not None and self._leaving.ready() and self._arriving.ready()

    def wait(self) -> None:
        """Wait for all messages; their arrays must not be touched before."""
        if self._leaving is None:
            self._written.synchronize()
            self._leaving = self._send()
        self._leaving.wait()
        self._arriving.wait()
