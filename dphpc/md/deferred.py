"""Work of the host's that can wait until a card has something to do."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from dphpc.core.errors import DphpcError
from dphpc.md.timers import Timers
from dphpc.parallel.comm import Communicator

T = TypeVar("T")

Work = Generator[None, None, None]
"""Pieces of work, one up to each `yield`; the first takes what is needed of the atoms before they move on."""


class Deferred:
    """One work at a time, all of it counted as output.

    Where several ranks take part in a work all ask for its pieces alike, at points where no messages are under way.

    Parameters
    ----------
    at_once
        Whether nothing is gained by waiting.
    """

    def __init__(self, timers: Timers, at_once: bool = True) -> None:
        self._timers, self._at_once = timers, at_once
        self._work: Iterator[None] = iter(())

    def begin(self, work: Work) -> None:
        """Do the first piece of a work, once the one before is finished; collective where it is."""
        self.finish()
        self._work = work
        self.piece()
        if self._at_once:
            self.finish()

    def piece(self) -> bool:
        """Do the next piece; whether more may be left."""
        with self._timers("output"):
            return next(self._work, self) is not self

    def finish(self) -> None:
        """Do all that is left."""
        while self.piece():
            pass

    @contextmanager
    def finished(self, comm: Communicator) -> Iterator[None]:
        """A phase at whose end nothing is left, also where an error ends it upon which all ranks agree."""
        try:
            yield
        except DphpcError as error:
            if comm.size == 1 or error.agreed:
                with suppress(DphpcError):  # what ended the phase is to be seen
                    self.finish()
            raise
        self.finish()


def at_once(work: Generator[None, None, T]) -> T:
    """Do all pieces of a work and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
