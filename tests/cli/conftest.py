"""Ranks for the tests of commands."""

from tests.parallel.conftest import mpirun  # noqa: F401
