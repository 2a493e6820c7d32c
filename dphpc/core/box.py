"""The simulation cell: three row vectors and which directions repeat."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A parallelepiped with the lattice vectors as rows.

    Parameters
    ----------
    matrix
        (3, 3) Å, rows a, b, c.
    periodic
        Which of the three directions repeat.  In a direction that does not, the box only says where
        the atoms are expected; atoms may leave it.
    origin
        (3,) Å, the corner from which fractional coordinates count.

    Raises
    ------
    DataError
        The vectors are not finite or span no volume.
    """

    matrix: Floats
    periodic: tuple[bool, bool, bool] = (True, True, True)
    origin: Floats = field(default_factory=lambda: np.zeros(3))

    def __post_init__(self) -> None:
        matrix = np.ascontiguousarray(self.matrix, dtype=np.float64).reshape(3, 3)
        if not np.all(np.isfinite(matrix)) or abs(np.linalg.det(matrix)) < 1e-6:
            raise DataError(f"the box {matrix.tolist()} spans no volume", expected="three independent vectors in Å")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "origin", np.asarray(self.origin, dtype=np.float64).reshape(3))

    @classmethod
    def around(cls, positions: Floats, margin: float = 1.0) -> Box:
        """An open (non-periodic) box that encloses `positions` (n, 3) with a margin in Å."""
        if len(positions) == 0:
            return cls(np.eye(3), (False, False, False))
        low, high = positions.min(axis=0) - margin, positions.max(axis=0) + margin
        return cls(np.diag(high - low), (False, False, False), low)

    @property
    def volume(self) -> float:
        """Volume in Å³."""
        return float(abs(np.linalg.det(self.matrix)))

    @property
    def inverse(self) -> Floats:
        """(3, 3): positions − origin times this gives fractional coordinates."""
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    @property
    def heights(self) -> Floats:
        """(3,) Å: distance between opposite faces."""
        return 1.0 / np.linalg.norm(self.inverse, axis=0)

    def to_fractional(self, positions: Floats) -> Floats:
        """Fractional coordinates (n, 3) of Cartesian positions (n, 3)."""
        return (positions - self.origin) @ self.inverse

    def to_cartesian(self, fractional: Floats) -> Floats:
        """Cartesian positions (n, 3) in Å of fractional coordinates (n, 3)."""
        return fractional @ self.matrix + self.origin

    def wrap_shifts(self, positions: Floats) -> NDArray[np.int32]:
        """(n, 3) whole cells by which each position lies outside the box, 0 where not periodic."""
        shifts = np.floor(self.to_fractional(positions)).astype(np.int32)
        shifts[:, ~np.array(self.periodic)] = 0
        return shifts

    def wrap(self, positions: Floats) -> Floats:
        """The positions moved into the box along its periodic directions."""
        return positions - self.wrap_shifts(positions) @ self.matrix
