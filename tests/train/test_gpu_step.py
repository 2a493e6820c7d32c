"""A training step on a GPU against the CPU's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import InputError, RunError
from dphpc.model.dp_model import DPModel
from dphpc.model.radial_table import Grid
from dphpc.ops.se_a import cuda
from dphpc.ops.workspace import ALIGNMENT
from dphpc.train.data import Frame, Geometry
from dphpc.train.data.batch import Batch, join
from dphpc.train.gpu_step import GpuStep, require_for_gpu
from dphpc.train.parameters import Parameters
from dphpc.train.step import Prediction, TableStep
from tests.models import random_model, random_structure
from tests.train.batches import random_batch, random_seeds
from tests.train.test_gradient import MODELS, gradients, relative


@pytest.fixture(autouse=True)
def few_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks without work take the host that plays a GPU as much time as others."""
    monkeypatch.setattr(cuda, "MOST_SHARES", 3)


NAMES = ("atom_energy", "energy", "forces", "virial")


def steps(device, make, n_intervals=200) -> tuple[GpuStep, TableStep]:
    """A step on the GPU and one on the CPU, each with a model of its own."""
    models = make(), make()
    lower, upper = models[0].descriptor.s_range(0.8)
    grid = Grid.uniform(lower, upper, n_intervals)
    gpu, cpu = (Parameters(model, where) for model, where in zip(models, (device, None), strict=True))
    return GpuStep(models[0], gpu, grid, 1e-9), TableStep(models[1], cpu, grid, 1e-9)


def gradients_of(step: TableStep, seeds) -> dict[str, np.ndarray]:
    step.backward(seeds)
    flats = [flat.grad for flat in step.parameters.flats]
    return {name: value.cpu().numpy().copy() for name, value in step.parameters.split(flats).items()}


def assert_same(ours: Prediction, theirs: Prediction, tolerance: float = 1e-12) -> None:
    for name in NAMES:
        a, b = getattr(ours, name), getattr(theirs, name)
        # Forces and virials are sums of whole multiples of 6e-14 eV/Å.
        assert np.abs(a - b).max() < tolerance * np.abs(b).max() + 5e-13, name


def compare(device, make, tolerance=1e-12, seeds_of="everything") -> None:
    """Predictions and gradients, each relative to the largest."""
    gpu, cpu = steps(device, make)
    batch = random_batch(cpu.model)
    for _ in range(2):  # buffers are there the second time
        assert_same(gpu.forward(batch), cpu.forward(batch), tolerance)
        seeds = random_seeds(batch)
        if seeds_of == "energy":
            seeds = replace(seeds, atom_energy=None, forces=None, virial=None)
        found, expected = gradients_of(gpu, seeds), gradients(cpu, seeds)
        for name, value in expected.items():
            assert relative(found[name], value) < tolerance or np.abs(value).max() < 1e-14, name


@pytest.mark.parametrize(
    "name", ["two_sided", "resnet_dt", "exclude_types", "hidden_type", "atom_ener_with_parameters"]
)
def test_step_equals_the_cpus(device, name: str) -> None:
    compare(device, lambda: random_model(3, **MODELS[name]))


@pytest.mark.parametrize("name", ["parameters", "atom_ener"])
def test_step_equals_the_cpus_for_the_energy_alone(device, name: str) -> None:
    compare(device, lambda: random_model(3, **MODELS[name]), seeds_of="energy")


def test_exclusions_of_the_model(device) -> None:
    excluded = {"pair_exclude_types": frozenset({(0, 0)}), "atom_exclude_types": frozenset({1})}
    compare(device, lambda: replace(random_model(5), **excluded))


def in_float32(model: DPModel) -> DPModel:
    model.descriptor.precision = model.fitting.precision = "float32"
    for net in (*model.descriptor.networks, *model.fitting.networks):
        for layer in net.layers:
            for name, value in list(layer.parameters()):
                setattr(layer, name, value.astype(np.float32))
    return model


def test_float32_step_agrees_with_the_cpu(device) -> None:
    compare(device, lambda: in_float32(random_model(6)), tolerance=2e-5)  # measured 3e-6


