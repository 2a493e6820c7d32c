"""The kernels for GPUs against the references: on a host that plays a GPU, and on a GPU where there is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dphpc.core.errors import InputError, RunError
from dphpc.core.exact_sum import FORCE_SPACING, exact_sum
from dphpc.model.activations import _PLAIN
from dphpc.ops.energy import native, reference, tiles
from dphpc.ops.energy.contract import Accumulators
from dphpc.ops.energy.cuda import MOST_CHANNELS, CudaEnergy
from dphpc.ops.energy.gpu import GpuSums, GpuSystem, virial_parts
from dphpc.ops.energy.tiles import BLOCK, FEW_ATOMS, WIDE_BLOCK, WIDE_CHANNELS, Group, block_of, tile_rows
from dphpc.ops.neighbors.reference import build_neighbors
from tests.ops.emulation.device import EmulatedDevice
from tests.ops.test_energy import evaluate, fitting_net, usable

FINE = 2.0**-52
"""eV/Å, a spacing of the forces in which the small ones here keep their digits."""

TILE = 16


class Wide(CudaEnergy):
    """With blocks as for few atoms."""

    def prepare(self, *arguments):
        return replace(super().prepare(*arguments), block=WIDE_BLOCK)


@pytest.fixture(params=[0, tiles.FEW_ROWS], ids=["products", "few rows"])
def layers_by(request, monkeypatch):
    """Layers by matrix products, and each by a kernel of our own."""
    monkeypatch.setattr(tiles, "FEW_ROWS", request.param)


def compare(device, case, net, columns=None, tolerance=1e-12, tile=TILE, kind=CudaEnergy):
    """Asserts that a GPU's results are the reference's, each relative to the largest of what is added."""
    got = evaluate(kind(device, tile), case, net, columns, spacing=FINE)
    expected = evaluate(reference, case, net, columns)
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        start = 1.0 if k in (2, 4) else 3.0 if k == 3 else 0.0  # what `evaluate` adds to
        if np.isfinite(b).all():
            # Adding to 1 rounds to 2e-16.
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b - start).max() + 1e-15)
        else:
            assert np.array_equal(a, b)


@pytest.mark.usefixtures("layers_by")
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])  # measured 1e-13, 1e-6
def test_gpu_agrees(device, se_a_case, variant, dtype, tolerance):
    case = usable(se_a_case, variant, dtype=dtype)
    columns = np.random.default_rng(1).normal(size=(len(case.env.centers), 3)).astype(dtype)
    compare(device, case, fitting_net(case, 3, dtype=dtype), columns, tolerance)
    if variant == "plain":
        for kind in (CudaEnergy, Wide):
            compare(device, case, fitting_net(case, dtype=dtype), None, tolerance, kind=kind)


@pytest.mark.parametrize("columns", [False, True])
def test_float32_in_pieces(device, se_a_case, columns):
    case = usable(se_a_case, "plain", dtype=np.float32)
    extra = np.random.default_rng(1).normal(size=(len(case.env.centers), 3)).astype(np.float32) if columns else None
    net = fitting_net(case, 3 if columns else 0, dtype=np.float32)

    class InPieces(CudaEnergy):
        def prepare(self, *arguments):
            return self.tiled(super().prepare(*arguments), TILE, 10**6)

    kinds = InPieces(device, TILE, in_pieces=True), CudaEnergy(device, TILE)
    got, expected = (evaluate(ops, case, net, extra, spacing=FINE) for ops in kinds)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max() + 1e-15)


def crowded(case):
    """The case among 343 atoms, some of which have more neighbors inside the cutoff than a block has threads."""
    rng = np.random.default_rng(3)
    lattice = np.stack(np.meshgrid(*[np.arange(7)] * 3), axis=-1).reshape(-1, 3) * 1.8
    positions = lattice + rng.uniform(-0.3, 0.3, lattice.shape)
    types = rng.integers(0, 2, len(positions)).astype(np.int32)
    neighbors = build_neighbors(positions, types, np.arange(len(types)), len(types), 7.0)
    centers = np.argsort(-np.diff(neighbors.offsets))[:20].astype(np.int32)
    near = np.linalg.norm(positions - positions[centers[0]], axis=1) < 6.5
    assert near.sum() > BLOCK + 1
    env = replace(case.env, positions=positions, types=types, neighbors=neighbors, centers=centers)
    return replace(case, env=env, p=replace(case.p, rcut=6.5))


@pytest.mark.parametrize("kind", [CudaEnergy, Wide])
def test_more_neighbors_than_a_block_has_threads(device, se_a_case, kind):
    case = crowded(usable(se_a_case, "plain"))
    compare(device, case, fitting_net(case), kind=kind)


def test_the_largest_argument_of_each_atom(device, se_a_case):
    case = crowded(usable(se_a_case, "plain"))
    net, ops = fitting_net(case), CudaEnergy(device, TILE)
    for k in range(len(case.env.centers)):
        env = replace(case.env, centers=case.env.centers[k : k + 1])
        found, expected = (evaluate(o, case, net, env=env, atomic=False)[1] for o in (ops, native))
        np.testing.assert_allclose(found, expected, rtol=1e-14)  # measured 2e-16


def test_more_channels_than_a_block_has_threads(device, se_a_case):
    case = usable(se_a_case, "plain", channels=150)
    compare(device, case, fitting_net(case))


def test_warps_of_64_threads(se_a_case):
    case = usable(se_a_case, "wide")
    compare(EmulatedDevice(warp=64), case, fitting_net(case))


def test_displacements_rounded_to_float32(device, se_a_case):
    case = usable(se_a_case, "plain")
    compare(device, replace(case, p=replace(case.p, round_displacements=True)), fitting_net(case))


@pytest.mark.usefixtures("layers_by")
@pytest.mark.parametrize("name", [*_PLAIN, "silut", "custom_silu:0.1"])
def test_every_activation_with_and_without_a_bias(device, se_a_case, name):
    case = usable(se_a_case, "plain")
    net = fitting_net(case)
    for layer in net.layers[:-1]:
        layer.activation = name
    net.layers[1].b = None
    compare(device, case, net, tolerance=3e-11)  # measured 4e-12: softplus; others 1e-13


@pytest.mark.usefixtures("layers_by")
@pytest.mark.parametrize("factor", [1, 2])
def test_skip_connection_around_the_first_layer(device, se_a_case, factor):
    case = usable(se_a_case, "plain")
    compare(device, case, fitting_net(case, widths=(factor * case.e.table.n_channels * case.p.axis_neuron, 16)))


@pytest.mark.usefixtures("layers_by")
def test_a_single_layer_and_a_skip_to_the_energy(device, se_a_case):
    case = usable(se_a_case, "plain")
    compare(device, case, fitting_net(case, widths=()))
    net = fitting_net(case, widths=(12, 1))
    net.layers[-1].resnet = True
    assert net.layers[-1].skip == 1
    compare(device, case, net)


@pytest.mark.usefixtures("layers_by")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bits_do_not_depend_on_order_or_company(device, se_a_case, dtype):
    case = usable(se_a_case, "wide", dtype=dtype)
    net, ops = fitting_net(case, dtype=dtype), CudaEnergy(device, TILE)
    first = evaluate(ops, case, net, spacing=FORCE_SPACING)
    assert np.array_equal(np.round(first[2] / FORCE_SPACING), first[2] / FORCE_SPACING)
    order = np.random.default_rng(8).permutation(len(case.env.centers))
    shuffled = replace(case.env, centers=case.env.centers[order])
    again = evaluate(ops, case, net, env=shuffled, spacing=FORCE_SPACING)
    assert np.array_equal(again[0], first[0][order])
    for a, b in zip(again[1:], first[1:], strict=True):
        assert np.array_equal(a, b)
    halves = [replace(case.env, centers=part) for part in np.array_split(case.env.centers, 2)]
    parts = [evaluate(ops, case, net, env=env, spacing=FORCE_SPACING) for env in halves]
    assert np.array_equal(np.concatenate([p[0] for p in parts]), first[0])
    for k, start in ((2, 1.0), (3, 3.0), (4, 1.0)):
        assert np.array_equal(parts[0][k] + parts[1][k] - start, first[k])


def test_without_a_spacing_forces_have_the_usual_one(device, se_a_case):
    case = usable(se_a_case, "plain")
    net = fitting_net(case)
    found, expected = evaluate(CudaEnergy(device), case, net), evaluate(native, case, net)
    assert np.array_equal(np.round(found[2] / FORCE_SPACING), found[2] / FORCE_SPACING)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)  # measured 3e-11


def test_only_what_has_changed_goes_up(emulated, se_a_case):
    case = usable(se_a_case, "wide")
    net, ops = fitting_net(case), CudaEnergy(emulated, TILE)
    evaluate(ops, case, net)
    prepared = ops.prepare(net, case.e.table.n_channels, case.p.axis_neuron)
    positions = case.env.positions + 0.01
    moved = replace(case.env, positions=positions)
    before, n_all = emulated.uploaded, len(positions)
    out = Accumulators(np.zeros((n_all, 3)), np.zeros((3, 3, 3)))
    ops.energy_and_forces(moved, case.p, case.e, prepared, None, out)
    assert emulated.uploaded - before == 24 * n_all + 4 * n_all + 4 * len(moved.centers)
    fresh = replace(moved, neighbors=replace(case.env.neighbors))
    ops.energy_and_forces(fresh, case.p, case.e, prepared, None, out)
    assert emulated.uploaded - before > case.env.neighbors.indices.nbytes


def on_gpu(device, env):
    """The atoms of an environment, and empty sums, in a GPU's memory."""

    def up(values, dtype):
        array = device.zeros(values.size, dtype).reshape(values.shape)
        device.upload(values.astype(dtype), array)
        return array

    system = GpuSystem(
        up(env.positions, np.float64), up(env.types, np.int32), *CudaEnergy(device).list_of(env.neighbors)
    )
    array = device.zeros(GpuSums.size(len(env.positions), False), np.int64)
    sums = replace(GpuSums.within(array, len(env.positions), FINE), energy=device.zeros(3, np.float64))
    return system, up(env.centers, np.int32), sums


