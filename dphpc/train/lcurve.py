"""`lcurve.out`: the learning curve in DeePMD-kit's columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dphpc.core.errors import DataError, writing

HEADER_NOTE = "# If there is no available reference data, rmse_*_{val,trn} will print nan"


class LearningCurve:
    """Writes a header, and a line each time the errors are shown; `begin` opens the file.

    Parameters
    ----------
    path
        The file.
    names
        Names of the errors, in the order of their columns.
    with_validation
        Whether each error has a column for the validation data, too.
    keep_until
        Step of a restart: lines up to it are kept; later ones, of a run that went on after its last checkpoint, are
        dropped.  None begins a new file.

    Raises
    ------
    DataError
        The file to be continued has other columns.
    """

    def __init__(
        self, path: Path, names: Sequence[str], *, with_validation: bool, keep_until: int | None = None
    ) -> None:
        self._path, self._names, self._with_validation = path, names, with_validation
        self._header = _header(names, with_validation)
        self._keep = 0 if keep_until is None or not path.is_file() else _bytes_until(path, keep_until, self._header)

    def begin(self) -> None:
        """Open the file.

        Raises
        ------
        RunError
            It cannot be written.
        """
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("r+" if self._keep else "w", encoding="utf-8", newline="")
            if self._keep:
                self._file.truncate(self._keep)
                self._file.seek(self._keep)
            else:
                self._write(self._header)

    def write(
        self, step: int, learning_rate: float, training: dict[str, float], validation: dict[str, float] | None
    ) -> None:
        """Add a line.

        Raises
        ------
        RunError
            It cannot be written.
        """
        sides = (validation, training) if self._with_validation else (training,)
        numbers = [f"{side[name]:11.2e}" for name in self._names for side in sides if side is not None]
        with writing(self._path):
            self._write("   ".join([f"{step:7d}", *_paired(numbers, len(sides)), f"{learning_rate:8.1e}"]) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


def _paired(cells: Sequence[str], n: int) -> list[str]:
    """The cells of each error, n each, joined with DeePMD-kit's spacing."""
    return [" ".join(cells[i : i + n]) for i in range(0, len(cells), n)]


def _header(names: Sequence[str], with_validation: bool) -> str:
    ends = ("val", "trn") if with_validation else ("trn",)
    cells = [f"{f'{name}_{end}':>11s}" for name in names for end in ends]
    line = "   ".join(["# {:5s}".format("step"), *_paired(cells, len(ends)), "{:8s}".format("lr")])
    return f"{line}\n{HEADER_NOTE}\n"


def _bytes_until(path: Path, step: int, header: str) -> int:
    """Length in bytes of the header and the complete lines up to `step`; 0 if there is no header yet."""
    with path.open("rb") as file:
        first = file.readline()
        if not first.endswith(b"\n"):
            return 0
        if first.decode(errors="replace") != header.splitlines(keepends=True)[0]:
            raise DataError(
                "the learning curve to go on with has other columns", where=str(path),
                expected=header.splitlines()[0], remedy="name another training/disp_file, or move this one away",
            )  # fmt: skip
        keep = len(first)
        for line in file:
            if not line.endswith(b"\n") or _step_of(line) > step:
                break
            keep += len(line)
        return keep


def _step_of(line: bytes) -> int:
    number = line.split(maxsplit=1)[:1]
    return int(number[0]) if number and number[0].isdigit() else 0
