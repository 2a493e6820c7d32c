"""The results of active learning, round by round."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from dphpc.active.work import read_json, spoiled
from dphpc.core.units import duration


@dataclass(frozen=True)
class RoundSummary:
    """The summary of a round: a line of `rounds.csv`.

    Attributes
    ----------
    entry
        Index in the run file's `rounds`, from 0.
    frames
        Number of frames on which the models were compared.
    accurate, candidate, failed
        Fractions of these frames.
    worst_devi_f
        Largest max_devi_f in eV/Å.
    labelled
        Number of frames added to the data.
    rmse_f, rmse_e
        The committee's errors on the labelled frames before training on them, eV/Å and eV per atom; NaN without labels.
    train_s, explore_s, label_s
        Wall-clock seconds, summed over interruptions.
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
        """Read the summary of a round.

        Raises
        ------
        InputError
            The file is damaged, or that of another round.
        """
        found = read_json(path)
        names = {f.name for f in fields(cls)}
        numbers = isinstance(found, dict) and all(isinstance(value, int | float) for value in found.values())
        if not numbers or found.keys() != names or found["round"] != number:
            raise spoiled(path, f"the summary of round {number} is damaged")
        return cls(**found)

    def cells(self) -> list[str]:
        """The cells of its row in the table."""
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
    """The result of a loop; a notebook shows it as a table.

    Attributes
    ----------
    rounds
        Summary of each round that is done.
    models
        Files of the last committee, trained on all data; empty if the loop was stopped before.
    converged
        Whether the last round found nearly all frames accurate.
    stopped_by
        Number of the signal that ended the loop early, or 0.
    """

    rounds: list[RoundSummary] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    converged: bool = False
    stopped_by: int = 0

    def table(self) -> list[str]:
        """A table of the rounds, as lines."""
        rows = [*(list(row) for row in zip(*_HEADINGS, strict=True)), *(r.cells() for r in self.rounds)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]

    def __str__(self) -> str:
        return "\n".join([*self.table(), *(f"model: {path}" for path in self.models)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name + (f' ({unit})' if unit else ''))}</th>" for name, unit in _HEADINGS)
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in r.cells()) for r in self.rounds]
        return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