def test_what_stays_on_the_gpu_is_the_same(device, se_a_case):
    case = usable(se_a_case, "wide")
    net, env, ops = fitting_net(case), case.env, CudaEnergy(device, TILE)
    prepared = ops.prepare(net, case.e.table.n_channels, case.p.axis_neuron)
    system, centers, sums = on_gpu(device, env)
    groups = [Group(prepared, centers.size, 0.25)]
    before = getattr(device, "downloaded", 0)
    for _ in range(2):
        ops.launch(system, centers, case.p, case.e, groups, None, sums)
    assert getattr(device, "downloaded", 0) == before
    out = Accumulators(np.zeros((len(env.positions), 3)), np.zeros((3, 3, 3)), force_spacing=FINE)
    energies, _ = ops.energy_and_forces(env, case.p, case.e, prepared, None, out)
    forces, virial, energy, trouble = map(device.download, (sums.forces, sums.virial, sums.energy, sums.trouble))
    assert not trouble[0]
    assert np.array_equal(forces.reshape(-1, 3) * FINE, 2 * out.forces)
    assert np.array_equal(virial_parts(virial, FINE).sum(axis=0), 2 * out.virial.sum(axis=0))
    assert np.array_equal(energy, 2 * exact_sum(energies + 0.25))


def test_lists_that_32_bits_cannot_count(device, se_a_case, monkeypatch):
    """Rows that begin after so many others: those have no memory, and nobody reads them."""
    case, before = usable(se_a_case, "plain"), 3 << 31
    env, ops = case.env, CudaEnergy(device, TILE)
    groups = [Group(ops.prepare(fitting_net(case), case.e.table.n_channels, case.p.axis_neuron), len(env.centers))]
    address, found = ops.workspace.address, []
    for shift in (0, before):
        system, centers, sums = on_gpu(device, env)
        indices = system.indices

        def shifted(array, indices=indices, shift=shift):
            return address(array) - (indices.itemsize * shift if array is indices else 0)

        device.upload(env.neighbors.offsets + shift, system.offsets)
        monkeypatch.setattr(ops.workspace, "address", shifted)
        ops.launch(system, centers, case.p, case.e, groups, None, sums)
        found.append([device.download(a) for a in (sums.forces, sums.virial, sums.energy, sums.trouble)])
    for near, far in zip(*found, strict=True):
        assert np.array_equal(near, far)
    assert np.abs(found[0][0]).max() > 0


