"""Gradients of networks that all types share, against double backward of the plain formula and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dphpc.model.descriptor import SeE2A
from dphpc.model.dp_model import DPModel
from dphpc.model.networks import Layer, Network
from dphpc.model.radial_table import Grid
from dphpc.model.shared import STRIP, TYPES
from dphpc.model.tabulation import tabulation_of
from dphpc.train.initial import initial_model
from dphpc.train.network_step import NetworkStep
from dphpc.train.parameters import Parameters
from dphpc.train.schema import parse_input
from dphpc.train.shared_step import SharedTableStep
from dphpc.train.statistics import Statistics
from tests.train.batches import random_batch, random_seeds
from tests.train.systems import FORMS, shared_input
from tests.train.test_gradient import gradients, relative, seed_sum

PARAMETERS: dict[str, Any] = {"numb_fparam": 2, "numb_aparam": 1}

MODELS: dict[str, dict[str, Any]] = {
    "two_sided": {},
    "one_sided": {"type_one_side": True, "tebd_dim": 5},
    "resnet_dt": {"resnet_dt": True},
    "bias": {"use_tebd_bias": True},
    "skip": {"tebd_dim": 2},
    "double_skip": {"tebd_dim": 4, "use_tebd_bias": True},
    "electrons": {"use_econf_tebd": True},
    "no_output": {"concat_output_tebd": False},
    "excluded": {"exclude_types": [[0, 1]]},
    "silu": {"activation_function": "silu"},
    "parameters": {"fitting": PARAMETERS},
    "frozen_layer": {"fitting": {"trainable": [False, True, True]}},
    "frozen_fitting": {"fitting": {"trainable": False}},
    "frozen_descriptor": {"trainable": False},
}
ROUGH: dict[str, Any] = {"tebd_input_mode": "strip"}
SMOOTH: dict[str, Any] = {**ROUGH, "smooth_type_embedding": True}
MODELS |= {
    f"{form}_{name}": {**keys, **options}
    for form, keys in (("strip", ROUGH), ("smooth", SMOOTH))
    for name, options in {
        "two_sided": {},
        "one_sided": {"type_one_side": True, "tebd_dim": 5},
        "resnet_dt": {"resnet_dt": True, "use_tebd_bias": True},
        "skip": {"tebd_dim": 2},  # of the types' embedding, and of the first layer of the gains'
        "electrons": {"use_econf_tebd": True},
        "no_output": {"concat_output_tebd": False},
        "protection": {"env_protection": 0.3},
        "excluded": {"exclude_types": [[0, 1]]},
        "silu": {"activation_function": "silu"},
        "parameters": {"fitting": PARAMETERS},
        "frozen_fitting": {"fitting": {"trainable": False}},
        "frozen_descriptor": {"trainable": False},
    }.items()
}


def shared_model(seed: int = 0, type_map: tuple[str, ...] = ("O", "H"), **options: Any) -> DPModel:
    """A model with random weights and statistics; `options` are keys of the descriptor, `fitting` some of the net's."""
    given = shared_input()["model"]
    fitting = options.pop("fitting", {})
    given["fitting_net"] |= fitting
    given |= {"type_map": list(type_map), "descriptor": {**given["descriptor"], "sel": 60, **options}}
    config = parse_input({**shared_input(), "model": given}).model
    n, rng = len(type_map), np.random.default_rng(seed)
    scales = (
        {"fparam_avg": np.array([0.1, -0.2]), "fparam_inv_std": np.array([2.0, 0.7])}
        if fitting.get("numb_fparam")
        else {}
    )
    scales |= {"aparam_avg": np.array([0.3]), "aparam_inv_std": np.array([1.5])} if fitting.get("numb_aparam") else {}
    statistics = Statistics(np.zeros(n), rng.uniform(0.1, 0.2, (n, 2)), rng.normal(size=n), **scales)
    return initial_model(config, statistics, seed, 0.9)


