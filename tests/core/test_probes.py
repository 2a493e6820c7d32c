"""Files and programs that are there, and those that are not."""

import sys
from pathlib import Path

from dphpc.core.probes import lines_of, output_of


def test_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo\n")
    assert lines_of(tmp_path / "a") == ["one", "two"]
    assert lines_of(tmp_path / "none") == lines_of(tmp_path) == []


def test_output_of_a_program(tmp_path: Path) -> None:
    assert output_of(sys.executable, "-c", "print(' 42 ')") == "42"
    assert output_of(sys.executable, "-c", "print(42); raise SystemExit(1)") is None
    assert output_of(str(tmp_path / "none")) is None
