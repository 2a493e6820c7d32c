"""Fixtures that every test sees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dphpc.core.device import Device, find_device
from dphpc.core.errors import InputError
from dphpc.ops import threads
from tests.ops.emulation.device import EmulatedDevice


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each test starts with one thread, whatever the test before it asked for."""
    threads.set_threads(1)
    yield
    threads.set_threads(1)


@pytest.fixture(scope="session")
def emulated() -> EmulatedDevice:
    """A GPU that the host plays."""
    return EmulatedDevice()


@pytest.fixture(scope="session")
def gpu() -> Device:
    """A GPU, or the test is skipped."""
    try:
        device = find_device("cuda")
    except InputError as error:
        pytest.skip(f"no GPU to try the kernels on: {error.what}")
    assert device is not None
    return device


@pytest.fixture(scope="session", params=["emulated", "gpu"])
def device(request: pytest.FixtureRequest) -> Device:
    """One after the other."""
    return request.getfixturevalue(request.param)
