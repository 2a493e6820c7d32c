"""The result of a run, as returned to Python."""

from __future__ import annotations

import html
import signal
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class MDResult:
    """The result of a finished run; a notebook shows it as a table.

    Attributes
    ----------
    n_atoms, n_ranks, steps
        Numbers of atoms, of ranks and of the steps of this run.
    time_ps, simulated_ps
        Time in ps at the end, and how much of it this run added.
    seconds, phases
        Wall-clock seconds of the steps: in all, and by phase.
    rebuilds
        How often the neighbor list was rebuilt.
    files
        Paths of the files that were written, by "thermo", "trajectory", "restart", "deviation", "candidates".
    thermo
        Values of this run by column of thermo.csv; the same on all ranks.
    stopped_by
        Number of the signal that ended the run before its last step, or 0.
    imbalance
        Fraction by which the busiest rank has more work than the mean.
    hidden
        Fraction of the time for which ghost messages were in flight in which ranks worked; None without messages.
    stopped_above
        eV/Å: the committee's largest force deviation, if that ended the run before its last step.
    converged
        Whether the last minimization converged; None if none came to its end.
    """

    n_atoms: int
    n_ranks: int
    steps: int
    time_ps: float
    simulated_ps: float
    seconds: float
    phases: dict[str, float]
    rebuilds: int
    files: dict[str, str] = field(default_factory=dict)
    thermo: dict[str, NDArray] = field(default_factory=dict)
    stopped_by: int = 0
    imbalance: float = 0.0
    hidden: float | None = None
    stopped_above: float | None = None
    converged: bool | None = None

    @property
    def atom_steps_per_second(self) -> float:
        """Speed of the run: atoms × steps / seconds."""
        return self.n_atoms * self.steps / self.seconds if self.seconds else 0.0

    @property
    def ns_per_day(self) -> float:
        """Speed of the run: simulated nanoseconds per day."""
        return self.simulated_ps * 1e-3 * 86400.0 / self.seconds if self.seconds else 0.0

    def summary(self) -> list[str]:
        """Lines that summarize the run."""
        if not self.steps:
            return ["no steps were done"]
        share = ", ".join(f"{name} {100.0 * s / self.seconds:.1f} %" for name, s in self.phases.items())
        pace = f", {self.ns_per_day:.4g} ns/day" if self.simulated_ps else ""  # time stands still in a minimization
        return [
            f"{self.steps} steps of {self.n_atoms:,} atoms in {self.seconds:.2f} s: "
            f"{self.atom_steps_per_second:,.0f} atom-steps/s{pace}",
            f"time: {share}; {self.rebuilds} neighbor rebuilds",
            *self._ranks(),
            *(f"{what}: {path}" for what, path in self.files.items()),
        ]

    def stop(self, n_steps: int, step: int) -> list[str]:
        """The last lines of a run that ended early, after its total `step`; none for a complete run."""
        if not self.stopped_by and self.stopped_above is None:
            return []
        by = f"max_devi_f = {self.stopped_above:.4g} eV/Å" if self.stopped_above is not None else ""
        what = f"stopped by {by or signal.Signals(self.stopped_by).name} after {self.steps} of {n_steps} steps"
        if "restart" not in self.files:
            return [f"{what}; no restart was written: the run file has no 'restart'"]
        return [f"{what}; go on with structure: {self.files['restart']} (step {step})"]

    def _ranks(self) -> list[str]:
        if self.n_ranks == 1:
            return []
        line = f"ranks: the busiest has {100.0 * self.imbalance:.1f} % more work than the mean"
        if self.hidden is not None:
            line += f"; {100.0 * self.hidden:.0f} % of the messages' time passed behind work"
        return [line]

    def __repr__(self) -> str:
        return "\n".join(["MDResult", *(f"  {line}" for line in self.summary())])

    def _repr_html_(self) -> str:
        rows = [("atoms", f"{self.n_atoms:,}"), ("steps", f"{self.steps:,}"), ("time", f"{self.time_ps:.6g} ps")]
        rows += [("rate", f"{self.atom_steps_per_second:,.0f} atom-steps/s, {self.ns_per_day:.4g} ns/day")]
        for key in ("temperature_K", "potential_eV", "pressure_bar"):
            values = self.thermo.get(key, np.zeros(0))
            if len(values):
                rows.append((key, f"{values[-1]:.6g} (mean {values.mean():.6g} ± {values.std():.3g})"))
        rows += [(what, path) for what, path in self.files.items()]
        body = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
        return f"<table>{body}</table>"


def columns_of(values: array[float], names: Sequence[str]) -> dict[str, NDArray]:
    """The values of consecutive thermo lines as arrays by the names of their columns."""
    columns = dict(zip(names, np.array(values).reshape(-1, len(names)).T, strict=True))
    return columns | {"step": columns["step"].astype(np.int64)}
