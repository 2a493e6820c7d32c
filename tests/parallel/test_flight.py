"""Messages that take a known time."""

from __future__ import annotations

import time

import pytest

from dphpc.parallel.flight import Flight


class After:
    """There some seconds after it was started."""

    def __init__(self, seconds: float) -> None:
        self._end, self.ended = time.perf_counter() + seconds, False

    def ready(self) -> bool:
        return time.perf_counter() >= self._end

    def wait(self) -> None:
        time.sleep(max(0.0, self._end - time.perf_counter()))
        self.ended = True


def test_time_behind_work_and_time_waited() -> None:
    done: list[int] = []
    flight = Flight(After(0.2), lambda: done.append(1))
    flight.poll()
    time.sleep(0.1)  # work
    flight.land()
    assert done == [1]
    assert flight.seconds == pytest.approx(0.2, abs=0.08)
    assert flight.blocked == pytest.approx(0.1, abs=0.08)


def test_what_was_seen_to_be_there_blocks_nobody_and_is_ended_all_the_same() -> None:
    messages = After(0.05)
    flight = Flight(messages)
    time.sleep(0.1)
    flight.poll()
    time.sleep(0.2)
    flight.land()
    assert messages.ended
    assert flight.blocked == 0.0
    assert 0.05 <= flight.seconds < 0.25
