"""Messages that take a known time."""

from __future__ import annotations

import pytest

from dphpc.parallel.flight import Flight
from tests.parallel.conftest import Clock


class After:
    """There some seconds after it was started."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._end, self.ended = clock, clock.now + seconds, False

    def ready(self) -> bool:
        return self._clock.now >= self._end

    def wait(self) -> None:
        self._clock.sleep(max(0.0, self._end - self._clock.now))
        self.ended = True


def test_time_behind_work_and_time_waited(clock: Clock) -> None:
    done: list[int] = []
    flight = Flight(After(clock, 5.0), lambda: done.append(1))
    flight.poll()
    clock.sleep(3.0)  # work
    flight.land()
    assert done == [1]
    assert flight.seconds == pytest.approx(5.0)
    assert flight.blocked == pytest.approx(2.0)


def test_what_was_seen_to_be_there_blocks_nobody_and_is_ended_all_the_same(clock: Clock) -> None:
    messages = After(clock, 1.0)
    flight = Flight(messages)
    clock.sleep(2.0)
    flight.poll()
    clock.sleep(4.0)
    flight.land()
    assert messages.ended
    assert (flight.seconds, flight.blocked) == (2.0, 0.0)
