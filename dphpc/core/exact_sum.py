"""Sums whose bits do not depend on the order of their terms, on threads or on ranks.

A term is rounded to a multiple of a power of two.  Multiples of one spacing add without rounding error as long as the
sum stays below 2⁵³ of them, and what adds without error may be added in any order.  Sums over all atoms are kept in
three parts, from coarse to fine, so that they reach far and lose nothing; forces and positions take one spacing each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPACINGS = (2.0**-8, 2.0**-30, 2.0**-52)
"""Of a sum's parts: exact up to a magnitude of 2⁴⁵ and 2³² terms, each of which is rounded by 1e-16 at most."""

PARTS = len(SPACINGS)

FORCE_SPACING = 2.0**-38
"""eV/Å, of forces (3.6e-12): partial sums may reach 2¹⁵ eV/Å, a single term 2¹³."""

FORCE_LIMIT = 2.0**12
"""eV/Å on an atom, beyond which sums of forces might round."""


def round_to(values: Floats, spacing: float, out: Floats | None = None) -> Floats:
    """The nearest multiples of a power of two; magnitudes below 2⁵¹ spacings."""
    shift = 1.5 * 2.0**52 * spacing
    out = np.add(values, shift, out=out)
    return np.subtract(out, shift, out=out)


def exact_sum(values: Floats) -> Floats:
    """The sum over the first axis of (n, …), in parts (3, …), which add up over several arrays."""
    parts = np.empty((PARTS, *values.shape[1:]))
    for k, spacing in enumerate(SPACINGS):
        rounded = round_to(values, spacing)
        parts[k] = np.einsum("i...->...", rounded)  # of short rows many times as fast as np.add.reduce
        if k + 1 < PARTS:
            values = values - rounded
    return parts


def no_sum(*shape: int) -> Floats:
    """The parts (3, …) of nothing."""
    return np.zeros((PARTS, *shape))


def total(parts: Floats) -> Floats:
    """The value (…) of a sum in parts (3, …)."""
    return np.asarray(parts[0] + (parts[1] + parts[2]))
