"""Training of networks that all types share on several ranks, against one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dphpc.parallel.comm import Communicator, Serial
from tests.train.systems import FORMS, shared_input, with_descriptor
from tests.train.test_data_parallel import BATCHES, gradient, new_trainer

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_that_of_one_rank(form: str, comm: Communicator, common_folder: Path) -> None:
    given = with_descriptor(shared_input(), **FORMS[form])
    ours, alone = new_trainer(given, comm), new_trainer(given, Serial())
    for n in BATCHES:
        frames = list(range(n))
        got = gradient(ours, 0, frames, (comm.rank, comm.size))
        for a, b in zip(got, gradient(alone, 0, frames, (0, 1)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_a_batch_of_each_rank_averages_gradients(comm: Communicator, common_folder: Path) -> None:
    given = {**shared_input(), "dphpc": {"batch": "per_rank"}}
    ours, alone = new_trainer(given, comm), new_trainer(shared_input(), Serial())
    got = gradient(ours, 0, [comm.rank % 5], (0, 1), own=True)[-1]
    expected = np.mean([gradient(alone, 0, [r % 5], (0, 1))[-1] for r in range(comm.size)], axis=0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
