"""The cell search on a GPU against all distances and against the host's: the same rows to the last index."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.buffers import Buffers
from dphpc.core.errors import RunError
from dphpc.core.images import periodic_images
from dphpc.ops.gpu import BLOCK, CHUNK, running_sums
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.neighbors import native, reference
from dphpc.ops.neighbors.cuda import _CELLS, _ROWS, ROOM, CudaNeighbors, choose_grid, memory_per_atom
from tests.ops.emulation.device import EmulatedDevice
from tests.ops.test_neighbors import SYSTEMS

SILICON = Path(__file__).parents[2] / "examples" / "silicon" / "si8.poscar"


def on_gpu(device, values, dtype):
    array = device.zeros(values.size, dtype).reshape(values.shape)
    device.upload(values.astype(dtype), array)
    return array


def build(search, positions, types, ids, n_local, reach):
    device = search.device
    arrays = (on_gpu(device, a, t) for a, t in ((positions, np.float64), (types, np.int32), (ids, np.int64)))
    return search.build(*arrays, n_local, len(positions), reach)


def assert_same(device, found, expected):
    offsets, indices = device.download(found.offsets), device.download(found.indices)
    assert (offsets.dtype, indices.dtype) == (np.int64, np.int32)
    np.testing.assert_array_equal(offsets, expected.offsets)
    np.testing.assert_array_equal(indices, expected.indices)
    assert found.n_pairs == expected.n_pairs
    assert found.reach == expected.reach


def with_images(box, positions, types, reach):
    """A periodic system's atoms and their images, shuffled, with ids that the images share."""
    positions = box.wrap(positions)
    owners, shifts = periodic_images(positions, box, reach)
    n, rng = len(positions), np.random.default_rng(4)
    order, of_ghosts = rng.permutation(n), rng.permutation(len(owners))
    ids = rng.permutation(n)
    ghosts = (positions[owners] + shifts @ box.matrix)[of_ghosts]
    return (
        np.concatenate((positions[order], ghosts)), np.concatenate((types[order], types[owners][of_ghosts])),
        np.concatenate((ids[order], ids[owners][of_ghosts])), n, reach,
    )  # fmt: skip


def water(n_molecules):
    """Molecules in random places and directions, at the density of the liquid."""
    rng = np.random.default_rng(5)
    box = Box(np.eye(3) * (29.9 * n_molecules) ** (1 / 3))
    arms = rng.normal(size=(n_molecules, 2, 3))
    oxygen = rng.random((n_molecules, 3)) @ box.matrix
    hydrogen = oxygen[:, None] + arms / np.linalg.norm(arms, axis=2)[:, :, None]
    return box, np.concatenate((oxygen, hydrogen.reshape(-1, 3))), np.repeat([0, 1], [n_molecules, 2 * n_molecules])


def silicon(matrix=None, periodic=(True, True, True)):
    """The perfect crystal, whose atoms stand on the faces of cells and at many equal distances."""
    atoms = ase.io.read(SILICON)
    if matrix is not None:
        atoms.set_cell(matrix, scale_atoms=True)
    return Box(atoms.cell.array, periodic), atoms.positions, np.zeros(len(atoms), np.int64)


PERIODIC = {
    "water": (*water(40), 6.5),
    "silicon": (*silicon(), 7.0),
    "skewed": (*silicon([[5.4, 0, 0], [2.5, 5.3, 0], [-2.0, 1.5, 5.6]]), 6.0),
    "slab": (*silicon(periodic=(True, True, False)), 6.0),
    "tiny": (Box(np.eye(3) * 2.1), np.array([[0.1, 2.0, 0.7]]), np.zeros(1, np.int64), 6.0),  # many images of one atom
}


@pytest.mark.parametrize("name", PERIODIC)
def test_structures_with_their_images(device, name):
    system = with_images(*PERIODIC[name])
    assert_same(device, build(CudaNeighbors(device), *system), native.build_neighbors(*system))


