"""Messages under way, and how much of their time is hidden behind work."""

from __future__ import annotations

import time
from collections.abc import Callable

from dphpc.parallel.comm import Exchange


class Flight:
    """An exchange that is polled now and then, which also drives MPI's progress, and waited for in the end.

    Attributes
    ----------
    started
        Time of the start, by `time.perf_counter`.
    seconds
        Time from the start until all messages were seen to have arrived.
    blocked
        The part of `seconds` that `land` waited.
    """

    def __init__(self, exchange: Exchange, finish: Callable[[], None] = lambda: None) -> None:
        self._exchange, self._finish = exchange, finish
        self.started = time.perf_counter()
        self.seconds, self.blocked, self._there = 0.0, 0.0, False

    def poll(self) -> None:
        """Look whether all messages have arrived."""
        if not self._there and self._exchange.ready():
            self._there, self.seconds = True, time.perf_counter() - self.started

    def land(self) -> None:
        """Wait for the messages, and put what they bring into its place."""
        before = time.perf_counter()
        self._exchange.wait()
        if not self._there:
            now = time.perf_counter()
            self._there, self.seconds, self.blocked = True, now - self.started, now - before
        self._finish()
