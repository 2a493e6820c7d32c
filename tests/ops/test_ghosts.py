"""Periodic images on a GPU against the halo of one rank, and the ways between atoms and ghosts against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.buffers import Buffers
from dphpc.core.state import State
from dphpc.ops.ghosts.cuda import CudaGhosts, memory_per_atom, rounded_up
from dphpc.ops.gpu import stable_order
from dphpc.ops.neighbors.cuda import CudaNeighbors
from dphpc.ops.neighbors.native import build_neighbors
from dphpc.parallel.comm import Serial
from dphpc.parallel.domain import Domain
from dphpc.parallel.halo import Halo
from dphpc.parallel.migrate import sort_spatially, wrap_
from tests.ops.emulation.device import EmulatedDevice
from tests.ops.test_gpu_neighbors import on_gpu
from tests.parallel.conftest import SYSTEMS

REACHES = (3.0, 8.0, 13.0)
"""Å: the last one reaches beyond several of the boxes."""


def system(name):
    """A box and a state with ids and types, not wrapped; both on the grid of a deterministic run."""
    box, positions = SYSTEMS[name]
    box = box.rounded(box.spacing)
    state = State(box, len(positions))
    state.positions[:] = np.round(positions / box.spacing) * box.spacing
    state.ids[:] = np.random.default_rng(1).permutation(len(positions)) + 1
    state.types[:] = state.ids % 3 == 0
    return box, state


def empty(device, *shape, dtype):
    return device.zeros(int(np.prod(shape)), dtype).reshape(shape)


def find_images(ops, box, positions, reach):
    """With their number, for which there is room at the second time; rows at the first are those that find some."""
    n_rows, n = 5, len(positions)
    for _ in range(2):
        images = ops.room(n, n_rows)
        device = ops.device
        ops.find_images(box, positions, reach, images)
        n_ghost = int(device.download(images.n_ghost)[0])
        n_rows = rounded_up(n_ghost)
    return images, n_ghost


@pytest.mark.parametrize("name", SYSTEMS)
def test_images_are_the_ghosts_of_one_rank(device, name):
    box, state = system(name)
    ops, n = CudaGhosts(device), state.n_local
    positions, counted = on_gpu(device, state.positions, np.float64), on_gpu(device, state.images, np.int32)
    ops.wrap_(box, positions, counted)
    wrap_(state)
    assert np.array_equal(device.download(positions), state.positions)
    assert np.array_equal(device.download(counted), state.images)
    for reach in REACHES:
        state.resize(n, 0)
        Halo(Domain.even(box, 1, 0), Serial()).build_ghosts(state, reach)
        images, n_ghost = find_images(ops, box, positions, reach)
        assert n_ghost == state.n_ghost
        fields = []
        for array in (state.types, state.ids):
            out = empty(device, len(images.owners), dtype=array.dtype)
            ops.take(on_gpu(device, array[:n], array.dtype), images.owners, out)
            fields.append(device.download(out[:n_ghost]))
        ghosts = empty(device, len(images.owners), 3, dtype=np.float64)
        ops.displace(positions, images.owners, images.displacements, ghosts)
        stands, nobody = np.split(device.download(ghosts), [n_ghost])
        assert np.array_equal(nobody, np.broadcast_to(state.positions[0], nobody.shape))
        found = *stands.T, *fields
        expected = *state.positions[n:].T, state.types[n:], state.ids[n:]
        orders = np.lexsort(found), np.lexsort(expected)
        for a, b in zip(found, expected, strict=True):
            assert np.array_equal(a[orders[0]], b[orders[1]])
        assert (np.diff(device.download(images.owners[:n_ghost])) >= 0).all()


def test_a_box_off_the_grid(device):
    box = Box(np.array([[4.2, 0, 0], [1.1, 4.0, 0], [0.3, 0.7, 4.4]]) / 1.1, origin=np.array([0.1, 0.2, 0.3]))
    state = State(box, 7)
    state.positions[:] = np.random.default_rng(2).normal(size=(7, 3)) * 9.0
    ops = CudaGhosts(device)
    positions, counted = on_gpu(device, state.positions, np.float64), on_gpu(device, state.images, np.int32)
    ops.wrap_(box, positions, counted)
    wrap_(state)
    np.testing.assert_allclose(
        device.download(positions), state.positions, rtol=0, atol=4e-15
    )  # measured 4e-16: the host's product may be fused
    Halo(Domain.even(box, 1, 0), Serial()).build_ghosts(state, 9.0)
    assert find_images(ops, box, positions, 9.0)[1] == state.n_ghost


@pytest.mark.parametrize("name", ["triclinic", "tiny", "slab"])
def test_a_new_list_without_the_host(device, name):
    """Wrapped, sorted, images, neighbors: each row names the same atoms at the same places in the same order."""
    box, state = system(name)
    ops, n, reach = CudaGhosts(device), state.n_local, 6.0
    positions, counted = on_gpu(device, state.positions, np.float64), on_gpu(device, state.images, np.int32)
    ops.wrap_(box, positions, counted)
    order, fields = ops.spatial_order(box, positions, 3.0), []
    for array in (positions, on_gpu(device, state.types, np.int32), on_gpu(device, state.ids, np.int64)):
        out = empty(device, n, *array.shape[1:], dtype=array.dtype)
        ops.take(array, order, out)
        fields.append(out)
    images, n_ghost = find_images(ops, box, fields[0], reach)
    whole = [empty(device, n + len(images.owners), *array.shape[1:], dtype=array.dtype) for array in fields]
    for array, out in zip(fields, whole, strict=True):
        out[:n] = array
        ops.take(array, images.owners, out[n:])
    ops.displace(fields[0], images.owners, images.displacements, whole[0][n:])
    found = CudaNeighbors(device).build(*whole, n, n + n_ghost, reach)

    wrap_(state)
    domain = Domain.even(box, 1, 0)
    sort_spatially(state, domain, 3.0)
    Halo(domain, Serial()).build_ghosts(state, reach)
    expected = build_neighbors(state.positions, state.types, state.ids, n, reach)
    assert np.array_equal(device.download(found.offsets), expected.offsets)
    indices, (x, types, ids) = device.download(found.indices), map(device.download, whole)
    for a, b in ((x, state.positions), (types, state.types), (ids, state.ids)):
        assert np.array_equal(a[:n], b[:n])
        assert np.array_equal(a[indices], b[expected.indices])


def test_no_atoms(device):
    ops, box = CudaGhosts(device), Box(np.eye(3) * 5.0)
    positions = empty(device, 0, 3, dtype=np.float64)
    ops.wrap_(box, positions, empty(device, 0, 3, dtype=np.int32))
    assert find_images(ops, box, positions, 6.0)[1] == 0
    assert len(ops.spatial_order(box, positions, 3.0)) == 0


@pytest.mark.parametrize(("n", "n_keys", "dtype"), [
    (1, 1, np.int32), (128, 2, np.int32), (129, 16, np.int32), (3000, 17, np.int64), (5000, 4000, np.int64),
    (700, 2**40, np.int64), (700, 2**31, np.int32),
])  # fmt: skip
def test_equal_keys_stay_in_their_order(device, n, n_keys, dtype):
    keys = np.random.default_rng(9).integers(0, n_keys, n).astype(dtype)
    keys[-n // 3 :] = keys[0]
    for _ in range(2):  # whatever the last one left behind
        order = device.download(stable_order(device, Buffers(device.zeros), on_gpu(device, keys, dtype), n_keys))
        assert order.dtype == np.int32
        assert np.array_equal(order, np.argsort(keys, kind="stable"))


def test_warps_of_64_threads():
    device, keys = EmulatedDevice(warp=64), np.random.default_rng(9).integers(0, 40, 3000)
    order = device.download(stable_order(device, Buffers(device.zeros), on_gpu(device, keys, np.int64), 40))
    assert np.array_equal(order, np.argsort(keys, kind="stable"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_spatial_order(device, name):
    box, state = system(name)
    wrap_(state)
    positions, ids = on_gpu(device, state.positions, np.float64), on_gpu(device, state.ids, np.int64)
    ops, n = CudaGhosts(device), state.n_local
    order = ops.spatial_order(box, positions, 3.0)
    moved, moved_ids = empty(device, n, 3, dtype=np.float64), empty(device, n, dtype=np.int64)
    ops.take(positions, order, moved)
    ops.take(ids, order, moved_ids)
    sort_spatially(state, Domain.even(box, 1, 0), 3.0)
    assert np.array_equal(device.download(moved), state.positions)
    assert np.array_equal(device.download(moved_ids), state.ids)


def test_spatial_order_of_a_brick(device):
    box, state = system("corner")
    wrap_(state)
    domain = Domain.even(box, 12, 7)
    intervals = [domain.interval(axis) for axis in range(3)]
    order = CudaGhosts(device).spatial_order(box, on_gpu(device, state.positions, np.float64), 2.0, intervals)
    expected = state.ids[device.download(order)]
    sort_spatially(state, domain, 2.0)
    assert np.array_equal(expected, state.ids)


@pytest.mark.parametrize("name", ["triclinic", "slab", "corner"])
def test_who_is_outside_of_a_brick(device, name):
    box, state = system(name)
    wrap_(state)
    ops, positions = CudaGhosts(device), on_gpu(device, state.positions, np.float64)
    for rank in range(12):
        domain = Domain.even(box, 12, rank)
        for intervals in (domain.own, domain.interior(2.0), domain.interior(2.0, images=True)):
            marks = ops.outside(box, positions, intervals)
            expected = domain.outside(state.positions, intervals)
            assert np.array_equal(device.download(marks), expected)
            assert np.array_equal(device.download(ops.places(marks)), np.flatnonzero(expected))


def test_some_atoms_come_last(device):
    box, state = system("cube")
    wrap_(state)
    ops, positions = CudaGhosts(device), on_gpu(device, state.positions, np.float64)
    plain = device.download(ops.spatial_order(box, positions, 3.0)).copy()
    last = np.array([0, 3, 50], np.int32)
    order = device.download(ops.spatial_order(box, positions, 3.0, last=on_gpu(device, last, np.int32)))
    assert np.array_equal(order[-3:], last)
    assert np.array_equal(order[:-3], plain[~np.isin(plain, last)])


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_parts_of_types(device, n):
    rng = np.random.default_rng(4)
    types, marks = rng.integers(0, 3, n), rng.integers(0, 2, n)
    for _ in range(2):  # whatever the last one left behind
        given = (on_gpu(device, values, np.int32) for values in (types, marks))
        order, counts = CudaGhosts(device).parts(*given, 4)
        assert np.array_equal(device.download(order), np.lexsort((np.arange(n), marks, types)))
        assert np.array_equal(counts.ravel(), np.bincount(2 * types + marks, minlength=8))


def test_forces_of_ghosts_are_added_to_their_owners(device):
    rng = np.random.default_rng(3)
    values, index = rng.integers(-(2**52), 2**52, (500, 3)), rng.integers(0, 40, 500)
    totals = rng.integers(-(2**40), 2**40, (40, 3))
    expected = totals.copy()
    np.add.at(expected, index, values)
    devices = [device, EmulatedDevice(backward=True)] if device.name == EmulatedDevice.name else [device]
    for d in devices:
        sums = on_gpu(d, totals, np.int64)
        CudaGhosts(d).add(on_gpu(d, values, np.int64), on_gpu(d, index, np.int32), sums)
        assert np.array_equal(d.download(sums), expected)


def test_memory_is_what_the_buffers_take(emulated):
    box, state = system("cube")
    wrap_(state)
    ops = CudaGhosts(emulated)
    positions = on_gpu(emulated, state.positions, np.float64)
    _, n_ghost = find_images(ops, box, positions, 8.0)
    ops.spatial_order(box, positions, 3.0)
    predicted = state.n_local * memory_per_atom(n_ghost / state.n_local)
    assert ops.buffers.nbytes == pytest.approx(predicted, rel=0.03)


def test_images_have_as_many_rows_from_list_to_list():
    for n in (*range(3000), 10**6 + 1):
        assert n <= rounded_up(n) < n + max(n / 8, 64) + 1
    assert rounded_up(0) == 0
    assert len({rounded_up(n) for n in range(4200, 4900)}) == 2
