"""How many steps may go by before somebody looks whether the neighbor list still holds."""

from __future__ import annotations

MOST = 16
"""Steps: what a look costs is then spread over enough of them."""

MOST_OF_FEW, FEW_ATOMS = 64, 50_000
"""Of so few atoms steps are short, of hundreds shorter than a look."""

HASTE = 1.5
"""How much faster than so far atoms may become without a step being done twice."""

WORTH_A_LOOK = 4
"""Of the steps of a new list one in so many: where fewer are left, a look costs as much as the list that it saves."""


def most_steps(n_atoms: int) -> int:
    """Steps from look to look in a run of so many atoms: a fraction of a second, that a signal may have to wait."""
    return MOST_OF_FEW if n_atoms <= FEW_ATOMS else MOST


class Window:
    """Foretells from how fast atoms went when the neighbor list has had its day.

    Parameters
    ----------
    reach
        Å that an atom may move until then.
    most
        Steps at most.
    """

    def __init__(self, reach: float, most: int = MOST) -> None:
        self.reach, self.most = reach, most
        self.moved = 0.0
        self.pace: float | None = None  # Å a step, since the list was built

    def saw(self, moved: float, steps: int) -> None:
        """The atom that is farthest from its place moved so many Å in the steps since the list was built."""
        self.moved = moved
        if steps:
            self.pace = moved / steps

    @property
    def steps(self) -> int:
        """Steps until the next look; 0 where the list should rather be built anew, 1 where nothing is known."""
        fresh, left = self._within(self.reach), self._within(self.reach - self.moved)
        return 0 if left < max(fresh // WORTH_A_LOOK, 2) <= fresh else max(left, 1)

    @property
    def fresh(self) -> int:
        """Steps until the next look after the list is built anew."""
        return max(self._within(self.reach), 1)

    def _within(self, distance: float) -> int:
        if self.pace is None:
            return 1
        steps = max(distance, 0.0) / (HASTE * self.pace) if self.pace else self.most
        return int(min(steps, self.most))