@pytest.mark.usefixtures("layers_by")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("most", "n_all"), [(16384, 47), (32, 47), (16384, 10**6)])
def test_types_share_batches(device, se_a_case, monkeypatch, dtype, most, n_all):
    """Each group with its net, in one batch or in several, whole or in pieces, is what it is alone."""
    case = usable(se_a_case, "wide", dtype=dtype)
    channels, axis, env = case.e.table.n_channels, case.p.axis_neuron, case.env
    ops, columns = CudaEnergy(device, in_pieces=True), np.random.default_rng(1).normal(size=3).astype(dtype)
    monkeypatch.setattr(tiles, "MOST_ROWS", most)
    monkeypatch.setattr(tiles, "FEWEST_ROWS", 8)
    sizes = 3, 11, 33
    nets = [fitting_net(case, 3, widths=(12, 12 + k), dtype=dtype) for k in range(3)]
    centers = [np.resize(env.centers, n) for n in sizes]
    groups, places = [], []
    for net, atoms in zip(nets, centers, strict=True):
        prepared = ops.tiled(ops.prepare(net, channels, axis), len(atoms), n_all)
        groups.append(Group(prepared, len(atoms), 0.5))
        places.append(np.append(atoms, np.full(groups[-1].n_rows - len(atoms), -1)))
    assert [group.net.rows for group in groups] == [8, 16, min(64, most)]
    in_pieces = n_all > 10**5 and dtype == np.float32 and device.has_tf32
    assert {group.net.parts for group in groups} == {3 if in_pieces else 1}
    system, rows, sums = on_gpu(device, replace(env, centers=np.concatenate(places).astype(np.int32)))
    extra = device.zeros(3 * rows.size, dtype).reshape(-1, 3)
    device.upload(np.tile(columns, (rows.size, 1)), extra)
    ops.launch(system, rows, case.p, case.e, groups, extra, sums)

    out = Accumulators(np.zeros((len(env.positions), 3)), np.zeros((3, 3, 3)), force_spacing=FINE)
    energy = np.zeros(3)
    for group, atoms in zip(groups, centers, strict=True):
        given = replace(env, centers=atoms), case.p, case.e, group.net, np.tile(columns, (len(atoms), 1))
        energies, _ = ops.energy_and_forces(*given, out)
        energy += exact_sum(energies + 0.5)
    forces, virial, found, trouble = map(device.download, (sums.forces, sums.virial, sums.energy, sums.trouble))
    assert not trouble[0]
    assert np.array_equal(forces.reshape(-1, 3) * FINE, out.forces)
    assert np.array_equal(virial_parts(virial, FINE).sum(axis=0), out.virial.sum(axis=0))
    assert np.array_equal(found, energy)


