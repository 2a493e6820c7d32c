"""How much of the time that messages are under way passes behind work."""

from __future__ import annotations

import time
from collections.abc import Callable

from dphpc.parallel.comm import Exchange


class Flight:
    """Messages under way: polled now and then, which also drives them on, and at last waited for.

    Attributes
    ----------
    started
        When, on the clock of `time.perf_counter`.
    seconds
        From the start until they were seen to be there.
    blocked
        Of which waiting.
    """

    def __init__(self, exchange: Exchange, finish: Callable[[], None] = lambda: None) -> None:
        self._exchange, self._finish = exchange, finish
        self.started = time.perf_counter()
        self.seconds, self.blocked, self._there = 0.0, 0.0, False

    def poll(self) -> None:
        """See whether they are there."""
        if not self._there and self._exchange.ready():
            self._there, self.seconds = True, time.perf_counter() - self.started

    def land(self) -> None:
        """Wait for them and put what they bring into its place."""
        before = time.perf_counter()
        self._exchange.wait()
        if not self._there:
            now = time.perf_counter()
            self._there, self.seconds, self.blocked = True, now - self.started, now - before
        self._finish()
