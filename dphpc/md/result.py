"""What a run gives back to Python."""

from __future__ import annotations

import html
import signal
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dphpc.md.observables import COLUMNS


@dataclass
class MDResult:
    """A finished run; in a notebook it shows itself as a table.

    Attributes
    ----------
    thermo
        Column of thermo.csv to its values, of this run; the same on all ranks.
    files
        What was written: "thermo", "trajectory", "restart" to a path.
    seconds
        Wall-clock seconds of the steps, and by phase in `phases`.
    imbalance
        How much more work the busiest rank has than the mean, as a fraction.
    hidden
        Fraction of the time that messages to and from ghosts were under way in which ranks worked; None without such.
    stopped_by
        Number of the signal that ended the run before its last step, or 0.
    stopped_above
        eV/Å: the committee's largest force deviation, where that ended the run before its last step.
    simulated_ps
        Of `time_ps` what this run added.
    converged
        Whether the last minimization did, None if none came to its end.
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
        """Atoms × steps / seconds."""
        return self.n_atoms * self.steps / self.seconds if self.seconds else 0.0

    @property
    def ns_per_day(self) -> float:
        """Simulated nanoseconds a day."""
        return self.simulated_ps * 1e-3 * 86400.0 / self.seconds if self.seconds else 0.0

    def summary(self) -> list[str]:
        """Lines for the end of a run."""
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
        """What a run says last that ended before the last of its steps, at a `step` counted from the beginning."""
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


def columns_of(values: array[float]) -> dict[str, NDArray]:
    """The values of thermo lines, one after the other, as arrays by column."""
    columns = dict(zip(COLUMNS, np.array(values).reshape(-1, len(COLUMNS)).T, strict=True))
    return columns | {"step": columns["step"].astype(np.int64)}
