"""Fixed atoms: which they are and in which directions, and what a run with them cannot do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.errors import InputError
from dphpc.core.fixing import AXES, FixedAtoms, axes_of, number_of
from dphpc.md.config import Fixed, MdConfig
from dphpc.md.selection import Choice
from dphpc.md.stages import Stage

MIXED = 1e-9
"""Part of a length along another direction, after a strain of about 1 %, that is more than rounding."""


class FixedChoice(Choice):
    """The run file's choice of fixed atoms, applied to the atoms of one rank."""

    def __init__(self, chosen: Sequence[Fixed], type_map: Sequence[str]) -> None:
        super().__init__([("'fixed'", selection) for selection in chosen], type_map)
        self._numbers = [number_of(selection.directions) for selection in chosen]

    def mark_(self, rows: NDArray, coordinates: NDArray[np.float64]) -> None:
        """Fix the chosen ones of a structure's rows, and no others; a `structures.Mark`."""
        rows["fixed"] = 0
        for place, atoms in self.find(rows, coordinates):
            rows["fixed"][atoms] |= self._numbers[place]


def fixed_lines(settings: MdConfig, box: Box, n_atoms: int, fixed: FixedAtoms) -> list[str]:
    """The header's line about fixed atoms, if there are any; `box` is that of the run's beginning.

    Raises
    ------
    InputError
        All atoms are fixed, or a stage would deform the box, or turn the directions in which some are fixed.
    """
    if not fixed.n_atoms:
        return []
    by = settings.structure if settings.fixed is None else "the run file"
    if fixed.n_wholly == n_atoms:
        raise InputError(
            "all atoms are fixed: nothing would move", where=by, remedy="fix fewer, for instance fixed: {ids: [1]}"
        )
    deforming = [n for n, stage in enumerate(settings.stages, 1) if stage.rates]
    if deforming:
        raise InputError(
            f"{fixed.n_atoms:,} atoms are fixed, which 'deform_per_ps' would move with the box",
            where=f"{by}; stage {deforming[0]}", expected="a box that stays, or moves by its pressure",
            remedy="leave 'deform_per_ps' out, or fix none: fixed: {}",
        )  # fmt: skip
    _refuse_turned(settings.stages, box, fixed, by)
    partly = fixed.n_atoms - fixed.n_wholly
    some = f", {partly:,} of them in some directions only" if partly else ""
    return [f"fixed:     {fixed.n_atoms:,} of {n_atoms:,} atoms, as {by} says{some}"]


def _refuse_turned(stages: Sequence[Stage], box: Box, fixed: FixedAtoms, by: str) -> None:
    """Refuse stages that strain the box so that a displacement along free directions gets a part along fixed ones.

    If none does in the box of the beginning, none does in a box that they make of it.
    """
    for n, stage in enumerate(stages, 1):
        if stage.freedom is None:
            continue
        strained = stage.freedom.typical(box.matrix)
        mixes = np.abs(np.linalg.solve(box.matrix, strained)) > MIXED  # a row for what each direction becomes
        for held in map(axes_of, fixed.partly):
            free = [axis for axis in range(3) if axis not in held]
            if mixes[np.ix_(free, held)].any():
                raise InputError(
                    f"atoms are fixed along {' and '.join(AXES[k] for k in held)}, which 'pressure_bar' would turn "
                    "into a direction in which they move",
                    where=f"{by}; stage {n}",
                    expected="directions that stay Cartesian: all of them in a cuboid box at constant angles; "
                    "with free angles z, or y and z",
                    remedy="a constant box, coupling: isotropic, or atoms that are fixed in all directions",
                )  # fmt: skip
