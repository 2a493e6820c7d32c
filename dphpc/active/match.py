"""Matching labelled frames to those asked for, as a program may reorder frames or atoms, or leave frames out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from dphpc.train.data.writer import PER_ATOM, Configuration

TOLERANCE = 1e-3
"""Å by which cell vectors and positions may differ, as programs round them, some in fractional coordinates or bohr."""


def matched(asked: Sequence[Atoms], found: Sequence[Configuration]) -> tuple[list[Configuration | None], list[str]]:
    """The labels of each frame that was asked for, with atoms in its order; None if there are none.

    Returns
    -------
    The labels, and for each labelled frame that matches none a line that says why.
    """
    labels: list[Configuration | None] = [None] * len(asked)
    useless: list[str] = []
    for k, configuration in enumerate(found):
        # Most programs keep the order of frames.
        first = [k] if k < len(asked) else []
        seen, reasons = False, list[str]()
        for i in [*first, *(i for i in range(len(asked)) if i != k)]:
            order, reason = compared(asked[i], configuration)
            if order is None:
                reasons.append(reason)
            elif labels[i] is None:
                labels[i] = _reordered(configuration, order)
                break
            else:
                seen = True
        else:
            why = "is there twice" if seen else f"is none that was asked for: {reasons[0]}"
            useless.append(f"labelled frame {k} {why}")
    return labels, useless


def compared(asked: Atoms, found: Configuration) -> tuple[NDArray[np.int64] | None, str]:
    """(n,) the found atom in the place of each atom asked for; or None, and what differs."""
    if len(asked) != len(found.symbols):
        return None, f"{len(found.symbols)} atoms in place of {len(asked)}"
    if sorted(asked.symbols) != sorted(found.symbols):
        return None, "other species"
    periodic = bool(asked.pbc.all())
    if periodic != (found.cell is not None):
        return None, "periodic" if found.cell is not None else "not periodic"
    if found.cell is not None and not np.allclose(asked.cell.array, found.cell, rtol=0.0, atol=TOLERANCE):
        return None, f"its cell differs by {np.abs(asked.cell.array - found.cell).max():.3g} Å"
    species = np.array(found.symbols)
    order = np.arange(len(asked))
    same = species == np.array(asked.get_chemical_symbols())
    far = _distances(asked, asked.positions, found.positions)
    for i in np.flatnonzero(~(same & (far <= TOLERANCE))):  # not in its place: look through its species
        others = np.flatnonzero(species == asked.symbols[i])
        distances = _distances(asked, asked.positions[i], found.positions[others])
        nearest = int(np.argmin(distances))
        if not distances[nearest] <= TOLERANCE:
            own = far[i] if same[i] else distances[nearest]
            return None, f"atom {i} is {own:.3g} Å away"
        order[i] = others[nearest]
    if len(np.unique(order)) < len(order):
        return None, "two atoms are in one place"
    return order, ""


def _distances(frame: Atoms, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) Å, distances between nearest images; exact for small distances, and only these matter."""
    d = b - a
    if frame.pbc.all():
        cell = frame.cell.array
        fractions = d @ np.linalg.inv(cell)
        d = (fractions - np.round(fractions)) @ cell
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", d, d)))


def _reordered(found: Configuration, order: NDArray[np.int64]) -> Configuration:
    values = {name: np.asarray(v)[order] if name in PER_ATOM else v for name, v in found.values.items()}
    return Configuration([found.symbols[i] for i in order], found.positions[order], found.cell, values)
