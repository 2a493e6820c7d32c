"""Electron configurations of free atoms as DeePMD-kit's `use_econf_tebd` describes a type by them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import ModelFileError

_SHELLS = (
    "1s", "2s", "2p", "3s", "3p", "3d", "4s", "4p", "4d", "4f", "5s", "5p", "5d", "5f", "6s", "6p", "6d", "7s", "7p",
)  # fmt: skip
_ORBITALS = {"s": 1, "p": 3, "d": 5, "f": 7}

# Madelung's rule fills by n + l, then n; these atoms have so many electrons of the first shell in the second instead.
_EXCEPTIONS: dict[str, tuple[str, str, int]] = {
    "Cr": ("4s", "3d", 1), "Cu": ("4s", "3d", 1),
    "Nb": ("5s", "4d", 1), "Mo": ("5s", "4d", 1), "Ru": ("5s", "4d", 1), "Rh": ("5s", "4d", 1),
    "Pd": ("5s", "4d", 2), "Ag": ("5s", "4d", 1),
    "La": ("4f", "5d", 1), "Ce": ("4f", "5d", 1), "Gd": ("4f", "5d", 1), "Pt": ("6s", "5d", 1), "Au": ("6s", "5d", 1),
    "Ac": ("5f", "6d", 1), "Th": ("5f", "6d", 2), "Pa": ("5f", "6d", 1), "U": ("5f", "6d", 1), "Np": ("5f", "6d", 1),
    "Cm": ("5f", "6d", 1), "Ds": ("7s", "6d", 1), "Rg": ("7s", "6d", 1),
}  # fmt: skip

WIDTH = 2 * sum(_ORBITALS[shell[1]] for shell in _SHELLS)
"""Numbers for each element: two spins of every orbital from 1s to 7p."""


def configurations(elements: list[str]) -> NDArray[np.float64]:
    """(n, WIDTH) rows of length 1: positive where there is an electron, negative where there is none.

    Raises
    ------
    ModelFileError
        A name is no element's.
    """
    return np.array([_row(element) for element in elements]) / math.sqrt(WIDTH)


def _row(element: str) -> list[int]:
    row = []
    for shell, n in _occupation(element).items():
        orbitals = _ORBITALS[shell[1]]
        # Hund's rule: one electron in each orbital before any gets two.  An orbital's second spin is filled first.
        for k in range(orbitals):
            row += [1 if n > orbitals + k else -1, 1 if n > k else -1]
    return row


def _occupation(element: str) -> dict[str, int]:
    """Electrons of each shell."""
    from ase.data import atomic_numbers  # slow to import, and needed for few models

    left = atomic_numbers.get(element, 0)
    if not left:
        raise ModelFileError(
            f"'{element}' is no element, whose electrons use_econf_tebd is about", where="model/type_map"
        )
    occupation = dict.fromkeys(_SHELLS, 0)
    for shell in sorted(_SHELLS, key=lambda s: (int(s[0]) + _ORBITALS[s[1]] // 2, s)):
        occupation[shell] = min(left, 2 * _ORBITALS[shell[1]])
        left -= occupation[shell]
    if element in _EXCEPTIONS:
        source, target, n = _EXCEPTIONS[element]
        occupation[source] -= n
        occupation[target] += n
    return occupation
