import os
import signal
import threading

import pytest

from dphpc.core import signals
from dphpc.core.signals import STOP_SIGNALS, stop_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_asks_and_all_is_as_before_afterwards(number: int) -> None:
    asked: list[int] = []
    before = signal.getsignal(number)
    with stop_signals(asked.append):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # passed on by a launcher within the second: the same request
    assert asked == [number]
    assert signal.getsignal(number) is before


def test_a_later_signal_acts_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST", 0.0)
    asked: list[int] = []

    def twice() -> None:
        with stop_signals(asked.append):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("went on after the second signal")

    # A shell that starts its tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            twice()
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == [signal.SIGINT]


def test_other_threads_go_without() -> None:
    done: list[bool] = []

    def work() -> None:
        with stop_signals(lambda number: None):
            done.append(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
