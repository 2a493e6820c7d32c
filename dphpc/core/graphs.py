"""CUDA graphs: a sequence of launches that is repeated, captured once and then started by one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Protocol

MOST = 64
"""Graphs that are kept; each takes a little of the GPU's memory."""

Work = Callable[[], None]
"""A function that launches kernels, copies and matrix products."""


class Stream(Protocol):
    """What is used of CuPy's streams."""

    def begin_capture(self) -> None:
        """Record what is launched from now on instead of doing it."""

    def end_capture(self) -> Any:
        """The recorded graph, whose `launch` starts it; raises where it cannot be made."""


def recorded(stream: Stream, work: Work) -> Work:
    """Capture what a work launches on a stream, without doing it; returns what starts it.

    An error of the work ends the capture and is raised.
    """
    stream.begin_capture()
    try:
        work()
    except BaseException:
        with suppress(Exception):  # of the broken capture: its cause is what the user should see
            stream.end_capture()
        raise
    launch: Work = stream.end_capture().launch  # on the stream that is current then
    return launch


class Graphs:
    """The most recently used graphs, by key.

    Parameters
    ----------
    capture
        Captures what a work launches, and returns what starts it.
    most
        Number of keys to remember.
    """

    def __init__(self, capture: Callable[[Work], Work], most: int = MOST) -> None:
        self._capture, self._most = capture, most
        self._kept: dict[Hashable, Work | None] = {}
        self._within = False  # inside the work of another `replay`

    def replay(self, key: Hashable, work: Work) -> None:
        """See `Device.replay`."""
        if self._within:
            work()
            return
        self._within = True
        try:
            self._replay(key, work)
        finally:
            self._within = False

    def _replay(self, key: Hashable, work: Work) -> None:
        start = None
        if key not in self._kept:
            work()  # not captured: programs are loaded, libraries choose their kernels
        else:
            start = self._kept.pop(key) or self._capture(work)
            start()
        self._kept[key] = start
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
