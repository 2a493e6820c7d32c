"""What training launches on a GPU, against the references and the CPU's kernels."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dphpc.core.errors import RunError
from dphpc.model.networks import Layer, Network, initial_network
from dphpc.ops.adam import native as adam
from dphpc.ops.adam.contract import AdamStep
from dphpc.ops.adam.cuda import PIECE, CudaAdam
from dphpc.ops.fitting import native as fitting
from dphpc.ops.fitting.cuda import CudaFittingTape
from dphpc.ops.se_a import cuda, reference
from dphpc.ops.se_a.cuda import CudaSeA
from dphpc.ops.se_a.cuda_knots import CudaKnotTable
from dphpc.ops.se_a.knots import KnotTable
from dphpc.ops.workspace import Workspace
from tests.ops.emulation.device import EmulatedDevice
from tests.ops.test_cuda import crowded
from tests.ops.test_knots import GRIDS, networks, parameters
from tests.ops.test_se_a import assert_close

TOLERANCE: dict[type, float] = {np.float64: 1e-12, np.float32: 2e-5}


def by_type(case):
    """The case with its centers in the order of their types, as a training step has them."""
    centers = case.env.centers[np.argsort(case.env.types[case.env.centers], kind="stable")]
    return replace(case, env=replace(case.env, centers=centers))


def strained(case):
    """The case with one strain for all centers, as those of a frame have it."""
    return replace(case, strain=np.repeat(case.strain[:1], len(case.env.centers), axis=0))


def frame_of(env, owners=None):
    """The atoms as one frame."""
    owners = np.zeros(0, np.int32) if owners is None else owners
    return SimpleNamespace(positions=env.positions, types=env.types, neighbors=env.neighbors, owners=owners)


def on_gpu(device, case, dtype=np.float64):
    """The operations, the case on the GPU, and functions that bring arrays up and down."""
    table, p = case.e.table, case.p
    ops = CudaSeA(device, table.n_channels, p.axis_neuron, len(p.sel), dtype)
    new = Workspace(device).new
    env = ops.frames.joined([frame_of(case.env)], case.env.centers)
    described = ops.described(p, table.grids, new(table.coefficients), new(case.e.empty))
    return SimpleNamespace(ops=ops, env=env, d=described, new=new, down=device.download)


def exerted(gpu, env, bar):
    """Forces and virials."""
    gpu.ops.forces(env, gpu.d, gpu.new(bar))
    return env.download().exerted()


def compare(device, case, dtype=np.float64):
    case, tolerance = strained(by_type(case)), TOLERANCE[dtype]
    gpu = on_gpu(device, case, dtype)
    args = case.env, case.p, case.e
    moments, largest = reference.moments(*args)
    gpu.ops.moments(gpu.env, gpu.d)
    assert_close(gpu.down(gpu.ops.moments_of(gpu.env)), moments, tolerance)
    assert gpu.env.download().largest == pytest.approx(largest, rel=1e-13)

    forces, virial = np.zeros_like(case.env.positions), np.zeros((len(case.env.centers), 3, 3))
    reference.forces_into(*args, case.bar, forces, virial)
    total = virial.sum(axis=0, keepdims=True)
    for a, b in zip(exerted(gpu, gpu.env, case.bar), (forces, total), strict=True):
        assert_close(a, b, tolerance)

    given = gpu.new(case.direction), gpu.new(case.strain[:1])
    motion = gpu.ops.motion(gpu.env, *given)
    tangent = reference.tangent(*args, case.direction, case.strain)
    gpu.ops.tangent(gpu.env, gpu.d, motion)
    assert_close(gpu.down(gpu.ops.tangent_of(gpu.env)), tangent, tolerance)
    bars = gpu.new(case.bar), gpu.new(case.bar_dot)
    found = gpu.ops.tangent_adjoint(gpu.env, gpu.d, motion, *bars)
    expected = reference.tangent_adjoint(*args, case.direction, case.strain, case.bar, case.bar_dot)
    hidden = case.p.davg == 0.0  # whose missing slots are rows of zeros, which the GPU leaves out
    expected[1][hidden] = 0.0
    for a, b in zip(found, expected, strict=True):
        assert_close(gpu.down(a), b, tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["odd_channels", "two_sided_excluded", "one_channel"])
def test_descriptor_agrees(device, se_a_case, kind, dtype):
    compare(device, se_a_case(kind, dtype=dtype), dtype)


@pytest.mark.parametrize("kind", ["davg_zero", "hidden_type", "nobody_used", "few_intervals"])
def test_other_descriptors_agree(device, se_a_case, kind):
    compare(device, se_a_case(kind))


def test_more_neighbors_and_channels_than_a_block_has_threads(device, se_a_case):
    case = crowded(se_a_case(channels=150))
    rng, shape = np.random.default_rng(0), (len(case.env.centers), 4, 150)
    bars = rng.normal(size=(2, *shape))
    motion = rng.normal(size=case.env.positions.shape), rng.normal(size=(len(case.env.centers), 3, 3))
    compare(device, replace(case, bar=bars[0], bar_dot=bars[1], direction=motion[0], strain=motion[1]))


def test_warps_of_64_threads(se_a_case):
    compare(EmulatedDevice(warp=64), se_a_case("plain"))


def test_images_move_with_their_owners_and_give_them_their_forces(device, se_a_case):
    case = by_type(se_a_case())
    local = np.arange(len(case.env.positions)) < 30
    env = replace(case.env, centers=case.env.centers[case.env.centers < 30])
    env = replace(env, neighbors=replace(env.neighbors, offsets=env.neighbors.offsets[:31]))
    owners = np.random.default_rng(1).integers(0, 30, (~local).sum()).astype(np.int32)
    case = strained(replace(case, env=env, bar=case.bar[: len(env.centers)]))
    gpu = on_gpu(device, case)
    placed = gpu.ops.frames.joined([frame_of(env, owners)], env.centers)
    direction = np.concatenate((case.direction[local], case.direction[owners]))
    given = gpu.new(case.direction[local]), gpu.new(case.strain[:1])
    motion = gpu.ops.motion(placed, *given)
    expected = reference.tangent(env, case.p, case.e, direction, case.strain)
    gpu.ops.tangent(placed, gpu.d, motion)
    assert_close(gpu.down(gpu.ops.tangent_of(placed)), expected, 1e-12)
    forces, virial = np.zeros_like(env.positions), np.zeros((len(env.centers), 3, 3))
    reference.forces_into(env, case.p, case.e, case.bar, forces, virial)
    folded = forces[local].copy()
    np.add.at(folded, owners, forces[~local])
    assert_close(exerted(gpu, placed, case.bar)[0], folded, 1e-12)


def test_a_pair_force_beyond_its_range_ends_the_run(device, se_a_case):
    case = by_type(se_a_case())
    gpu = on_gpu(device, case)
    for factor in (1e9, np.nan):
        with pytest.raises(RunError, match="above 1024 eV/Å or not a number"):
            exerted(gpu, gpu.env, factor * case.bar)


def test_fewer_shares_where_the_table_is_large(device, se_a_case, monkeypatch):
    monkeypatch.setattr(cuda, "SHARED_BYTES", 2**20)
    compare(device, se_a_case("few_intervals"))
    monkeypatch.setattr(cuda, "SHARED_BYTES", 1)
    compare(device, se_a_case("few_intervals"))


def uploaded(new, net: Network) -> Network:
    """The network with its arrays on the GPU."""

    def up(a):
        return None if a is None else new(a)

    return Network([Layer(up(y.w), up(y.b), up(y.idt), y.activation, y.resnet) for y in net.layers])


CHANNELS, AXIS = 11, 4


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("widths", [[12, 24, 24], [44], [47, 47], [88, 13], []])
@pytest.mark.parametrize("name", ["tanh", "silut:0.5"])
def test_fitting_tape_agrees(device, widths, name, dtype):
    rng, tolerance = np.random.default_rng(2), {np.float64: 1e-12, np.float32: 2e-5}[dtype]
    ops, new = CudaSeA(device, CHANNELS, AXIS, 2, dtype), Workspace(device).new
    for n, n_columns, add in ((5, 0, False), (37, 3, True)):
        net = initial_network([CHANNELS * AXIS + n_columns, *widths], name, rng, resnet_dt=True, output=1).astype(dtype)
        if not add and len(widths) > 1:
            net.layers[0].b = None
        moments, tangent = (0.7 * rng.normal(size=(2, n, 4, CHANNELS))).astype(dtype)
        columns, seeds = rng.normal(size=(n, n_columns)).astype(dtype), rng.normal(size=n).astype(dtype)
        start = {key: rng.normal(size=value.shape).astype(dtype) for key, value in net.parameters()}
        native = fitting.FittingTape(net, CHANNELS, AXIS)
        theirs = {key: value.copy() for key, value in start.items()}
        expected = [*native.energy_and_adjoint(moments, columns), native.gradient(seeds, tangent, theirs, add=add)]
        tape = CudaFittingTape(uploaded(new, net), ops)
        found = [new(np.zeros(n, dtype)), new(np.zeros_like(moments)), new(np.zeros_like(moments))]
        kept = new(moments)
        tape.energy_and_adjoint(kept, new(columns) if n_columns else None, *found[:2])
        ours = {key: new(value) for key, value in start.items()}
        tape.gradient(kept, new(seeds), new(tangent), ours, found[2], add=add)
        for a, b in zip((*found, *ours.values()), (*expected, *theirs.values()), strict=True):
            assert_allclose(device.download(a), b, rtol=0, atol=tolerance * np.abs(b).max(initial=1.0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("widths", [[1, 5, 10, 20], [1, 1, 2, 13], [1, 7]])
@pytest.mark.parametrize("grid", GRIDS, ids=["uniform", "two parts"])
@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_knots_agree(device, widths, grid, name, dtype):
    nets, p, rng = networks(3, widths, name, dtype), parameters(3), np.random.default_rng(4)
    new, down = Workspace(device).new, device.download
    twins = [uploaded(new, net) for net in nets]
    table, native = CudaKnotTable(device, twins, p, grid), KnotTable(nets, p, grid)
    tolerance = 2e-13 if dtype is np.float64 else 2e-7
    for step in range(2):
        for a, b in ((table.coefficients, native.coefficients), (table.empty, native.empty)):
            assert_allclose(down(a), b, rtol=0, atol=tolerance * np.abs(b).max())
        if step == 0:  # new weights in the same arrays
            for net, twin in zip(nets, twins, strict=True):
                for (_, value), (_, array) in zip(net.parameters(), twin.parameters(), strict=True):
                    value += (0.1 * rng.normal(size=value.shape)).astype(dtype)
                    device.upload(value, array)
            table.update()
            native.update()
    by_table, by_empty = rng.normal(size=table.coefficients.shape), rng.normal(size=table.empty.shape)
    expected = [{key: np.zeros_like(value) for key, value in net.parameters()} for net in nets]
    found = [{key: new(value) for key, value in arrays.items()} for arrays in expected]
    del found[1]["layers.0.w"]  # what is left out is not asked for
    table.backward(new(by_table), new(by_empty), found)
    native.backward(by_table, by_empty, expected)
    for ours, theirs in zip(found, expected, strict=True):
        for key, array in ours.items():
            value = theirs[key]
            assert_allclose(down(array), value, rtol=0, atol=tolerance * max(np.abs(value).max(), 1.0), err_msg=key)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("decay", "decoupled"), [(0.0, False), (0.01, False), (0.01, True)])
def test_adam_agrees(device, dtype, decay, decoupled):
    rng, new = np.random.default_rng(0), Workspace(device).new
    sizes = (3, PIECE, 2 * PIECE + 5)
    arrays = [
        [rng.normal(size=n).astype(dtype), rng.normal(size=n).astype(dtype), *np.zeros((2, n), dtype)] for n in sizes
    ]
    twins = [[new(a) for a in group] for group in arrays]
    ours = CudaAdam(
        device, np.dtype(dtype), [(*map(device.address, group), n) for group, n in zip(twins, sizes, strict=True)]
    )
    for count in (1, 2, 3):
        s = AdamStep(1e-2, 0.9, 0.999, count, decay, decoupled)
        ours.step(s)
        for group in arrays:
            adam.adam_step(s, *group)
    for group, twin in zip(arrays, twins, strict=True):
        for a, b in zip(group, twin, strict=True):
            assert_allclose(device.download(b), a, rtol=0, atol=1e-14 if dtype is np.float64 else 1e-6)