class Plain:
    """Networks of single types and pairs that torch makes of the shared leaves: what `NetworkStep` wants."""

    def __init__(self, model: DPModel, parameters: Parameters) -> None:
        self.model, self.parameters = model, parameters

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parameters, name)

    def _torch(self, prefix: str) -> Network:
        """A shared network with its leaves, or where it is not trained with tensors."""
        s, leaves, layers = self.model.shared, self.parameters._leaves, []
        assert s is not None
        for i, layer in enumerate(s.groups[prefix][0].layers):
            w, b, idt = (
                leaves.get(f"{prefix}.0.layers.{i}.{k}", None if (a := getattr(layer, k)) is None else torch.tensor(a))
                for k in ("w", "b", "idt")
            )
            layers.append(Layer(w, b, idt, layer.activation, layer.resnet))
        return Network(layers)

    @property
    def _tebd(self) -> torch.Tensor:
        s = self.model.shared
        assert s is not None
        return self._torch(TYPES)(torch.from_numpy(s.inputs), torch)

    @property
    def descriptor_networks(self) -> list[Network]:
        first, *rest = self.parameters.descriptor_networks[0].layers
        s, t, d = self.model.shared, self._tebd, self.model.descriptor
        assert s is not None
        inputs = [t[n] if s.one_side else torch.cat((t[n], t[c])) for n, c in s.pairs]
        if s.strip is not None:
            gains = self._torch(STRIP)(torch.stack(inputs), torch)
            scales = [float(d.dstd[c, 0]) if s.smooth else None for _, c in s.pairs]
            return [Stripped([first, *rest], g, d, scale) for g, scale in zip(gains, scales, strict=True)]
        biases = [first.b + x @ first.w[1:] for x in inputs]
        return [Network([Layer(first.w[:1], b, first.idt, first.activation, False), *rest]) for b in biases]

    @property
    def fitting_networks(self) -> list[Network]:
        first, *rest = self.parameters.fitting_networks[0].layers
        s, t = self.model.shared, self._tebd
        assert s is not None
        if not s.output_types:
            return [Network([first, *rest]) for _ in t]
        end = s.at + t.shape[1]
        w = torch.cat((first.w[: s.at], first.w[end:]))
        return [
            Network([Layer(w, first.b + c @ first.w[s.at : end], first.idt, first.activation, False), *rest]) for c in t
        ]


