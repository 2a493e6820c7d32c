"""`lcurve.out`: the learning curve in DeePMD-kit's columns."""

from __future__ import annotations

from pathlib import Path

HEADER_NOTE = "# If there is no available reference data, rmse_*_{val,trn} will print nan"


class LearningCurve:
    """Writes one line each time the errors are shown; the first writes the header too.

    Parameters
    ----------
    path
        The file.
    keep_until
        With a restart from this step, lines up to it stay and later ones (of a run that went on behind its last
        checkpoint) are dropped; None begins a new file.
    """

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        kept = _lines_until(path, keep_until) if keep_until is not None and path.is_file() else []
        self._has_header = bool(kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._file.writelines(kept)
        self._file.flush()

    def write(
        self, step: int, learning_rate: float, training: dict[str, float], validation: dict[str, float] | None
    ) -> None:
        """Add a line.  `validation` has the keys of `training`, or is None without validation data."""
        keys = sorted(training)
        if not self._has_header:
            self._file.write(_header(keys, validation is not None))
            self._has_header = True
        line = f"{step:7d}"
        for key in keys:
            if validation is not None:
                line += f"   {validation[key]:11.2e} {training[key]:11.2e}"
            else:
                line += f"   {training[key]:11.2e}"
        self._file.write(f"{line}   {learning_rate:8.1e}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _header(keys: list[str], with_validation: bool) -> str:
    line = "# {:5s}".format("step")
    for key in keys:
        line += f"   {key + '_val':>11s} {key + '_trn':>11s}" if with_validation else f"   {key + '_trn':>11s}"
    return f"{line}   {'lr':8s}\n{HEADER_NOTE}\n"


def _lines_until(path: Path, step: int) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.startswith("#") or _step_of(line) <= step]


def _step_of(line: str) -> int:
    first = line.split(maxsplit=1)
    return int(first[0]) if first and first[0].isdigit() else 0