def test_the_same_bits_every_time(device) -> None:
    gpu, cpu = steps(device, lambda: random_model(3))
    batch, other = random_batch(cpu.model), random_batch(cpu.model, (30, 9), seed=5)
    results = []
    for _ in range(2):
        prediction = gpu.forward(batch)
        results.append([*(getattr(prediction, n) for n in NAMES), *gradients_of(gpu, random_seeds(batch)).values()])
        gpu.forward(other)
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_frames_of_a_shape_share_graphs(device) -> None:
    """Which read what differs from frame to frame, weights too, where it lies."""
    gpu, cpu = steps(device, lambda: random_model(3))
    types, frames = random_structure(12, n_types=cpu.model.n_types)[2], []
    for seed in range(4):
        x, cell, _ = random_structure(12, length=5.5, seed=seed)
        frames.append(Batch.of(Geometry.of(Frame(x, types, Box(cell)), cpu.model.descriptor.rcut), {}))
    assert len({len(f.neighbors.indices) for f in frames}) > 2
    other = random_batch(cpu.model, (9, 5), seed=9)
    asked = []
    for batch in (*frames, *frames, other, *frames):
        seeds, start = random_seeds(batch), len(getattr(device, "asked", ()))
        assert_same(gpu.forward(batch), cpu.forward(batch))
        found, expected = gradients_of(gpu, seeds), gradients(cpu, seeds)
        for name, value in expected.items():
            assert relative(found[name], value) < 1e-12, name
        asked.append(getattr(device, "asked", [])[start:])
        for step in (gpu, cpu):
            for flat in step.parameters.flats:
                flat.data.mul_(1.001)
            step.weights_changed()
    if not asked[0]:  # a GPU does not tell
        return
    assert asked[-1] == ["join_frames"] + 3 * ["graph"]
    assert len(asked[-len(frames) - 1]) > 50  # the other shape, met for the first time


def test_a_part_of_the_atoms_and_none(device) -> None:
    gpu, cpu = steps(device, lambda: random_model(3))
    whole = random_batch(cpu.model)
    for part in ((5, 20), (7, 7)):
        batch = replace(whole, part=part)
        assert_same(gpu.forward(batch), cpu.forward(batch))
        found, expected = gradients_of(gpu, random_seeds(batch)), gradients(cpu, random_seeds(batch))
        for name, value in expected.items():
            assert np.abs(found[name] - value).max() <= 1e-12 * np.abs(value).max()


def test_frozen_parts_get_no_gradient(device) -> None:
    def make() -> DPModel:
        model = random_model(9)
        model.descriptor.trainable = False
        model.fitting.trainable = [True, False, True, True]
        return model

    compare(device, make)


def test_table_grows_with_the_data_and_with_the_weights(device) -> None:
    gpu, cpu = steps(device, lambda: random_model(8))
    batch = random_batch(cpu.model)
    lower, upper = cpu.grid.lower, cpu.grid.upper
    gpu.grid = Grid.uniform(lower, 0.3 * upper, 300)
    assert relative(gpu.forward(batch).forces, cpu.forward(batch).forces) < 1e-7
    assert gpu.grid.upper > 0.3 * upper
    gpu.grid = Grid.uniform(lower, lower + 1e-3, 8)
    with pytest.raises(RunError, match="so close"):
        gpu.forward(batch)
    gpu.grid = cpu.grid
    for flat in gpu.parameters.flats:
        flat.data.mul_(3.0)
    before = cpu.check_table()
    gpu.weights_changed()
    assert gpu.table_error() > 2 * before  # of the weights that the GPU has
    assert gpu.check_table() <= 1e-9 or gpu.grid.n_intervals >= 4096


def test_frames_stay_on_the_gpu_while_they_fit(emulated) -> None:
    gpu, cpu = steps(emulated, lambda: random_model(3))
    frames = [random_batch(cpu.model, (n,), seed=n) for n in (9, 12, 15)]

    def uploaded(batch) -> int:
        before = emulated.uploaded
        prediction = gpu.forward(batch)
        assert_same(prediction, cpu.forward(batch))
        return emulated.uploaded - before

    for batch in frames:
        assert uploaded(batch) > batch.neighbors.indices.nbytes + batch.positions.nbytes
    centers = 8 * 15 + 8 * 3 + 11 * 8 + 4 * ALIGNMENT  # with their frame, and its place
    together = join(frames)
    assert uploaded(together) <= 8 * 36 + 8 * 3 + 11 * 8 * 3 + 4 * ALIGNMENT
    assert all(uploaded(batch) <= centers for batch in frames)
    gpu._ops.frames.most_bytes = gpu._ops.frames.nbytes
    uploaded(random_batch(cpu.model, (8,), seed=8))  # one has to go: the first
    assert uploaded(frames[1]) <= centers
    assert uploaded(frames[2]) <= centers
    assert uploaded(frames[0]) > frames[0].neighbors.indices.nbytes


def test_weights_come_down_and_go_up(device) -> None:
    model = random_model(2)
    model.fitting.trainable = [True, False, True, True]
    start = {name: np.array(value) for name, value in model.parameters()}
    parameters = Parameters(model, device)
    for flat in parameters.flats:
        flat.data.add_(1.0)
    assert all(np.array_equal(value, start[name]) for name, value in model.parameters())
    parameters.fetch()
    for name, value in model.parameters():
        assert np.array_equal(value, start[name] + (name in parameters.slots))


def test_what_a_gpu_does_not_train() -> None:
    kinked = random_model(1, activation="relu")
    with pytest.raises(InputError, match="'relu' has kinks"):
        require_for_gpu(kinked)
    mixed = random_model(1)
    mixed.fitting.networks[0] = mixed.fitting.networks[0].astype(np.float32)
    with pytest.raises(InputError, match="different precisions"):
        require_for_gpu(mixed)
    require_for_gpu(in_float32(random_model(1)))
