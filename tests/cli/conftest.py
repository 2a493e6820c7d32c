"""Commands as a user runs them, and ranks."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parallel.conftest import mpirun  # noqa: F401

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("show", "model.dp")` is `dphpc show model.dp` in the test's folder; `status` is the one expected."""

    def start(*arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dphpc", *arguments]
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == status, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return start
