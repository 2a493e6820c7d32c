"""How a box may be strained: which of its lengths and angles change, and which lengths change together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.core.box import Box

ALONG = 1e-6
"""How much of a unit vector may be missing in the plane of the periodic box vectors, as files round these."""

_ODD = np.array([[1.0, 0.3, 0.5], [0.3, 2.0, 0.7], [0.5, 0.7, -1.6]])


@dataclass(frozen=True)
class Freedom:
    """The strains that a box may undergo.

    A strain is a symmetric matrix S (3, 3).  Without `tilts` it is diagonal: box vector i becomes exp(S_ii) times as
    long, and angles stay; if it is `cartesian`, the i-th coordinates of all vectors do so instead.  With `tilts` its
    components are Cartesian, and off-diagonal ones are free between directions that move: positions x become x exp(S),
    then turn so that the box vectors, the rows of h, become h F with a lower triangular F.  So a stays parallel to x,
    and b in the xy plane, if they were.

    Parameters
    ----------
    groups
        The directions that move, 0 to 2; those of one group by the same factor.
    tilts
        Whether angles between directions that move are free, too; each is a group of its own then.
    cartesian
        Whether directions are x, y and z, not those of the box vectors; always so with `tilts`.
    """

    groups: tuple[tuple[int, ...], ...]
    tilts: bool = False
    cartesian: bool = False

    @cached_property
    def moving(self) -> list[int]:
        """The directions that move."""
        return sorted(axis for group in self.groups for axis in group)

    @property
    def has_shapes(self) -> bool:
        """Whether the shape may change at constant volume."""
        return len(self.groups) > 1

    def repeats(self, box: Box) -> list[bool]:
        """(3,): whether a box may move in each direction: a periodic box vector, or x, y, z in the plane of these."""
        if not (self.tilts or self.cartesian):
            return list(box.periodic)
        across = np.linalg.qr(box.matrix[list(box.periodic)].T)[0]  # columns that span the periodic vectors
        return [bool(length > 1.0 - ALONG) for length in np.linalg.norm(across, axis=1)]

    def part(self, tensor: Doubles, *, isochoric: bool = False) -> Doubles:
        """(3, 3): the tensor's orthogonal projection on the strains, or on those of constant volume."""
        kept = np.zeros((3, 3))
        if self.tilts:
            block = np.ix_(self.moving, self.moving)
            kept[block] = 0.5 * (tensor + tensor.T)[block]
        for group in self.groups:
            kept[group, group] = tensor.diagonal()[list(group)].mean()
        if isochoric:
            kept[self.moving, self.moving] -= kept.trace() / len(self.moving)
        return kept

    def seen(self, box: Box, tensor: Doubles) -> Doubles:
        """(3, 3): a Cartesian tensor T in the frame of the strains.

        Along box vectors it is h T h⁻¹, whose diagonal has the components along vector i and the normal of its face.
        """
        apart = not (self.tilts or self.cartesian)
        return np.asarray(box.matrix @ tensor @ box.inverse, np.float64) if apart else tensor

    def strained(self, matrix: Doubles, strain: Doubles) -> tuple[Doubles, Doubles]:
        """Box vectors (3, 3) after a strain, and the rotation R (3, 3) of F = exp(S) Rᵀ.

        Directions that do not move keep every bit.
        """
        if not self.tilts:
            factors = np.exp(strain.diagonal())
            return matrix * (factors if self.cartesian else factors[:, None]), np.eye(3)
        block = np.ix_(self.moving, self.moving)
        lower, turn = np.eye(3), np.eye(3)
        logs, axes = np.linalg.eigh(strain[block])
        lower[block] = np.linalg.cholesky((axes * np.exp(2.0 * logs)) @ axes.T)
        turn[block] = np.linalg.solve(lower[block], (axes * np.exp(logs)) @ axes.T)
        return matrix @ lower, turn

    def typical(self, matrix: Doubles) -> Doubles:
        """Box vectors (3, 3) after some strain that no symmetry makes special."""
        return self.strained(matrix, 0.01 * self.part(_ODD))[0]


ISOTROPIC = Freedom(((0, 1, 2),))
