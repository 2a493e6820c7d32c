"""What came out of a loop, round by round."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from dphpc.active.work import read_json, spoiled
from dphpc.core.units import duration


@dataclass(frozen=True)
class RoundSummary:
    """What came out of a round: a line of `rounds.csv`.

    Attributes
    ----------
    entry
        Of the run file's `rounds`, from 0.
    frames
        On which the models were compared; accurate, candidate and failed ones are fractions of them.
    worst_devi_f
        Largest max_devi_f in eV/Å.
    labelled
        Frames that were added to the data.
    rmse_f, rmse_e
        Of the committee on these frames before it was trained on them: eV/Å, and eV per atom; NaN without such.
    train_s, explore_s, label_s
        Wall-clock seconds, over all the parts in which the round was done.
    """

    round: int
    entry: int
    frames: int
    accurate: float
    candidate: float
    failed: float
    worst_devi_f: float
    labelled: int
    rmse_f: float
    rmse_e: float
    train_s: float
    explore_s: float
    label_s: float
    converged: bool

    @classmethod
    def of(cls, path: Path, number: int) -> RoundSummary:
        """What a round has left in a file.

        Raises
        ------
        InputError
            It is damaged, or another round's.
        """
        found = read_json(path)
        names = {f.name for f in fields(cls)}
        numbers = isinstance(found, dict) and all(isinstance(value, int | float) for value in found.values())
        if not numbers or found.keys() != names or found["round"] != number:
            raise spoiled(path, f"the summary of round {number} is damaged")
        return cls(**found)

    def cells(self) -> list[str]:
        """As the table on the screen has it."""
        fractions = [f"{100.0 * x:.1f}" for x in (self.accurate, self.candidate, self.failed)]
        errors = ["" if math.isnan(x) else f"{x:.3g}" for x in (self.rmse_f, 1e3 * self.rmse_e)]
        times = [duration(x) for x in (self.train_s, self.explore_s, self.label_s)]
        worst, counts = f"{self.worst_devi_f:.3g}", (str(self.frames), str(self.labelled))
        return [str(self.round), counts[0], *fractions, worst, counts[1], *errors, *times]


_HEADINGS = (
    ("round", ""), ("frames", ""), ("accurate", "%"), ("candidate", "%"), ("failed", "%"), ("worst", "eV/Å"),
    ("labelled", ""), ("F RMSE", "eV/Å"), ("E RMSE", "meV/atom"), ("train", ""), ("explore", ""), ("label", ""),
)  # fmt: skip


@dataclass(frozen=True)
class LearnResult:
    """A loop that has ended; in a notebook it shows itself as a table.

    Attributes
    ----------
    rounds
        What came out of each.
    models
        The last committee, trained on all data; empty if the loop was stopped before.
    converged
        Whether the last round found nearly all frames accurate.
    stopped_by
        Number of the signal that ended it early, or 0.
    """

    rounds: list[RoundSummary] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    converged: bool = False
    stopped_by: int = 0

    def table(self) -> list[str]:
        """Lines of a table of the rounds."""
        rows = [*(list(row) for row in zip(*_HEADINGS, strict=True)), *(r.cells() for r in self.rounds)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]

    def __str__(self) -> str:
        return "\n".join([*self.table(), *(f"model: {path}" for path in self.models)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name + (f' ({unit})' if unit else ''))}</th>" for name, unit in _HEADINGS)
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in r.cells()) for r in self.rounds]
        return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
