"""Compression: the table's error as measured, and what it does to forces."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.core.errors import InputError, ModelFileError
from dphpc.model.compress import compress
from dphpc.potential.deep_pot import DeepPot
from tests.models import random_model, random_structure


def test_forces_change_by_less_than_promised() -> None:
    model = random_model(0)
    compressed, report = compress(model)
    assert max(report.error_g, report.error_slope) < 1e-9
    x, cell, types = random_structure()
    exact, found = (DeepPot(m).eval(x[None], cell[None], types) for m in (model, compressed))
    assert np.abs(found[1] - exact[1]).max() < 1e-7  # measured 2e-11
    assert "largest error inside" in str(report)


def test_step_is_honoured() -> None:
    coarse = compress(random_model(0), step=0.5)[1]
    fine = compress(random_model(0), step=0.05)[1]
    assert fine.n_intervals > 8 * coarse.n_intervals
    assert fine.error_g < coarse.error_g / 1000


def test_refusals() -> None:
    with pytest.raises(ModelFileError, match="kinks"):
        compress(random_model(0, activation="relu"))
    with pytest.raises(InputError, match="empty"):
        compress(random_model(0), step=-1.0)
    with pytest.raises(InputError, match=r"the step 0.0001 is too small\n.*\n  expected: at least 0\.000"):
        compress(random_model(0), step=1e-4)
