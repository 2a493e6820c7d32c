"""What is recorded, what is kept to be started again, and what is forgotten."""

from __future__ import annotations

import pytest

from dphpc.core.graphs import Graphs, recorded


def test_the_keys_that_were_used_last_are_kept():
    said = []

    def capture(work):
        said.append("capture")
        return lambda: said.append("start")

    graphs = Graphs(capture, most=2)

    def replay(*keys):
        said.clear()
        for key in keys:
            graphs.replay(key, lambda: said.append("work"))
        return said

    assert replay("a", "a", "a") == ["work", "capture", "start", "start"]
    assert replay("b", "a", "b") == ["work", "start", "capture", "start"]
    assert replay("c", "b", "a") == ["work", "start", "work"], "the oldest had to go"


def test_within_a_work_that_is_replayed_another_is_a_part_of_it():
    said = []

    def capture(work):
        work()
        return lambda: said.append("start")

    graphs = Graphs(capture)

    def work():
        said.append("work")
        graphs.replay("inner", lambda: said.append("inner"))

    for _ in range(3):
        graphs.replay("outer", work)
    assert said == ["work", "inner"] * 2 + ["start"] * 2
    graphs.replay("inner", lambda: said.append("new"))
    assert said[-1] == "new", "what is a part has not been met by itself"


class BreakableStream:
    """A recording that an error of its work's breaks cannot be ended without one more, as CUDA has it."""

    def __init__(self):
        self.said = []

    def begin_capture(self):
        self.said.append("begin")

    def end_capture(self):
        self.said.append("end")
        if "broken" in self.said:
            raise RuntimeError("the capture is invalid")
        return self

    def launch(self):
        self.said.append("launch")


def test_what_is_recorded_starts_when_it_is_launched():
    stream = BreakableStream()
    start = recorded(stream, lambda: stream.said.append("work"))
    assert stream.said == ["begin", "work", "end"]
    start()
    assert stream.said[3:] == ["launch"]


def test_the_error_that_broke_a_recording_is_seen():
    stream = BreakableStream()

    def work():
        stream.said.append("broken")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recorded(stream, work)
    assert stream.said == ["begin", "broken", "end"], "a stream must not stay in a recording"
