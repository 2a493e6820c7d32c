"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("force", "neighbor", "halo", "wait", "integrate", "output")
"""Phases of a run; `halo` is packing and sending ghosts and summing their forces, `wait` waiting for other ranks."""


class Timers:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._counted = 0.0  # seconds of all phases

    def move(self, seconds: float, source: str, to: str) -> None:
        """Move seconds from one phase's account to another's."""
        self.seconds[source] -= seconds
        self.seconds[to] += seconds

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside the block to `phase`, without that of nested phases."""
        start, before = time.perf_counter(), self._counted
        yield
        seconds = time.perf_counter() - start
        self.seconds[phase] += seconds - (self._counted - before)
        self._counted = before + seconds
