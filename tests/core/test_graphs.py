"""What is kept to be started again, and what is forgotten."""

from __future__ import annotations

from dphpc.core.graphs import Graphs


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
