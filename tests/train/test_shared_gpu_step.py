"""A training step on a GPU of networks that all types share, against the CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.model.radial_table import Grid
from dphpc.model.tabulation import tabulation_of
from dphpc.ops.se_a import cuda
from dphpc.train.data import Frame, Geometry
from dphpc.train.data.batch import Batch, join
from dphpc.train.parameters import Parameters
from dphpc.train.shared_gpu_step import SharedGpuStep
from dphpc.train.shared_step import SharedTableStep
from tests.models import random_structure
from tests.train.batches import random_batch, random_seeds
from tests.train.systems import FORMS
from tests.train.test_gpu_step import assert_same
from tests.train.test_gradient import relative
from tests.train.test_shared_step import MODELS, shared_model


@pytest.fixture(autouse=True)
def few_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks without work take the host that plays a GPU as much time as others."""
    monkeypatch.setattr(cuda, "MOST_SHARES", 3)


def gradients(step: SharedTableStep | SharedGpuStep, parameters: Parameters, seeds: Any) -> dict[str, np.ndarray]:
    told: list[str] = []
    step.backward(seeds, told.append)
    trained = {name.rsplit(".", 4)[0] for name in parameters.slots}
    assert told == ["fitting.networks.0", *(["descriptor"] if step.model.descriptor.trainable else [])], trained
    flats = [flat.grad for flat in parameters.flats]
    return {name: value.cpu().numpy().copy() for name, value in parameters.split(flats).items()}


def steps(device: Any, **options: Any) -> tuple[tuple[SharedGpuStep, Parameters], tuple[SharedTableStep, Parameters]]:
    """A step on the GPU and one on the CPU, each with a model and parameters of its own."""
    models = shared_model(3, **options), shared_model(3, **options)
    how = tabulation_of(models[0].descriptor)
    limits = how.x_range(0.8)
    grid = Grid.uniform(*limits, 200) if how.equal_steps else how.training_grid(*limits, 1e-7, 300)
    on_gpu, on_cpu = (Parameters(model, where) for model, where in zip(models, (device, None), strict=True))
    gpu, cpu = SharedGpuStep(models[0], on_gpu, grid, 1e-9), SharedTableStep(models[1], on_cpu, grid, 1e-9)
    return (gpu, on_gpu), (cpu, on_cpu)


def compare(device: Any, tolerance: float = 1e-12, **options: Any) -> None:
    """Predictions and gradients before and after a change of all weights."""
    (gpu, on_gpu), (cpu, on_cpu) = steps(device, **options)
    batch = random_batch(cpu.model)
    seeds = random_seeds(batch)
    for factor in (1.0, 1.1):
        for parameters in (on_gpu, on_cpu):
            for flat in parameters.flats:
                flat.detach().mul_(factor)
        for step in (gpu, cpu):
            step.weights_changed()
        assert_same(gpu.forward(batch), cpu.forward(batch), tolerance)
        found, expected = gradients(gpu, on_gpu, seeds), gradients(cpu, on_cpu, seeds)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.any(value)
            assert relative(found[name], value) < tolerance, name
    assert gpu.table_error() == pytest.approx(cpu.table_error(), rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_without_a_type(device: Any, form: str) -> None:
    """After one that has it."""
    (gpu, on_gpu), (cpu, on_cpu) = steps(device, type_map=("O", "H", "Si"), **FORMS[form])
    for lacks in (False, True):
        x, cell, types = random_structure(16, length=5.5, n_types=3)
        frame = Frame(Box(cell).wrap(x), np.where(types == 1, 2, types) if lacks else types, Box(cell))
        batch = join([Batch.of(Geometry.of(frame, cpu.model.descriptor.rcut), {})])
        for step in (gpu, cpu):
            step.forward(batch)
        seeds = random_seeds(batch)
        found, expected = gradients(gpu, on_gpu, seeds), gradients(cpu, on_cpu, seeds)
        assert max(relative(found[name], value) for name, value in expected.items()) < 1e-12


@pytest.mark.parametrize(
    "name",
    [
        "two_sided",
        "one_sided",
        "resnet_dt",
        "bias",
        "no_output",
        "parameters",
        "frozen_fitting",
        "frozen_descriptor",
        "strip_two_sided",
        "strip_one_sided",
        "strip_frozen_fitting",
        "strip_frozen_descriptor",
        "smooth_resnet_dt",
        "smooth_one_sided",
        "smooth_parameters",
    ],
)
def test_step_equals_the_cpus(device: Any, name: str) -> None:
    compare(device, **MODELS[name])


@pytest.mark.parametrize("form", FORMS)
def test_float32_step_agrees_with_the_cpu(device: Any, form: str) -> None:
    compare(device, 2e-5, precision="float32", fitting={"precision": "float32"}, **FORMS[form])


def test_a_smooth_table_grows(device: Any) -> None:
    model = shared_model(8, **MODELS["smooth_two_sided"])
    grid = SharedGpuStep.fitting_grid(model, 2.5, 1e-6)
    step = SharedGpuStep(model, Parameters(model, device), grid, 1e-6)
    batch = random_batch(model)
    found = step.forward(batch)
    assert step.grid.upper > grid.upper
    other = SharedTableStep(model, Parameters(model), step.grid, 1e-6)
    assert_same(found, other.forward(batch))
