"""Sums whose bits do not depend on the order of their terms, on threads or on ranks.

Each term is rounded to a multiple of a power of two, the spacing.  Multiples of one spacing add without rounding error
while the sum stays below 2⁵³ of them, and so in any order.  A sum over all atoms is kept in three parts with coarse to
fine spacings, so that it has both range and precision; forces and positions have one spacing each.
"""

from __future__ import annotations

import numpy as np

from dphpc.core.arrays import Doubles

SPACINGS = (2.0**-8, 2.0**-30, 2.0**-52)
"""Spacings of a sum's parts: exact up to a magnitude of 2⁴⁵ and 2³² terms, each rounded by 1e-16 at most."""

PARTS = len(SPACINGS)

FORCE_SPACING = 2.0**-38
"""Spacing of forces, 3.6e-12 eV/Å: partial sums may reach 2¹⁵ eV/Å, a single term 2¹³."""

FORCE_LIMIT = 2.0**12
"""Greatest force on an atom, in eV/Å, for which sums of forces are exact for certain."""


def round_to(values: Doubles, spacing: float, out: Doubles | None = None) -> Doubles:
    """The nearest multiples of a power of two, for magnitudes below 2⁵¹ spacings."""
    shift = 1.5 * 2.0**52 * spacing
    out = np.add(values, shift, out=out)
    return np.subtract(out, shift, out=out)


def exact_sum(values: Doubles) -> Doubles:
    """The sum over the first axis of (n, …), in parts (3, …); parts of several arrays may be added."""
    parts = np.empty((PARTS, *values.shape[1:]))
    for k, spacing in enumerate(SPACINGS):
        rounded = round_to(values, spacing)
        parts[k] = np.einsum("i...->...", rounded)  # many times as fast as np.add.reduce for short rows
        if k + 1 < PARTS:
            values = values - rounded
    return parts


def no_sum(*shape: int) -> Doubles:
    """The parts (3, …) of an empty sum."""
    return np.zeros((PARTS, *shape))


def total(parts: Doubles) -> Doubles:
    """The value (…) of a sum that is given in parts (3, …)."""
    return np.asarray(parts[0] + (parts[1] + parts[2]))
