"""Signals that ask a run to stop in good order: Ctrl-C, a batch system's notice, `kill`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

SAME_REQUEST = 1.0
"""Seconds within which a second signal counts as the first: a launcher may repeat what the terminal has sent."""


@contextmanager
def stop_signals(ask: Callable[[int], None]) -> Iterator[None]:
    """Inside, the first of `STOP_SIGNALS` calls `ask` with its number; a later one has its usual effect.

    Outside the main thread, where Python handles no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked_at: float | None = None

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        if asked_at is None:
            asked_at = time.monotonic()
            ask(number)
        elif time.monotonic() - asked_at > SAME_REQUEST:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for asked, handler in before.items():
            # None: a handler that Python did not install and cannot put back.
            signal.signal(asked, signal.SIG_DFL if handler is None else handler)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        restore()
