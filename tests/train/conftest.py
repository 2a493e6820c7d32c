"""Data, and ranks for the tests of data-parallel training."""

from pathlib import Path

import pytest

from tests.parallel.conftest import comm, mpirun, pytest_runtest_makereport  # noqa: F401
from tests.train.data_systems import two_systems, write_npy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two systems, a and b."""
    for name, system in zip("ab", two_systems(), strict=True):
        write_npy(tmp_path / name, system)
    return tmp_path
