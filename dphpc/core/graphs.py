"""What a GPU is told to do again and again, kept so that it is told with one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Protocol

MOST = 64
"""Graphs that are kept: each holds a little of the GPU's memory."""

Work = Callable[[], None]


class Stream(Protocol):
    """Of CuPy's."""

    def begin_capture(self) -> None:
        """Keep what is told from now on instead of doing it."""
        ...

    def end_capture(self) -> Any:
        """What was kept, to be started by its `launch`; an error where it cannot be."""
        ...


def recorded(stream: Stream, work: Work) -> Work:
    """Starts what a work tells a stream, which is not started now; an error of the work's ends the recording."""
    stream.begin_capture()
    try:
        work()
    except BaseException:
        with suppress(Exception):  # of a broken recording: what broke it is to be seen
            stream.end_capture()
        raise
    launch: Work = stream.end_capture().launch  # on the stream that is current then
    return launch


class Graphs:
    """Graphs by key, those that were used last.

    Parameters
    ----------
    capture
        Gives what starts, at one call, all that a work launches, without starting it.
    most
        Keys to remember.
    """

    def __init__(self, capture: Callable[[Work], Work], most: int = MOST) -> None:
        self._capture, self._most = capture, most
        self._kept: dict[Hashable, Work | None] = {}
        self._within = False  # another's work

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
            work()  # programs are loaded, libraries choose their kernels
        else:
            start = self._kept.pop(key) or self._capture(work)
            start()
        self._kept[key] = start
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