@pytest.mark.parametrize("name", SYSTEMS)
def test_agrees_with_all_distances(device, name):
    n, size, reach = SYSTEMS[name]
    rng = np.random.default_rng(1)
    positions = rng.random((n, 3)) * size - 3.0
    types = rng.integers(0, 3, n)
    ids = rng.permutation(n) // (1 if name == "coincident" else 2)
    n_local, search = min(n, 20) if n > 1000 else n, CudaNeighbors(device)
    for rows in (n_local, n_local // 2, 0):
        expected = reference.build_neighbors(positions, types, ids, rows, reach)
        assert_same(device, build(search, positions, types, ids, rows, reach), expected)
    if name == "crowded":
        assert expected.n_pairs == 0
        assert n > ROOM  # so that rows are sorted where they stand


def test_no_atoms(device):
    nothing = np.zeros((0, 3)), np.zeros(0, np.int32), np.zeros(0, np.int64), 0, 3.0
    assert_same(device, build(CudaNeighbors(device), *nothing), reference.build_neighbors(*nothing))


def test_many_images_of_one_atom_are_ordered_by_position(device):
    """All keys of a long row are equal but for the position, with zeros of both signs among them."""
    side = np.arange(-5, 6) * 0.5
    grid = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = np.random.default_rng(2).permutation(grid) * np.array([1.0, -1.0, 1.0])
    n = len(positions)
    system = positions, np.zeros(n, np.int32), np.zeros(n, np.int64), 3, 20.0
    assert n > ROOM
    assert_same(device, build(CudaNeighbors(device), *system), native.build_neighbors(*system))


def test_atoms_on_the_faces_of_cells(device):
    """A simple cubic crystal whose constant is the edge of the cells, with atoms at the reach to the last digit."""
    grid = np.stack(np.meshgrid(*[np.arange(6.0)] * 3), axis=-1).reshape(-1, 3)
    system = grid, np.arange(216) % 2, np.arange(216), 216, 2.0
    assert_same(device, build(CudaNeighbors(device), *system), reference.build_neighbors(*system))


@pytest.mark.parametrize("size", [0.0, 0.4, 3.0])
def test_any_grid_and_rows_that_are_no_atoms(device, size):
    """Atoms beyond the grid, and behind the last ghost rows that stand where an atom does."""
    positions, types, ids, n, reach = with_images(*water(20), 4.0)
    expected, middle = native.build_neighbors(positions, types, ids, n, reach), positions.mean(axis=0)
    half = 0.5 * size * np.ptp(positions, axis=0)
    grid = choose_grid(middle - half, middle + half, len(ids), reach)
    more = [np.concatenate((a, np.repeat(a[:1], 9, axis=0))) for a in (positions, types, ids)]
    arrays = [on_gpu(device, a, t) for a, t in zip(more, (np.float64, np.int32, np.int64), strict=True)]
    n_ghost, search = on_gpu(device, np.array([len(ids) - n]), np.int64), CudaNeighbors(device)
    for room in (0, expected.n_pairs):
        search.make_room(room)
        n_pairs = search.start(*arrays, n, len(ids) + 9, reach, grid, n_ghost)
        found = search.found(n, reach, int(device.download(n_pairs)[0]))
        assert (found is None) == (room == 0)
    assert_same(device, found, expected)


def test_a_list_that_has_grown_is_filled_again(emulated):
    rng, search = np.random.default_rng(6), CudaNeighbors(emulated)
    positions, types, ids = rng.random((150, 3)) * 12.0, rng.integers(0, 2, 150), np.arange(150)
    for scale, fills in ((1.0, 1), (1.01, 1), (0.9, 2), (1.5, 1), (0.9, 1)):
        emulated.launched.clear()
        system = positions * scale, types, ids, 120, 3.0
        assert_same(emulated, build(search, *system), native.build_neighbors(*system))
        assert emulated.launched.count("fill_rows") == fills


def test_the_order_of_blocks_and_of_atoms_does_not_matter(emulated):
    backward = EmulatedDevice(backward=True)
    positions, types, ids, n, reach = with_images(*water(20), 5.0)
    expected = native.build_neighbors(positions, types, ids, n, reach)
    assert_same(backward, build(CudaNeighbors(backward), positions, types, ids, n, reach), expected)
    # The atom order of memory is that of the cells in one, and not in the other.
    order = np.random.default_rng(7).permutation(len(ids) - n) + n
    order = np.concatenate((np.arange(n), order))
    found = build(CudaNeighbors(emulated), positions[order], types[order], ids[order], n, reach)
    np.testing.assert_array_equal(order[emulated.download(found.indices)], expected.indices)


def test_warps_of_64_threads():
    device = EmulatedDevice(warp=64)
    system = with_images(*water(20), 5.0)
    assert_same(device, build(CudaNeighbors(device), *system), native.build_neighbors(*system))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_position_not_finite(device, bad):
    positions = np.random.default_rng(3).random((300, 3))
    positions[[200, 213], 1] = bad
    for n_local, kind in ((200, "ghost"), (201, "local")):
        with pytest.raises(RunError, match=f"atom 200 \\({kind}\\)"):
            build(CudaNeighbors(device), positions, np.zeros(300), np.arange(300), n_local, 2.0)


@pytest.mark.parametrize("n", [1, CHUNK, CHUNK + 1, 5 * CHUNK - 3])
def test_running_sums(device, n):
    counts = np.random.default_rng(8).integers(0, 2**31, n)
    text = kernel_text("neighbors.cu", WARP=device.warp, BLOCK=128, ROOM=ROOM)
    out = on_gpu(device, np.full(n + 1, -1), np.int64)
    running_sums(device, Buffers(device.zeros), text, on_gpu(device, counts, np.int32), out)
    found = device.download(out)
    assert found[0] == 0
    np.testing.assert_array_equal(found[1:], np.cumsum(counts))


def test_rows_that_32_bits_cannot_count(device):
    """They begin after so many others, which have no memory, and which nobody writes."""
    positions, types, ids, n, reach = with_images(*water(20), 5.0)
    expected, search, before = native.build_neighbors(positions, types, ids, n, reach), CudaNeighbors(device), 3 << 31
    places = *(on_gpu(device, a, t) for a, t in ((positions, np.float64), (types, np.int32), (ids, np.int64))), n
    places = *places, len(ids)
    grid = search.grid(*places, reach)
    search.start(*places, reach, grid)
    offsets = on_gpu(device, expected.offsets + before, np.int64)
    indices = on_gpu(device, np.full(expected.n_pairs, -1), np.int32)
    get, n_all, address = search.buffers.get, len(ids), device.address
    arrays = [get("count", (grid[1],), np.int32), get("start", (grid[1] + 1,), np.int64)]
    arrays += [get("cell_of", (n_all,), np.int32), get("atom", (n_all,), np.int32), *get("places", (3, n_all), float)]
    cells = np.array([tuple(map(address, arrays))], _CELLS)
    for shift, filled in ((0, False), (before, True)):  # as many pairs as would fit into the memory, and all
        capacity = shift + expected.n_pairs
        rows = np.array([(address(offsets), address(indices) - 4 * before, capacity, reach**2)], _ROWS)
        device.launch(search._text, "fill_rows", n_all, BLOCK, search._atoms(*places), grid[0], cells, rows)
        assert np.array_equal(device.download(indices), expected.indices) == filled


def test_memory_is_what_the_buffers_take(emulated):
    positions, types, ids, n, reach = with_images(*water(200), 4.0)
    search = CudaNeighbors(emulated)
    found = build(search, positions, types, ids, n, reach)
    predicted = n * memory_per_atom(found.n_pairs / n, len(ids) / n - 1.0)
    assert search.buffers.nbytes == pytest.approx(predicted, rel=0.03)  # measured 0.006