def test_threads_of_an_atom():
    assert block_of(FEW_ATOMS, WIDE_CHANNELS) == WIDE_BLOCK
    assert block_of(FEW_ATOMS + 1, WIDE_CHANNELS) == block_of(FEW_ATOMS, WIDE_CHANNELS + 1) == BLOCK


def test_rows_of_a_tile(emulated, se_a_case):
    assert [tile_rows(n) for n in (0, 1, 64, 65, 2048, 2049, 16385, 65536, 10**7)] == [
        64, 64, 64, 128, 2048, 2048, 4096, 8192, 16384,
    ]  # fmt: skip
    case = usable(se_a_case, "plain")
    ops, wide = CudaEnergy(emulated), fitting_net(case, widths=(3000, 3000, 3000))
    prepared = ops.prepare(wide, case.e.table.n_channels, case.p.axis_neuron)
    assert ops.tiled(prepared, 10**7, 10**7).rows == prepared.most_rows == 2048, "such a net has room for fewer"


@pytest.mark.parametrize("parts", [1, 3])
def test_a_batch_takes_what_is_counted(emulated, se_a_case, parts):
    case = usable(se_a_case, "plain", dtype=np.float32)
    net, ops = fitting_net(case, widths=(12, 12, 12), dtype=np.float32), CudaEnergy(emulated, in_pieces=parts > 1)
    prepared = ops.tiled(ops.prepare(net, case.e.table.n_channels, case.p.axis_neuron), 1, 10**6)
    assert prepared.parts == parts
    out = Accumulators(np.zeros((len(case.env.positions), 3)), np.zeros((3, 3, 3)), force_spacing=FINE)
    ops.energy_and_forces(case.env, case.p, case.e, prepared, None, out)
    of_batch = "moments", "inputs", "by_inputs", "slope", "value", "adjoint", "factor"
    taken = sum(array.nbytes for name, array in ops.workspace.buffers._kept.items() if name.startswith(of_batch))
    assert taken == pytest.approx(9 / 8 * prepared.rows * prepared.row_bytes, rel=1e-3)  # with head-room


@pytest.mark.parametrize("what", ["energy", "table", "force"])
def test_trouble_on_the_gpu_is_kept(device, se_a_case, what):
    case = usable(se_a_case, "plain")
    net, env, e, shift = fitting_net(case), case.env, case.e, 0.0
    if what == "table":
        env = replace(env, positions=0.3 * env.positions)
        assert evaluate(native, case, net, env=env)[1] > e.table.upper
    elif what == "force":
        net.layers[-1].w *= 1e20
    else:
        shift = np.nan
    ops = CudaEnergy(device, TILE)
    system, centers, sums = on_gpu(device, env)
    prepared = ops.prepare(net, e.table.n_channels, case.p.axis_neuron)
    ops.launch(system, centers, case.p, e, [Group(prepared, centers.size, shift)], None, sums)
    assert device.download(sums.trouble)[0] == 1


def test_a_force_beyond_the_range_of_its_whole_number_ends_the_run(device, se_a_case):
    case = usable(se_a_case, "plain")
    net = fitting_net(case)
    net.layers[-1].w *= 1e10
    with pytest.raises(RunError, match="above 65536 eV/Å"):
        evaluate(CudaEnergy(device), case, net)


def test_too_many_channels_for_a_block(emulated, se_a_case):
    case = usable(se_a_case, "plain")
    with pytest.raises(InputError, match="2000 outputs"):
        CudaEnergy(emulated).prepare(fitting_net(case), 2000, 1)
    assert MOST_CHANNELS < 2000
