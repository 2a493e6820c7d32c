"""Commands as a user runs them, and ranks."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dphpc.cli.main import main
from tests.parallel.conftest import mpirun  # noqa: F401

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def process(tmp_path: Path) -> Run:
    """`process("show", "model.dp")` is `dphpc show model.dp` in the test's folder; `status` is the one expected."""

    def start(*arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dphpc", *arguments]
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return start


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, which has its packages already: `process` takes seconds for torch alone."""
    log = logging.getLogger("dphpc")

    def start(*arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        before = log.level, log.handlers[:]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in ({"COLUMNS": "200"} | environment).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main(arguments)
        for handler in log.handlers:
            handler.close()
        log.level, log.handlers[:] = before
        output, messages = capsys.readouterr()
        assert ended.value.code == status, f"{arguments}\n{output}\n{messages}"
        return subprocess.CompletedProcess(arguments, status, output, messages)

    return start
