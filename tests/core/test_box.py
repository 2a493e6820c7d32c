"""The cell: what lies outside it, and how far."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import DataError


def test_shifts_that_32_bits_do_not_hold_are_refused() -> None:
    box = Box(np.diag([2.0, 3.0, 4.0]))
    assert box.wrap_shifts(np.array([[2.0**32 - 1.0, -1.0, 0.0]])).tolist() == [[2**31 - 1, -1, 0]]
    for far in (2.0**32, -(2.0**32) - 2.0, 1e300):
        with pytest.raises(DataError, match=r"lies .*e\+\d+ cells outside the box"):
            box.wrap_shifts(np.array([[0.0, 0.0, 0.0], [far, 0.0, 0.0]]))
