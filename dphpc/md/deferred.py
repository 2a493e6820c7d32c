"""Work of the host that is deferred until a GPU computes, so that both go on at the same time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from dphpc.core.errors import DphpcError
from dphpc.md.timers import Timers
from dphpc.parallel.comm import Communicator

T = TypeVar("T")

Work = Generator[None, None, None]
"""Work in pieces, each up to a `yield`; the first copies what is needed of the atoms before they move on."""


class Deferred:
    """Deferred work, one at a time; its time is counted as output.

    If several ranks take part in a work, all must ask for each piece together, while no messages are under way.

    Parameters
    ----------
    at_once
        Whether to do all of a work when it begins, as there is nothing to overlap it with.
    """

    def __init__(self, timers: Timers, at_once: bool = True) -> None:
        self._timers, self._at_once = timers, at_once
        self._work: Iterator[None] = iter(())

    def begin(self, work: Work) -> None:
        """Finish the previous work, then do the first piece of this one; collective if the work is."""
        self.finish()
        self._work = work
        self.piece()
        if self._at_once:
            self.finish()

    def piece(self) -> bool:
        """Do the next piece; returns whether more may be left."""
        with self._timers("output"):
            return next(self._work, self) is not self

    def finish(self) -> None:
        """Do all remaining pieces."""
        while self.piece():
            pass

    @contextmanager
    def finished(self, comm: Communicator) -> Iterator[None]:
        """Finish the work at the end of the block, also if an error that all ranks agree on ends it."""
        try:
            yield
        except DphpcError as error:
            if comm.size == 1 or error.agreed:
                with suppress(DphpcError):  # must not hide the error that ended the block
                    self.finish()
            raise
        self.finish()


def at_once(work: Generator[None, None, T]) -> T:
    """Do all pieces of a work; returns its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
