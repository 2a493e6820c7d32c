"""Ghosts in a GPU's memory against those in the host's, on any number of ranks; the host plays a GPU for each."""

from collections.abc import Callable

import numpy as np
import pytest

from dphpc.core.device import Device
from dphpc.core.state import State
from dphpc.ops.ghosts.cuda import CudaGhosts
from dphpc.parallel.comm import Communicator, Serial
from dphpc.parallel.domain import Domain
from dphpc.parallel.gpu_halo import GPU_GHOST_BYTES, GpuHalo
from dphpc.parallel.halo import Flight, Halo
from dphpc.parallel.migrate import migrate
from tests.ops.emulation.device import EmulatedDevice
from tests.ops.test_ghosts import find_images
from tests.ops.test_gpu_neighbors import on_gpu

pytestmark = pytest.mark.mpi


def poll_and_land(flight: Flight) -> None:
    for _ in range(3):
        flight.poll()
    flight.land()


@pytest.fixture
def built(comm: Communicator, system: tuple, scattered: Callable[..., State]) -> tuple[State, Halo]:
    state, domain = scattered(*system), Domain.even(system[0], comm.size, comm.rank)
    migrate(state, domain, comm)
    halo = Halo(domain, comm)
    halo.build_ghosts(state, 8.0)
    return state, halo


@pytest.fixture
def gpu_halo(comm: Communicator, device: Device) -> GpuHalo:
    return GpuHalo(comm, CudaGhosts(device))


def compare(state: State, halo: Halo, gpu_halo: GpuHalo, land: Callable[[Flight], None]) -> None:
    """Moves the atoms and lets ghosts follow, then makes up forces and adds them to the owners', here and there."""
    n, rng, device = state.n_local, np.random.default_rng(halo.comm.rank), gpu_halo.ops.device
    state.positions[:n] += rng.normal(size=(n, 3))
    state.positions[n:] = np.nan
    positions = on_gpu(device, state.positions, np.float64)
    halo.refresh_ghosts(state)
    land(gpu_halo.start_refresh(positions))
    assert np.array_equal(device.download(positions), state.positions)
    forces = rng.integers(-(2**50), 2**50, (state.n_all, 3))
    there = on_gpu(device, forces, np.int64)
    halo.reduce(forces)
    land(gpu_halo.start_reduce(there))
    assert np.array_equal(device.download(there)[:n], forces[:n])


def test_the_same_as_on_the_host(built: tuple[State, Halo], gpu_halo: GpuHalo) -> None:
    state, halo = built
    gpu_halo.follow(halo.routes, state.n_local)
    compare(state, halo, gpu_halo, Flight.land)
    compare(state, halo, gpu_halo, poll_and_land)


def test_mpi_that_reads_the_gpu(built: tuple[State, Halo], comm: Communicator, emulated: EmulatedDevice) -> None:
    """On the host's own memory, which any MPI reads; on a GPU one that knows none would crash."""
    state, halo = built
    gpu_halo = GpuHalo(comm, CudaGhosts(emulated), gpu_aware_mpi=True)
    gpu_halo.follow(halo.routes, state.n_local)
    compare(state, halo, gpu_halo, poll_and_land)
    assert gpu_halo.host_nbytes == 0


def test_new_routes_are_followed(built: tuple[State, Halo], gpu_halo: GpuHalo) -> None:
    state, halo = built
    for reach in (2.0, 11.0, 5.0):
        halo.build_ghosts(state, reach)
        gpu_halo.follow(halo.routes, state.n_local)
        compare(state, halo, gpu_halo, poll_and_land)


def test_arrays_may_be_longer_than_the_system(built: tuple[State, Halo], gpu_halo: GpuHalo) -> None:
    state, halo = built
    gpu_halo.follow(halo.routes, state.n_local)
    device = gpu_halo.ops.device
    there = on_gpu(device, np.ones((state.n_all + 5, 3)), np.int64)
    gpu_halo.reduce(there)
    forces = device.download(there)
    assert (forces[state.n_all :] == 1).all()


def test_other_work_is_launched_before_the_messages_leave(
    built: tuple[State, Halo], comm: Communicator, device: Device
) -> None:
    """What was packed is what is sent, though the GPU's memory has changed when the host looks at it."""
    state, halo = built
    gpu_halo = GpuHalo(comm, CudaGhosts(device))
    gpu_halo.follow(halo.routes, state.n_local)
    positions, n = on_gpu(device, state.positions, np.float64), state.n_local
    positions[n:].fill(0.0)
    flight = gpu_halo.start_refresh(positions)
    positions[:n].fill(np.nan)
    flight.land()
    assert np.array_equal(device.download(positions)[n:], state.positions[n:])


def test_images_of_one_rank(system: tuple, scattered: Callable[..., State], device: Device) -> None:
    box, ops, alone = system[0], CudaGhosts(device), Serial()
    state, domain = scattered(*system, ranks=alone), Domain.even(box, 1, 0)
    migrate(state, domain, alone)
    halo, gpu_halo, n = Halo(domain, alone), GpuHalo(alone, ops), state.n_local
    images, n_ghost = find_images(ops, box, on_gpu(device, state.positions, np.float64), 8.0)
    gpu_halo.follow_images(images.owners, images.displacements, n)
    halo.build_ghosts(state, 8.0)
    assert n_ghost == state.n_ghost
    there = on_gpu(device, np.full((n + len(images.owners), 3), np.nan), np.float64)
    device.upload(state.positions[:n], there[:n])
    gpu_halo.refresh(there)
    ghosts = device.download(there)[n : state.n_all], state.positions[n:]
    found, expected = (x[np.lexsort(np.round(x, 6).T)] for x in ghosts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-14)  # measured 0
    ones = np.ones((n + len(images.owners), 3))
    ones[state.n_all :] = 0.0  # of what is no ghost
    forces = on_gpu(device, ones, np.int64)
    gpu_halo.reduce(forces)
    owners = device.download(images.owners[:n_ghost])
    assert np.array_equal(device.download(forces)[:n, 0], 1 + np.bincount(owners, minlength=n))


def test_memory_is_what_the_buffers_take(built: tuple[State, Halo], gpu_halo: GpuHalo, comm: Communicator) -> None:
    state, halo = built
    gpu_halo.follow(halo.routes, state.n_local)
    gpu_halo.refresh(on_gpu(gpu_halo.ops.device, state.positions, np.float64))
    routes = halo.routes
    most = max(state.n_ghost, len(routes.send)) + 16
    assert gpu_halo.gpu_nbytes <= 9 / 8 * GPU_GHOST_BYTES * most
    assert gpu_halo.host_nbytes <= 9 / 8 * 4 * 24 * most  # positions and forces, sent and received
