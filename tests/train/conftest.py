"""Data, and ranks for the tests of data-parallel training."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dphpc.parallel.comm import Communicator
from tests.parallel.conftest import comm, mpirun, pytest_runtest_makereport  # noqa: F401
from tests.train.data_systems import two_systems, write_npy
from tests.train.systems import write_systems


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in `tmp_path`, from which relative paths count."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two systems, a and b."""
    for name, system in zip("ab", two_systems(), strict=True):
        write_npy(tmp_path / name, system)
    return tmp_path


@pytest.fixture
def common_folder(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:  # noqa: F811
    """A folder with data that all ranks work in."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(comm.bcast(name))
        if comm.rank == 0:
            write_systems(place)
        comm.barrier()
        with monkeypatch.context() as patch:
            patch.chdir(place)
            yield place
        comm.barrier()
