from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dphpc.train.optimizers import GradientOptimizer, make_optimizer
from dphpc.train.parameters import Parameters
from tests.models import random_model
from tests.train.optimizers.gradients import gradients, input_with, numpy_values, set_gradients

NAME = "fitting.networks.0.layers.1.w"
B1, B2, LR = 0.9, 0.8, 1e-3


class PlainSoap:
    """Algorithm 3 of arXiv 2409.11321 as it stands there: moments in the original space, for one matrix (m, n)."""

    def __init__(self, w: np.ndarray, left: bool, right: bool, frequency: int) -> None:
        self.w, self.frequency, self.t = w.copy(), frequency, 0
        m, n = w.shape
        self.m, self.v = np.zeros((m, n)), np.zeros((m, n))
        self.c = {"l": np.zeros((m, m)) if left else None, "r": np.zeros((n, n)) if right else None}
        self.q = {"l": np.eye(m), "r": np.eye(n)}

    def step(self, g: np.ndarray) -> None:
        for side, product in (("l", g @ g.T), ("r", g.T @ g)):
            if self.c[side] is None:
                continue
            self.c[side] = B2 * self.c[side] + (1 - B2) * product
            if self.t == 0:
                self.q[side] = np.linalg.eigh(self.c[side])[1][:, ::-1]
            elif self.t % self.frequency == 0:
                estimate = np.diag(self.q[side].T @ self.c[side] @ self.q[side])
                order = np.argsort(-estimate, kind="stable")
                self.v = self.v[order] if side == "l" else self.v[:, order]
                self.q[side] = np.linalg.qr(self.c[side] @ self.q[side][:, order])[0]
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * g
        turned = self.q["l"].T @ g @ self.q["r"]
        self.v = B2 * self.v + (1 - B2) * turned**2
        m_turned = self.q["l"].T @ self.m @ self.q["r"] / (1 - B1**self.t)
        step = m_turned / (np.sqrt(self.v / (1 - B2**self.t)) + 1e-8)
        self.w = (1 - LR * 0.1) * self.w - LR * self.q["l"] @ step @ self.q["r"].T


def soap(parameters: Parameters, **options: Any) -> GradientOptimizer:
    section = {"type": "SOAP", "adam_beta1": B1, "adam_beta2": B2, "weight_decay": 0.1, **options}
    result = make_optimizer(input_with(section), parameters)
    assert isinstance(result, GradientOptimizer)
    return result


@pytest.mark.parametrize(("name", "left"), [(NAME, True), ("fitting.networks.1.layers.0.w", False)])
def test_equals_the_plain_algorithm(name: str, left: bool) -> None:
    parameters = Parameters(random_model())
    optimizer = soap(parameters, precondition_frequency=2, max_precond_dim=20)
    start = numpy_values(parameters)
    assert (start[name].shape[0] <= 20) == left
    plain = PlainSoap(start[name], left, right=True, frequency=2)
    for step in range(7):
        set_gradients(parameters, step)
        plain.step(gradients(parameters)[name].numpy().copy())
        optimizer.step(LR)
    moved = np.abs(plain.w - start[name]).max()
    # Measured 1e-7 at most: a basis that turns fast rounds differently in another BLAS.
    np.testing.assert_allclose(parameters.split(parameters.flats)[name].numpy(), plain.w, rtol=0, atol=1e-6 * moved)


def test_without_any_basis_it_is_adamw() -> None:
    runs = []
    for options in ({"type": "SOAP", "adam_beta1": B1, "adam_beta2": B2, "max_precond_dim": 1},
                    {"type": "Adam", "adam_beta1": B1, "adam_beta2": B2}):  # fmt: skip
        parameters = Parameters(random_model())
        optimizer = make_optimizer(input_with(options), parameters)
        assert isinstance(optimizer, GradientOptimizer)
        for step in range(3):
            set_gradients(parameters, step)
            optimizer.step(LR)
        runs.append(numpy_values(parameters))
    for name, value in runs[0].items():
        np.testing.assert_allclose(value, runs[1][name], rtol=1e-12, atol=1e-15)


def test_a_turned_problem_is_stepped_as_adam_in_its_eigenbasis() -> None:
    """With gradients UDVᵀ of fixed U, V the basis is U, V from the first step on: W moves by Adam on D."""
    parameters = Parameters(random_model())
    optimizer = soap(parameters, weight_decay=0.0, max_precond_dim=20)
    value, gradient = parameters.split(parameters.flats)[NAME], gradients(parameters)[NAME]
    start, n = value.numpy().copy(), value.shape[0]
    rng = np.random.default_rng(5)
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    d, m, s, moved = np.linspace(3.0, 0.5, n), np.zeros(n), np.zeros(n), np.zeros(n)
    for t in range(1, 25):
        g = d * (1.0 + 0.1 * rng.normal())
        set_gradients(parameters, t)
        gradient.copy_(gradient.new_tensor((u * g) @ v.T))
        optimizer.step(LR)
        m, s = B1 * m + (1 - B1) * g, B2 * s + (1 - B2) * g * g
        moved -= LR * (m / (1 - B1**t)) / (np.sqrt(s / (1 - B2**t)) + 1e-8)
    turned = u.T @ (value.numpy() - start) @ v
    np.testing.assert_allclose(np.diag(turned), moved, rtol=1e-6)
