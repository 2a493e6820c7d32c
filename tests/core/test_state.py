import numpy as np

from dphpc.core.box import Box
from dphpc.core.state import FIELDS, MIGRATING, State


def numbered(n: int) -> State:
    state = State(Box(np.eye(3)), n)
    for k, f in enumerate(FIELDS):
        getattr(state, f.name)[:] = (np.arange(n) + 100 * k).reshape(-1, *(1,) * len(f.shape))
    return state


def test_growing_keeps_every_field() -> None:
    state = numbered(7)
    before = {f.name: getattr(state, f.name).copy() for f in FIELDS}
    state.resize(7, 50)
    assert state.n_all == 57
    for f in FIELDS:
        assert np.array_equal(getattr(state, f.name)[:7], before[f.name])
        assert getattr(state, f.name).dtype == f.dtype


def test_rows_carry_atoms_from_one_state_to_another() -> None:
    state, other = numbered(6), numbered(2)
    rows = state.rows(MIGRATING, np.array([4, 1]))
    state.keep_local(np.array([5, 0, 2, 3]))
    other.append_local(rows)
    assert state.ids.tolist() == [5, 0, 2, 3]
    assert other.ids.tolist() == [0, 1, 4, 1]
    assert other.velocities[2:, 0].tolist() == [304, 301]
