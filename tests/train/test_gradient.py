"""The tangent pass against torch's double backward and against finite differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dphpc.core.errors import RunError
from dphpc.model.dp_model import DPModel
from dphpc.model.radial_table import Grid
from dphpc.train.network_step import NetworkStep
from dphpc.train.parameters import Parameters
from dphpc.train.step import LossGradient, Prediction, TableStep
from tests.models import random_model
from tests.train.batches import random_batch, random_seeds

PARAMETERS = {
    "numb_fparam": 2, "fparam_avg": np.array([0.1, -0.2]), "fparam_inv_std": np.array([2.0, 0.7]),
    "numb_aparam": 1, "aparam_avg": np.array([0.3]), "aparam_inv_std": np.array([1.5]),
}  # fmt: skip

MODELS: dict[str, dict] = {
    "two_sided": {},
    "one_sided": {"one_side": True},
    "resnet_dt": {"resnet_dt": True, "one_side": True},
    "davg_zero": {"set_davg_zero": True},
    "gelu": {"activation": "gelu", "one_side": True},
    "silu": {"activation": "silu"},
    "exclude_types": {"exclude_types": frozenset({(0, 1)}), "set_davg_zero": True},
    "hidden_type": {"sel": (24, 0), "one_side": True},
    "env_protection": {"env_protection": 0.2},
    "parameters": {"fitting": PARAMETERS},
    "atom_ener": {"fitting": {"atom_ener": [-1.0, None]}},
    "atom_ener_with_parameters": {"fitting": {"atom_ener": [-1.0, -2.0], **PARAMETERS}},
}


def table_step(model: DPModel, parameters: Parameters, n_intervals: int = 1024) -> TableStep:
    lower, upper = model.descriptor.s_range(0.8)
    return TableStep(model, parameters, Grid.uniform(lower, upper, n_intervals), tolerance=1e-9)


def gradients(engine: TableStep | NetworkStep, seeds: LossGradient) -> dict[str, np.ndarray]:
    engine.backward(seeds)
    flats = [flat.grad for flat in engine.parameters.flats]
    return {name: value.numpy().copy() for name, value in engine.parameters.split(flats).items()}


def compare(model: DPModel, seeds_of: str = "everything") -> tuple[float, float]:
    """Largest relative difference of any prediction, and of any parameter's gradient."""
    parameters, batch = Parameters(model), random_batch(model)
    table, network = table_step(model, parameters), NetworkStep(model, parameters)
    first, second = table.forward(batch), network.forward(batch)
    names = ("atom_energy", "energy", "forces", "virial")
    prediction = max(relative(getattr(first, n), getattr(second, n)) for n in names)
    seeds = random_seeds(batch)
    if seeds_of == "virial":
        seeds = replace(seeds, energy=0 * seeds.energy, atom_energy=None, forces=None)
    if seeds_of == "energy":
        seeds = replace(seeds, atom_energy=None, forces=None, virial=None)
    ours, theirs = gradients(table, seeds), gradients(network, seeds)
    assert any(np.any(g) for name, g in ours.items() if name.startswith("descriptor"))
    return prediction, max(relative(ours[name], theirs[name]) for name in ours)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-12))


@pytest.mark.parametrize("name", MODELS)
def test_equals_double_backward(name: str) -> None:
    prediction, gradient = compare(random_model(3, **MODELS[name]))
    # Measured over all cases: 2e-12 and 1e-11 (the table of 1,024 intervals is exact to rounding).
    assert prediction < 1e-10
    assert gradient < 1e-10


@pytest.mark.parametrize("seeds", ["virial", "energy"])
def test_equals_double_backward_for_single_terms(seeds: str) -> None:
    assert compare(random_model(4), seeds)[1] < 1e-10


def test_exclusions_of_the_model() -> None:
    model = replace(random_model(5), pair_exclude_types=frozenset({(0, 0)}), atom_exclude_types=frozenset({1}))
    prediction, gradient = compare(model)
    assert prediction < 1e-10
    assert gradient < 1e-10
    batch = random_batch(model)
    energies = table_step(model, Parameters(model)).forward(batch).atom_energy
    assert np.all(energies[batch.types[: batch.n_local] == 1] == 0.0)


def test_float32_model_is_near_its_float64_twin() -> None:
    single, double = random_model(6), random_model(6)
    single.descriptor.precision = single.fitting.precision = "float32"
    for net in (*single.descriptor.networks, *single.fitting.networks):
        for layer in net.layers:
            for name, value in list(layer.parameters()):
                setattr(layer, name, value.astype(np.float32))
    batch = random_batch(double)
    results = []
    for model in (single, double):
        step = table_step(model, Parameters(model), 256)
        forces = step.forward(batch).forces
        results.append((forces, gradients(step, random_seeds(batch))))
    assert relative(results[0][0], results[1][0]) < 1e-4  # measured 1e-6
    for name, value in results[0][1].items():
        assert value.dtype == np.float32
        assert relative(value, results[1][1][name]) < 1e-3  # measured 3e-6


