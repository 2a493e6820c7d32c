"""Fixtures that every test sees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dphpc.ops import threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each test starts with one thread, whatever the test before it asked for."""
    threads.set_threads(1)
    yield
    threads.set_threads(1)