class Stripped(Network):
    """N(s̃)·(1 + gains·w), where w is the switch at the distance that s = scale·s̃ belongs to, or 1."""

    def __init__(self, layers: list[Layer], gains: torch.Tensor, d: SeE2A, scale: float | None) -> None:
        super().__init__(layers)
        self.gains, self.d, self.scale = gains, d, scale

    def __call__(self, x: Any, xp: Any = np) -> Any:
        w = 1.0 if self.scale is None else self.switch(self.scale * x)
        return super().__call__(x, xp) * (1.0 + self.gains * w)

    def switch(self, s: torch.Tensor) -> torch.Tensor:
        """By bisection for the distance, and a Newton step that torch differentiates."""
        low, high = torch.full_like(s, 1e-3), torch.full_like(s, self.d.rcut)
        for _ in range(60):
            middle = 0.5 * (low + high)
            near = self.s_of(middle)[0] > s.detach()
            low, high = torch.where(near, middle, low), torch.where(near, high, middle)
        outside = s.detach() <= 0.0
        r = torch.where(outside, 0.5 * torch.ones_like(s), 0.5 * (low + high)).requires_grad_(True)
        value, w = self.s_of(r)
        slope, of_w = (torch.autograd.grad(y.sum(), r, retain_graph=True)[0] for y in (value, w))
        return torch.where(outside, 0.0 * s, w.detach() + of_w * (s - value.detach()) / slope)

    def s_of(self, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """s and the switch at a distance."""
        u = ((r - self.d.rcut_smth) / (self.d.rcut - self.d.rcut_smth)).clamp(0.0, 1.0)
        w = u**3 * (-6.0 * u**2 + 15.0 * u - 10.0) + 1.0
        return w / (r + self.d.env_protection), w


def steps(model: DPModel) -> tuple[SharedTableStep, NetworkStep]:
    parameters = Parameters(model)
    how = tabulation_of(model.descriptor)
    lower, upper = how.x_range(0.8)
    grid = Grid.uniform(lower, upper, 1024) if how.equal_steps else how.training_grid(lower, upper, 1e-12, 8192)
    step = SharedTableStep(model, parameters, grid, tolerance=1e-9)
    step.parameters = parameters
    return step, NetworkStep(model, Plain(model, parameters))


@pytest.mark.parametrize("name", MODELS)
def test_equals_double_backward(name: str) -> None:
    model = shared_model(3, **MODELS[name])
    table, plain = steps(model)
    batch = random_batch(model)
    first, second = table.forward(batch), plain.forward(batch)
    names = ("atom_energy", "energy", "forces", "virial")
    assert max(relative(getattr(first, n), getattr(second, n)) for n in names) < 1e-10
    ours, theirs = gradients(table, random_seeds(batch)), gradients(plain, random_seeds(batch))
    assert all(np.any(g) for g in ours.values())
    assert ours.keys() == table.parameters.split(table.parameters.flats).keys()
    # Measured over all cases: 1e-11.
    assert max(relative(ours[n], theirs[n]) for n in ours) < 1e-10


def smooth_step(tolerance: float, nearest: float, seed: int = 8) -> tuple[SharedTableStep, NetworkStep]:
    model = shared_model(seed, **MODELS["smooth_two_sided"])
    parameters = Parameters(model)
    grid = SharedTableStep.fitting_grid(model, nearest, tolerance)
    step = SharedTableStep(model, parameters, grid, tolerance)
    return step, NetworkStep(model, Plain(model, parameters))


def test_a_smooth_table_grows_until_it_reaches_every_pair() -> None:
    """Of center types whose s̃ have different scales."""
    step, plain = smooth_step(1e-9, nearest=2.5)
    model, before = step.model, step.grid
    assert model.descriptor.dstd[0, 0] != model.descriptor.dstd[1, 0]
    batch = random_batch(model)
    assert relative(step.forward(batch).forces, plain.forward(batch).forces) < 1e-6  # measured 3e-8
    first = np.repeat(np.arange(batch.n_local), np.diff(batch.neighbors.offsets))
    apart = np.linalg.norm(batch.positions[batch.neighbors.indices] - batch.positions[first], axis=1)
    needed, scales = 1.0 / apart.min(), model.descriptor.dstd[:, 0]
    assert needed < step.grid.upper < needed * scales.max() / scales.min() + step.grid.steps[-1]
    assert (step.grid.lower, step.grid.steps) == (before.lower, before.steps)


def test_a_smooth_table_is_chosen_anew_where_it_misses_the_tolerance() -> None:
    step, plain = smooth_step(1e-6, nearest=0.8)
    upper, error = step.grid.upper, step.table_error()
    assert 1e-7 < error < 1e-6
    assert step.check_table() == error
    for layer in step.model.shared.embedding.layers:  # type: ignore[union-attr]
        layer.w *= 2.0
    step.weights_changed()
    assert step.table_error() > 1e-6
    assert step.check_table() < 1e-6
    assert step.grid.lower == 0.0
    assert step.grid.upper == pytest.approx(upper, rel=1e-9)
    batch = random_batch(step.model)
    assert relative(step.forward(batch).forces, plain.forward(batch).forces) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_three_types_of_which_one_is_absent(form: str) -> None:
    model = shared_model(4, ("O", "H", "Si"), **FORMS[form])
    table, plain = steps(model)
    batch, whole = random_batch(model), random_batch(model)
    table.forward(whole)
    gradients(table, random_seeds(whole))
    batch.types[batch.types == 1] = 2  # rows of neighbors stay sorted by type
    table.forward(batch), plain.forward(batch)
    ours, theirs = gradients(table, random_seeds(batch)), gradients(plain, random_seeds(batch))
    assert max(relative(ours[n], theirs[n]) for n in ours) < 1e-10
    assert not ours["descriptor.type_embedding.0.layers.0.w"][1].any()


def test_equals_finite_differences() -> None:
    model = shared_model(5, use_tebd_bias=True)
    step, _ = steps(model)
    batch = random_batch(model)
    seeds, h = random_seeds(batch), 1e-5
    step.forward(batch)
    found, arrays = gradients(step, seeds), step.parameters.split(step.parameters.flats)
    types, embedding, fitting = (
        f"{n}.0.layers" for n in ("descriptor.type_embedding", "descriptor.networks", "fitting.networks")
    )
    places = {
        f"{types}.0.w": (3,), f"{types}.0.b": (1,), f"{embedding}.0.w": (1, 9), f"{embedding}.1.w": (3,),
        f"{fitting}.0.w": (3, -1), f"{fitting}.0.b": (2,),
    }  # fmt: skip
    for name, k in ((name, k) for name, numbers in places.items() for k in numbers):
        values = []
        for sign in (1, -1):
            arrays[name].view(-1)[k] += sign * h
            step.weights_changed()
            values.append(seed_sum(step.forward(batch), seeds))
            arrays[name].view(-1)[k] -= sign * h
        # Measured: 1e-7 of the value, from the difference's own rounding.
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(found[name].ravel()[k], rel=1e-5, abs=1e-6)


def test_float32_is_near_float64() -> None:
    both = []
    for precision in ("float32", "float64"):
        model = shared_model(6, precision=precision, fitting={"precision": precision})
        step, _ = steps(model)
        batch = random_batch(model)
        step.forward(batch)
        both.append(gradients(step, random_seeds(batch)))
    for name, value in both[0].items():
        assert value.dtype == np.float32
        assert relative(value, both[1][name]) < 1e-3  # measured 1e-5


def test_groups_of_gradients_are_told_of_once_each_is_finished() -> None:
    step, _ = steps(shared_model(7))
    batch = random_batch(step.model)
    step.forward(batch)
    told: list[tuple[str, dict[str, np.ndarray]]] = []

    def done(part: str) -> None:
        told.append((part, {n: g.copy() for n, g in step.parameters.gradients_of(part).items()}))

    step.backward(random_seeds(batch), done)
    assert [part for part, _ in told] == ["fitting.networks.0", "descriptor"]
    for part, values in told:
        final = step.parameters.gradients_of(part)
        assert values
        assert all(np.array_equal(value, final[n]) for n, value in values.items())
