"""How many steps a GPU may do before it is checked whether the neighbor list is still valid."""

from __future__ import annotations

MOST = 16
"""Most steps between two checks: enough of them to share the cost of a check."""

MOST_OF_FEW, FEW_ATOMS = 64, 50_000
"""Most steps for at most so many atoms: their steps are short, for hundreds of atoms shorter than a check."""

HASTE = 1.5
"""Factor by which atoms may become faster than so far without a window being repeated."""

WORTH_A_LOOK = 4
"""A list is rebuilt early if less than one in so many of its steps is left: a further check would cost as much."""


def most_steps(n_atoms: int) -> int:
    """Most steps between checks for so many atoms: they take a fraction of a second, as a signal must wait for them."""
    return MOST_OF_FEW if n_atoms <= FEW_ATOMS else MOST


class Window:
    """Predicts from the atoms' speed so far for how many steps the neighbor list will stay valid.

    Parameters
    ----------
    reach
        Å that an atom may move while the list is valid.
    most
        Most steps between two checks.
    """

    def __init__(self, reach: float, most: int = MOST) -> None:
        self.reach, self.most = reach, most
        self.moved = 0.0
        self.pace: float | None = None  # Å per step since the list was built; None before the first step

    def saw(self, moved: float, steps: int) -> None:
        """Record the largest displacement (Å) of an atom in the steps since the list was built."""
        self.moved = moved
        if steps:
            self.pace = moved / steps

    @property
    def steps(self) -> int:
        """Steps until the next check; 0 if the list should rather be rebuilt, 1 if the pace is unknown."""
        fresh, left = self._within(self.reach), self._within(self.reach - self.moved)
        return 0 if left < max(fresh // WORTH_A_LOOK, 2) <= fresh else max(left, 1)

    @property
    def fresh(self) -> int:
        """Steps until the next check if the list is rebuilt now."""
        return max(self._within(self.reach), 1)

    def _within(self, distance: float) -> int:
        if self.pace is None:
            return 1
        steps = max(distance, 0.0) / (HASTE * self.pace) if self.pace else self.most
        return int(min(steps, self.most))
