from __future__ import annotations

from pathlib import Path

import pytest

from dphpc.core.errors import DataError, RunError
from dphpc.train.lcurve import LearningCurve

NAMES = ["rmse", "rmse_f"]
ERRORS = {"rmse": 1.5, "rmse_f": 0.25}


def written(path: Path, *steps: int, keep_until: int | None = None, with_validation: bool = True) -> list[str]:
    curve = LearningCurve(path, NAMES, with_validation=with_validation, keep_until=keep_until)
    curve.begin()
    for step in steps:
        curve.write(step, 1e-3, ERRORS, ERRORS if with_validation else None)
    curve.close()
    return path.read_text().splitlines()


def test_columns_are_deepmd_kits(tmp_path: Path) -> None:
    assert written(tmp_path / "new" / "lcurve.out", 1) == [
        "# step       rmse_val    rmse_trn    rmse_f_val  rmse_f_trn   lr      ",
        "# If there is no available reference data, rmse_*_{val,trn} will print nan",
        "      1      1.50e+00    1.50e+00      2.50e-01    2.50e-01    1.0e-03",
    ]
    assert written(tmp_path / "lcurve.out", 12, with_validation=False)[::2] == [
        "# step       rmse_trn    rmse_f_trn   lr      ",
        "     12      1.50e+00      2.50e-01    1.0e-03",
    ]


def test_a_restart_keeps_whole_lines_up_to_its_step(tmp_path: Path) -> None:
    path = tmp_path / "lcurve.out"
    whole = written(path, 1, 10, 20, 30, 40)
    assert written(path, 30, 40, keep_until=20) == whole
    text = path.read_text()
    path.write_text(text[: text.index("     40") + 6])  # as a killed run may leave it: "     4" of step 40
    assert written(path, 40, keep_until=30) == whole
    path.write_text("# st")
    assert written(path, *(1, 10, 20, 30, 40), keep_until=20) == whole


def test_a_curve_of_other_columns_stays(tmp_path: Path) -> None:
    path = tmp_path / "lcurve.out"
    before = written(path, 1, 10)
    with pytest.raises(DataError, match="other columns"):
        LearningCurve(path, NAMES, with_validation=False, keep_until=10)
    assert path.read_text().splitlines() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_named() -> None:
    curve = LearningCurve(Path("/dev/full"), NAMES, with_validation=True)
    with pytest.raises(RunError, match=r"No space left(.|\n)*/dev/full"):
        curve.begin()
