"""Ranks for the tests of data-parallel training."""

from tests.parallel.conftest import comm, mpirun, pytest_runtest_makereport  # noqa: F401
