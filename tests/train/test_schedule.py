from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from dphpc.core.errors import InputError
from dphpc.train.schedule import Schedule
from dphpc.train.schema.optimization import CosineConfig, ExpConfig, LearningRateConfig
from tests.train.make_peer import SCHEDULES

PEER = json.loads(Path(__file__).with_name("peer.json").read_text())["schedules"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_deepmd_kit(name: str) -> None:
    options, n_steps = SCHEDULES[name]
    schedule = Schedule(TypeAdapter(LearningRateConfig).validate_python(options), n_steps)
    ours = [schedule(step) for step in range(0, n_steps + 5, max(1, n_steps // 97))]
    assert ours == pytest.approx(PEER[name], rel=1e-13)


def test_prefactors_count_from_the_rate_behind_the_warm_up() -> None:
    schedule = Schedule(ExpConfig(start_lr=1e-3, stop_lr=1e-6, warmup_steps=10), 100)
    assert schedule.start_lr == 1e-3
    assert schedule(0) == 0.0
    assert schedule(10) == 1e-3


def test_a_warm_up_that_takes_all_steps_is_refused() -> None:
    with pytest.raises(InputError, match="warm-up of 50 steps"):
        Schedule(CosineConfig(start_lr=1e-3, stop_lr=1e-6, warmup_steps=50), 50)
