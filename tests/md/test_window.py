"""How far ahead a window reaches."""

from __future__ import annotations

import pytest

from dphpc.md.window import FEW_ATOMS, HASTE, MOST, MOST_OF_FEW, Window, most_steps


def test_nothing_is_known_at_first() -> None:
    assert Window(0.5).steps == 1


@pytest.mark.parametrize(
    ("moved", "after", "steps"),
    [
        (0.0, 1, MOST),  # nothing moves
        (0.1, 100, MOST),
        (0.05 / HASTE, 1, 9),  # 0.46 Å are left, at 0.05 Å a step
        (0.35, 16, 4),
        (0.4, 16, 0),  # for two steps of thirteen a look is too dear
        (0.45, 16, 0),  # the list is to be built anew
        (0.6, 16, 0),
        (0.3, 1, 1),  # a new list would not do for two steps either
    ],
)
def test_a_window_ends_before_the_list_has_had_its_day(moved: float, after: int, steps: int) -> None:
    window = Window(0.5)
    window.saw(moved, after)
    assert window.steps == steps


def test_a_new_list_lasts_as_long_as_the_last() -> None:
    window = Window(0.5)
    window.saw(0.45, 9)
    window.saw(0.0, 0)
    assert window.steps == 6


def test_a_signal_waits_no_longer_for_many_atoms() -> None:
    assert most_steps(FEW_ATOMS) == MOST_OF_FEW
    assert most_steps(FEW_ATOMS + 1) == MOST
