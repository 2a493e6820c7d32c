"""Activation functions with their first two derivatives, for NumPy arrays and torch tensors alike.

Each function takes the array module `xp` (numpy or torch) and an array, and returns value, first and
second derivative.  The names and definitions are DeePMD-kit's (`activation_function` in its input).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from dphpc.core.errors import InputError, did_you_mean

Array = Any
"""A NumPy array or a torch tensor."""

Jet = tuple[Array, Array, Array]
Activation = Callable[[Any, Array], Jet]


def _tanh(xp: Any, x: Array) -> Jet:
    t = xp.tanh(x)
    d = 1.0 - t * t
    return t, d, -2.0 * t * d


def _logistic(xp: Any, x: Array) -> Array:
    # By tanh: no overflow for large |x|.
    return 0.5 * (1.0 + xp.tanh(0.5 * x))


def _sigmoid(xp: Any, x: Array) -> Jet:
    y = _logistic(xp, x)
    d = y * (1.0 - y)
    return y, d, d * (1.0 - 2.0 * y)


def _softplus(xp: Any, x: Array) -> Jet:
    y, d, _ = _sigmoid(xp, x)
    return xp.log1p(xp.exp(-abs(x))) + 0.5 * (x + abs(x)), y, d


def _relu(xp: Any, x: Array) -> Jet:
    on = xp.where(x > 0, xp.ones_like(x), xp.zeros_like(x))
    return x * on, on, xp.zeros_like(x)


def _relu6(xp: Any, x: Array) -> Jet:
    on = xp.where((x > 0) & (x < 6), xp.ones_like(x), xp.zeros_like(x))
    return xp.clip(x, 0.0, 6.0), on, xp.zeros_like(x)


def _gelu(xp: Any, x: Array) -> Jet:
    # The tanh form, which DeePMD-kit uses under both names (Hendrycks & Gimpel, arXiv:1606.08415).
    c, k = math.sqrt(2.0 / math.pi), 0.044715
    t, dt, ddt = _tanh(xp, c * (x + k * x**3))
    u1, u2 = c * (1.0 + 3.0 * k * x * x), c * 6.0 * k * x
    first = 0.5 * (1.0 + t) + 0.5 * x * dt * u1
    return 0.5 * x * (1.0 + t), first, dt * u1 + 0.5 * x * (ddt * u1 * u1 + dt * u2)


def _silu(xp: Any, x: Array) -> Jet:
    y, d, dd = _sigmoid(xp, x)
    return x * y, y + x * d, 2.0 * d + x * dd


def _silut(xp: Any, x: Array, threshold: float) -> Jet:
    # silu below the threshold, above it a tanh that continues value and slope.
    y = 1.0 / (1.0 + math.exp(-threshold))
    value, slope = threshold * y, y + threshold * y * (1.0 - y)
    low = _silu(xp, x)
    t, dt, ddt = _tanh(xp, slope * (x - threshold))
    high = (t + value, slope * dt, slope * slope * ddt)
    below = x < threshold
    return tuple(xp.where(below, a, b) for a, b in zip(low, high, strict=True))  # type: ignore[return-value]


def _linear(xp: Any, x: Array) -> Jet:
    return x, xp.ones_like(x), xp.zeros_like(x)


_PLAIN: dict[str, Activation] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "relu": _relu,
    "relu6": _relu6,
    "gelu": _gelu,
    "gelu_tf": _gelu,
    "silu": _silu,
    "none": _linear,
    "linear": _linear,
}

KINKED = frozenset({"relu", "relu6", "silut", "custom_silu"})
"""Activations whose second derivative jumps: a smooth table cannot stand for such a network."""


def activation(name: str) -> Activation:
    """The function of that name; `silut:T` (or `custom_silu:T`) carries its threshold (3.0 if absent).

    Raises
    ------
    InputError
        No such activation; the nearest known name is offered.
    """
    base, _, argument = name.lower().partition(":")
    if base in ("silut", "custom_silu"):
        try:
            return partial(_silut, threshold=float(argument) if argument else 3.0)
        except ValueError:
            raise InputError(f"activation '{name}' has no number behind the colon", expected="silut:3.0") from None
    if base not in _PLAIN or argument:
        known = [*_PLAIN, "silut", "custom_silu"]
        raise InputError(f"unknown activation function '{name}'", remedy=did_you_mean(base, known))
    return _PLAIN[base]


def has_kinks(name: str) -> bool:
    """Whether a network with this activation is too rough to tabulate."""
    return name.lower().partition(":")[0] in KINKED
