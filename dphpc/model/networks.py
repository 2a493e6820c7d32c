"""Fully connected networks in DeePMD-kit's form, evaluated with NumPy or torch.

One layer is y = act(x·W + b)·idt + skip, where skip is x if input and output are equally wide, [x, x] if
the output is twice as wide, and nothing otherwise (and nothing where `resnet` is off).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from dphpc.model.activations import Array, activation, has_kinks


@dataclass
class Layer:
    """One layer: `w` (n_in, n_out), `b` (n_out,) or None, `idt` (n_out,) or None."""

    w: Array
    b: Array | None
    idt: Array | None
    activation: str
    resnet: bool

    @property
    def skip(self) -> int:
        """How many copies of the input are added to the output: 0, 1 or 2."""
        n_in, n_out = self.w.shape
        return {n_in: 1, 2 * n_in: 2}.get(n_out, 0) if self.resnet else 0

    def parameters(self) -> Iterator[tuple[str, Array]]:
        """The arrays that are there, by name."""
        for name in ("w", "b", "idt"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)


@dataclass
class Network:
    """A chain of layers."""

    layers: list[Layer]

    @property
    def n_in(self) -> int:
        """Width of the input."""
        return int(self.layers[0].w.shape[0])

    @property
    def n_out(self) -> int:
        """Width of the output."""
        return int(self.layers[-1].w.shape[1])

    @property
    def has_kinks(self) -> bool:
        """Whether any activation is too rough for a smooth table."""
        return any(has_kinks(layer.activation) for layer in self.layers)

    def parameters(self) -> Iterator[tuple[str, Array]]:
        """All arrays with names such as `layers.0.w`."""
        for i, layer in enumerate(self.layers):
            for name, value in layer.parameters():
                yield f"layers.{i}.{name}", value

    def astype(self, dtype: DTypeLike) -> Network:
        """A NumPy network with its arrays in another precision."""

        def to(a: Array | None) -> Array | None:
            return None if a is None else np.ascontiguousarray(a, dtype)

        return Network([replace(y, w=to(y.w), b=to(y.b), idt=to(y.idt)) for y in self.layers])

    def __call__(self, x: Array, xp: Any = np) -> Array:
        """Output (n, n_out) for input (n, n_in)."""
        for layer in self.layers:
            z = x @ layer.w if layer.b is None else x @ layer.w + layer.b
            y = activation(layer.activation)(xp, z)[0]
            x = _join(xp, y if layer.idt is None else y * layer.idt, x, layer.skip)
        return x

    def jet(self, s: Array, xp: Any = np) -> tuple[Array, Array, Array]:
        """Output and its first two derivatives, each (n, n_out), for a scalar input `s` (n,).

        Forward mode: (x, x′, x″) goes through each layer with
        y′ = a′(z)·z′ and y″ = a″(z)·z′² + a′(z)·z″.
        """
        x, x1, x2 = s[:, None], xp.ones_like(s)[:, None], xp.zeros_like(s)[:, None]
        for layer in self.layers:
            z = x @ layer.w if layer.b is None else x @ layer.w + layer.b
            z1, z2 = x1 @ layer.w, x2 @ layer.w
            a, a1, a2 = activation(layer.activation)(xp, z)
            y, y1, y2 = a, a1 * z1, a2 * z1 * z1 + a1 * z2
            if layer.idt is not None:
                y, y1, y2 = y * layer.idt, y1 * layer.idt, y2 * layer.idt
            x, x1, x2 = (_join(xp, new, old, layer.skip) for new, old in ((y, x), (y1, x1), (y2, x2)))
        return x, x1, x2

    def adjoint(self, x: Array, y: Array) -> tuple[dict[str, Array], Array]:
        """Gradients of Σ ȳ·y, with ȳ = `y` (n, n_out), by all arrays, by name, and by the input `x` (n, n_in).

        Of NumPy arrays only.
        """
        kept = []
        for layer in self.layers:
            z = x @ layer.w if layer.b is None else x @ layer.w + layer.b
            a, slope, _ = activation(layer.activation)(np, z)
            kept.append((x, a, slope))
            x = _join(np, a if layer.idt is None else a * layer.idt, x, layer.skip)
        found: dict[str, Array] = {}
        for i, (layer, (x, a, slope)) in reversed(list(enumerate(zip(self.layers, kept, strict=True)))):
            z = y * slope if layer.idt is None else y * layer.idt * slope
            own = {"w": x.T @ z, "b": z.sum(axis=0), "idt": (y * a).sum(axis=0)}
            found |= {f"layers.{i}.{name}": own[name] for name, _ in layer.parameters()}
            skipped = sum(np.split(y, layer.skip, axis=1)) if layer.skip else 0.0
            y = z @ layer.w.T + skipped
        return found, y


def _join(xp: Any, y: Array, x: Array, skip: int) -> Array:
    if skip == 0:
        return y
    return y + x if skip == 1 else y + xp.concatenate((x, x), 1)


def initial_network(
    widths: list[int],
    activation_function: str,
    rng: np.random.Generator,
    *,
    resnet_dt: bool = False,
    output: int | None = None,
) -> Network:
    """A network with random weights as DeePMD-kit draws them.

    W ~ N(0, 1/(n_in+n_out)), b ~ N(0, 1), idt ~ N(0.1, 0.001²); `output` is the width of a final linear layer.
    `widths` starts with the input width.
    """
    layers = []
    for n_in, n_out in pairwise(widths):
        w = rng.normal(0.0, 1.0 / np.sqrt(n_in + n_out), (n_in, n_out))
        with_dt = resnet_dt and n_out in (n_in, 2 * n_in)
        idt = rng.normal(0.1, 0.001, n_out) if with_dt else None
        layers.append(Layer(w, rng.normal(0.0, 1.0, n_out), idt, activation_function, True))
    if output is not None:
        w = rng.normal(0.0, 1.0 / np.sqrt(widths[-1] + output), (widths[-1], output))
        layers.append(Layer(w, rng.normal(0.0, 1.0, output), None, "linear", False))
    return Network(layers)
