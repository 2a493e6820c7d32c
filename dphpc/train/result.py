"""The result of a training."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from dphpc.core.units import duration

NamedErrors = dict[str, float]
"""Errors by name: rmse, rmse_e (eV per atom), rmse_f (eV/Å), mae_v, …"""

_NAMES = {
    "e": ("energy per atom", "eV"),
    "f": ("force", "eV/Å"),
    "v": ("virial per atom", "eV"),
    "ae": ("atomic energy", "eV"),
    "pf": ("weighted force", "eV/Å"),
}


@dataclass(frozen=True)
class TrainResult:
    """The result of a training; a notebook shows it as a table.

    Attributes
    ----------
    step, n_steps
        Number of steps done, and asked for.
    steps_run
        Steps done by this call (fewer than `step` after a restart).
    seconds
        Time of the training loop.
    training, validation
        Errors in the last line of the learning curve.
    lcurve, checkpoint
        Files: the learning curve, and the last checkpoint.
    stopped_by
        Number of the signal that ended the training early, 0 if none did.  The checkpoint is written either way.
    hidden
        Fraction of the time of gradient communication that was hidden behind backward passes; None on one rank.
    """

    step: int
    n_steps: int
    steps_run: int
    seconds: float
    training: NamedErrors
    validation: NamedErrors | None
    lcurve: Path
    checkpoint: Path | None
    stopped_by: int = 0
    hidden: float | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the training early."""
        return bool(self.stopped_by)

    @property
    def seconds_per_step(self) -> float:
        """Mean time of a step, with validation and files."""
        return self.seconds / max(1, self.steps_run)

    def rows(self) -> list[tuple[str, str]]:
        """Names and values of the result, as text."""
        state = "interrupted at" if self.interrupted else "finished"
        rows = [
            ("steps", f"{state} {self.step} of {self.n_steps}"),
            ("time", f"{duration(self.seconds)} ({1e3 * self.seconds_per_step:.1f} ms a step)"),
        ]
        if self.hidden is not None:
            behind = f"{100.0 * self.hidden:.0f} % of the messages' time passed behind the backward pass"
            rows.append(("sums of gradients", behind))
        for kind, errors in (("training", self.training), ("validation", self.validation or {})):
            for key, value in errors.items():
                measure, _, term = key.partition("_")
                if term in _NAMES:
                    name, unit = _NAMES[term]
                    rows.append((f"{kind} {measure.upper()} {name}", f"{value:.3e} {unit}"))
        rows += [("learning curve", str(self.lcurve)), ("checkpoint", str(self.checkpoint or "none"))]
        return rows

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows())

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self.rows())
        return f"<table>{cells}</table>"