def seed_sum(prediction: Prediction, seeds: LossGradient) -> float:
    pairs = ((prediction.energy, seeds.energy), (prediction.atom_energy, seeds.atom_energy),
             (prediction.forces, seeds.forces), (prediction.virial, seeds.virial))  # fmt: skip
    return sum(float((a * b).sum()) for a, b in pairs if b is not None)


def test_equals_finite_differences() -> None:
    model = random_model(7, one_side=True, resnet_dt=True)
    parameters, batch = Parameters(model), random_batch(model)
    step, seeds = table_step(model, parameters), random_seeds(batch)
    step.forward(batch)
    found = gradients(step, seeds)
    arrays = parameters.split(parameters.flats)
    h = 1e-5
    descriptor, fitting = "descriptor.networks.0.layers", "fitting.networks.1.layers"
    for name in (f"{descriptor}.1.w", f"{descriptor}.2.idt", f"{fitting}.0.w", f"{fitting}.2.b"):
        values = []
        for sign in (1, -1):
            arrays[name].view(-1)[3] += sign * h
            step.weights_changed()
            values.append(seed_sum(step.forward(batch), seeds))
            arrays[name].view(-1)[3] -= sign * h
        # Measured: 3e-8 of the value, from the difference's own rounding.
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(found[name].ravel()[3], rel=1e-5, abs=1e-6)


def test_table_grows_with_the_data_and_with_the_weights() -> None:
    model = random_model(8)
    batch, parameters = random_batch(model), Parameters(model)
    lower, upper = model.descriptor.s_range(0.8)
    short = TableStep(model, parameters, Grid.uniform(lower, 0.3 * upper, 300), tolerance=1e-9)
    expected = table_step(model, parameters).forward(batch).forces
    assert relative(short.forward(batch).forces, expected) < 1e-7  # extrapolated it would be off by far more
    assert short.grid.upper > 0.3 * upper
    far = TableStep(model, parameters, Grid.uniform(lower, lower + 1e-3, 8), tolerance=1e-9)
    with pytest.raises(RunError, match="so close"):
        far.forward(batch)
    coarse = TableStep(model, parameters, Grid.uniform(lower, upper, 8), tolerance=1e-9)
    assert coarse.check_table() <= 1e-9
    assert coarse.grid.n_intervals > 8


def test_frozen_parts_get_no_gradient() -> None:
    model = random_model(9)
    model.descriptor.trainable = False
    model.fitting.trainable = [True, False, True, True]
    parameters, batch = Parameters(model), random_batch(model)
    names = set(parameters.slots)
    assert not any(name.startswith("descriptor") for name in names)
    assert "fitting.networks.0.layers.0.w" in names
    assert "fitting.networks.0.layers.1.w" not in names
    table, network = table_step(model, parameters), NetworkStep(model, parameters)
    table.forward(batch), network.forward(batch)
    ours, theirs = gradients(table, random_seeds(batch)), gradients(network, random_seeds(batch))
    assert max(relative(ours[name], theirs[name]) for name in ours) < 1e-10


@pytest.mark.parametrize("excluded", [False, True])
def test_a_rank_without_atoms_to_evaluate_adds_nothing(excluded: bool) -> None:
    model = random_model(11)
    batch = random_batch(model)
    if excluded:
        model = replace(model, atom_exclude_types=frozenset({0, 1}))
    else:  # as where a batch has fewer atoms than there are ranks
        batch = replace(batch, part=(5, 5))
    parameters = Parameters(model)
    for engine in (table_step(model, parameters), NetworkStep(model, parameters)):
        prediction = engine.forward(batch)
        assert prediction.forces.shape == (batch.n_local, 3)
        assert not any(np.any(getattr(prediction, name)) for name in ("atom_energy", "energy", "forces", "virial"))
        for gradient in parameters.gradients:
            gradient.fill_(1.0)
        assert not any(np.any(g) for g in gradients(engine, random_seeds(batch)).values())


@pytest.mark.parametrize("davg_zero", [False, True])
def test_networks_of_absent_types_cost_nothing_and_change_nothing(davg_zero: bool) -> None:
    model = random_model(10, n_types=3, set_davg_zero=davg_zero)
    parameters, batch = Parameters(model), random_batch(model)
    batch.types[batch.types == 1] = 2  # rows of neighbors stay sorted by type
    table, network = table_step(model, parameters), NetworkStep(model, parameters)
    first, second = table.forward(batch), network.forward(batch)
    assert relative(first.forces, second.forces) < 1e-10
    ours, theirs = gradients(table, random_seeds(batch)), gradients(network, random_seeds(batch))
    assert max(relative(ours[name], theirs[name]) for name in ours) < 1e-10
    centers = batch.centers.without(model.atom_exclude_types)
    used = table._networks_of(batch.present, centers.types)
    assert len(used) == (4 if davg_zero else 6)  # of 9: two center types, two or three neighbor types
    assert not any(np.any(g) for name, g in ours.items() if name.startswith("descriptor.networks.1."))
