from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dphpc.core.errors import InputError
from dphpc.train.sampler import BLOCK, Sampler
from dphpc.train.schema.training import DataConfig

N_FRAMES, N_ATOMS = [7, 20, 1], [10, 40, 192]


def sampler(seed: int | None = 3, **options: Any) -> Sampler:
    data = DataConfig(systems=["x"], **{"batch_size": 2, **options})
    return Sampler(["a", "b", "c"], N_FRAMES, N_ATOMS, data, seed)


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        (3, [3, 3, 3]),
        ([1, 2, 4], [1, 2, 4]),
        ("auto", [4, 1, 1]),  # at least 32 atoms
        ("auto:100", [10, 3, 1]),
        ("max:100", [10, 2, 1]),  # at most 100, but a frame
    ],
)
def test_batch_sizes(rule: Any, sizes: list[int]) -> None:
    s = sampler(batch_size=rule)
    np.testing.assert_array_equal(s.batch_sizes, sizes)
    np.testing.assert_array_equal(s.n_batches, [-(-n // b) for n, b in zip(N_FRAMES, sizes, strict=True)])


@pytest.mark.parametrize(
    ("options", "probabilities"),
    [
        ({"auto_prob": "prob_uniform"}, [1 / 3, 1 / 3, 1 / 3]),
        ({}, [4 / 15, 10 / 15, 1 / 15]),
        ({"auto_prob": "prob_sys_size;0:1:0.5;1:3:0.5"}, [0.5, 0.5 * 10 / 11, 0.5 / 11]),
        ({"auto_prob": "prob_sys_size;0:1:3;2:3:1"}, [0.75, 0.0, 0.25]),
        ({"sys_probs": [0.5, -1, -1]}, [0.5, 0.5 * 10 / 11, 0.5 / 11]),
        ({"sys_probs": [0.2, 0.3, 0.5]}, [0.2, 0.3, 0.5]),
    ],
)
def test_probabilities(options: dict[str, Any], probabilities: list[float]) -> None:
    s = sampler(**options)
    np.testing.assert_allclose(s.probabilities, probabilities, atol=1e-15)
    drawn = np.bincount([s.draw(i)[0] for i in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(drawn, probabilities, atol=0.03)  # 3 σ is 0.024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": [1, 2]}, "2 entries, but there are 3 systems"),
        ({"sys_probs": [1.0]}, "1 entries, but there are 3 systems"),
        ({"sys_probs": [0.5, 0.1, 0.1]}, "sum to 0.7"),
        ({"sys_probs": [0.5, 0.6, -1]}, "sum to 1.1"),
        ({"auto_prob": "prob_sys_size;0:4:1"}, "goes beyond the 3 systems"),
        ({"auto_prob": "prob_sys_size;0:2:1;1:3:1"}, "overlaps"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        sampler(**options)
    assert caught.value.where == f"training/training_data/{next(iter(options))}"


def test_every_epoch_of_a_system_takes_each_frame_once() -> None:
    s, seen = sampler(), {0: [], 1: [], 2: []}  # type: ignore[var-annotated]
    for step in range(3000):
        system, frames = s.draw(step)
        assert 1 <= len(frames) <= 2
        seen[system].extend(frames.tolist())
    for system, frames in seen.items():
        n = N_FRAMES[system]
        epochs = [frames[i : i + n] for i in range(0, len(frames) - n, n)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert seen[1][:20] != seen[1][20:40]


def test_steps_depend_on_seed_and_step_only() -> None:
    def key(s: Sampler, step: int) -> tuple[int, tuple[int, ...]]:
        system, frames = s.draw(step)
        return system, tuple(frames.tolist())

    one = sampler()
    steps = range(3 * BLOCK)
    in_order = [key(one, i) for i in steps]
    for step in (2 * BLOCK + 5, 7, BLOCK, BLOCK - 1):  # a restart may begin anywhere
        assert key(sampler(), step) == in_order[step]
        assert key(one, step) == in_order[step]
    assert [key(sampler(4), i) for i in range(50)] != in_order[:50]
    assert [key(sampler(None), i) for i in range(5)] == [key(sampler(0), i) for i in range(5)]


def test_steps_per_epoch_and_summary() -> None:
    assert sampler().steps_per_epoch == 15
    assert sampler(sys_probs=[0.5, 0.25, 0.25]).steps_per_epoch == 40
    assert sampler(sys_probs=[1.0, 0.0, 0.0]).steps_per_epoch == 4
    rounded = Sampler("abcd", [238, 151, 80, 1], [9] * 4, DataConfig(systems=["."], batch_size=1), 0)
    assert rounded.steps_per_epoch == 470  # the largest quotient in float64 is above it
    lines = sampler().summary()
    assert lines[2].split() == ["b", "40", "2", "10", "6.667e-01"]
