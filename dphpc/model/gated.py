"""Embedding networks times a factor of their own: G(s̃) = N(s̃)·(1 + t·w), w = 1 or the switch at the distance of s̃.

s = sw(r)/(r + p) falls from the contact to rcut, so the switch, a function of r, is one of s as well: sw = s·(r + p).
Where r reaches rcut, s ends as (rcut − r)³; there dsw/ds is rcut + p, and d²sw/ds² goes as s^(−2/3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from dphpc.core.arrays import Doubles
from dphpc.model.networks import Array, Network

_BISECTIONS = 56


@dataclass(frozen=True)
class Gate:
    """The switch function over s̃ = (s − davg)/dstd of a center type; `protection` is p."""

    rcut: float
    rcut_smth: float
    protection: float
    davg: float
    dstd: float

    @property
    def opens(self) -> float:
        """s̃ at rcut_smth, from where on the gate is 1; its third derivative jumps there."""
        nearest = self.rcut_smth + self.protection
        return (1.0 / nearest - self.davg) / self.dstd if nearest > 0 else np.inf

    def jet(self, argument: Doubles) -> tuple[Doubles, Doubles, Doubles]:
        """The switch and its first two derivatives by s̃, (n,) each; below s = 0, where no pair is, it goes on linearly.

        With x = (rcut − r)/(rcut − rcut_smth), u = 1 − x: sw = x³B, dsw/dr = x²A and ds/dr = x²(Aq − xBq²),
        q = 1/(r + p), so that dsw/ds = A/(Aq − xBq²) has no 0/0.
        """
        s = self.davg + self.dstd * np.asarray(argument, np.float64)
        width = self.rcut - self.rcut_smth
        inside = (s > 0) & (argument < self.opens)
        x = np.where(s > 0, 1.0, 0.0)
        x[inside] = self._depth(s[inside])
        u, q = 1.0 - x, 1.0 / np.maximum(self.rcut - width * x + self.protection, np.finfo(float).tiny)
        a, b = -30.0 * u * u / width, 6.0 * u * u + 3.0 * u + 1.0
        d = a * q - x * b * q * q
        a1, b1, q1 = -60.0 * u / width**2, (12.0 * u + 3.0) / width, -q * q  # by r
        d1 = a1 * q + a * q1 + (b / width - x * b1) * q * q - 2.0 * x * b * q * q1
        curvature = (a1 * d - a * d1)[inside] / (x * x * d**3)[inside]
        value = np.where(inside | (s <= 0), s / q, 1.0)
        slope = np.where(inside | (s <= 0), a / d, 0.0) * self.dstd
        second = np.zeros_like(s)
        second[inside] = curvature * self.dstd**2
        return value, slope, second

    def _depth(self, s: Doubles) -> Doubles:
        """x at s > 0, by bisection of the cube roots, which are as good as linear in x."""
        width, root = self.rcut - self.rcut_smth, np.cbrt(s)
        low, high = np.zeros_like(s), np.ones_like(s)
        for _ in range(_BISECTIONS):
            x = 0.5 * (low + high)
            u = 1.0 - x
            r = self.rcut - width * x + self.protection
            above = x * np.cbrt((6.0 * u * u + 3.0 * u + 1.0) / r) > root
            low, high = np.where(above, low, x), np.where(above, x, high)
        return 0.5 * (low + high)


@dataclass
class GatedNetwork(Network):
    """G(s̃) = N(s̃)·(1 + `gains`·w) for a scalar s̃; w is the `gate`, or 1 where that is None.  `gains` (n_out,)."""

    gains: Array
    gate: Gate | None = None

    def parameters(self) -> Iterator[tuple[str, Array]]:
        """All arrays by name."""
        yield from super().parameters()
        yield "gains", self.gains

    def astype(self, dtype: DTypeLike) -> GatedNetwork:
        """As of `Network`."""
        return replace(self, layers=super().astype(dtype).layers, gains=np.ascontiguousarray(self.gains, dtype))

    def __call__(self, x: Array, xp: Any = np) -> Array:
        """Output (n, n_out) for input (n, 1)."""
        return self.jet(x[:, 0], xp)[0]

    def jet(self, s: Array, xp: Any = np) -> tuple[Array, Array, Array]:
        """As of `Network`."""
        n, n1, n2 = super().jet(s, xp)
        if self.gate is None:
            factor = 1.0 + self.gains
            return n * factor, n1 * factor, n2 * factor
        w, w1, w2 = (a[:, None] * self.gains for a in self.gate.jet(s))
        w = 1.0 + w
        return n * w, n1 * w + n * w1, n2 * w + 2.0 * n1 * w1 + n * w2
