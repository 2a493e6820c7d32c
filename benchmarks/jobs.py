"""Jobs on several numbers of ranks, in turns, and their efficiencies: what scaling studies of MD and training share."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from communication import Network, fit_messages
from harness import run
from matplotlib.axes import Axes

from dphpc.parallel.launch import START_ANYWHERE

RANK = Path(__file__).with_name("scaling_rank.py")


@dataclass
class Case:
    """One job: what it is, how it is started, and what it said each time."""

    kind: str  # "weak" or "strong"
    label: str
    ranks: int
    crowding: float
    start: Callable[[], dict[str, Any]]
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Ranks, with a star where they are oversubscribed."""
        return f"{self.ranks}{'*' if self.crowding > 1.0 else ''}"

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return statistics.median(r["seconds_per_step"] for r in self.runs)

    def efficiency(self, one: Case) -> float:
        """Median over the turns of t(1)/t(P), or of t(1)/(P·t(P)) in strong scaling; 1 being the first ranks."""
        share = self.ranks / one.ranks if self.kind == "strong" else 1.0
        ratios = [a["seconds_per_step"] / b["seconds_per_step"] for a, b in zip(one.runs, self.runs, strict=True)]
        return statistics.median(ratios) / share

    def phase(self, name: str, pick: Callable[[list[float]], float] = statistics.mean) -> float:
        """Seconds a step in a phase (mean of the ranks, or what `pick` makes of them); median of the runs."""
        return statistics.median(
            pick([rank["phases"].get(name, 0.0) for rank in r["ranks"]]) / r["steps"] for r in self.runs
        )


class Jobs:
    """Starts programs on ranks, in a folder."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.mpirun, self.threads, self.folder = shlex.split(args.mpirun), args.threads, folder
        self.env = os.environ | START_ANYWHERE | {"OMP_NUM_THREADS": str(args.threads)}
        self.networks = {n: self.result(n, RANK, "network", args.threads) for n in args.ranks}

    def __call__(self, ranks: int, *python: str | Path | int) -> str:
        """What Python prints on so many ranks."""
        return run([*self.mpirun, str(ranks), sys.executable, *map(str, python)], self.folder, self.env)

    def result(self, ranks: int, *python: str | Path | int) -> dict[str, Any]:
        """The JSON that rank 0 prints."""
        return json.loads(re.findall(r"RESULT (.*)", self(ranks, *python))[-1])

    def network(self) -> tuple[int, Network] | None:
        """On how many ranks the network that predictions use was timed, and what it takes."""
        quiet = [n for n, found in self.networks.items() if n > 1 and found["crowding"] == 1.0]
        if not quiet:
            return None
        ranks, found = max(quiet), self.networks[max(quiet)]
        return ranks, Network(*fit_messages(found["sizes"], found["seconds"]), found["allreduce"] / np.log2(ranks))


def in_turns(cases: list[Case], repeat: int) -> None:
    """All jobs one after the other, so many times."""
    for k in range(repeat):
        for case in cases:
            case.runs.append(case.start())
            print(f"turn {k + 1}: {case.kind} {case.label}, {case.name} ranks: "
                  f"{case.runs[-1]['seconds_per_step'] * 1e3:.3f} ms a step", flush=True)  # fmt: skip


def draw_efficiency(ax: Axes, cases: list[Case], label: str, color: str) -> None:
    """Efficiency over ranks; oversubscribed ones hollow."""
    x, y = [c.ranks for c in cases], [100.0 * c.efficiency(cases[0]) for c in cases]
    ax.plot(x, y, color=color, lw=0.8, alpha=0.5)
    for hollow in (False, True):
        chosen = [k for k, c in enumerate(cases) if (c.crowding > 1.0) == hollow]
        if chosen:
            ax.scatter(
                [x[k] for k in chosen], [y[k] for k in chosen], edgecolors=color, zorder=3,
                facecolors="white" if hollow else color, label=f"{label}, oversubscribed" if hollow else label,
            )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="ranks", ylabel="efficiency (%)", ylim=(0, 110))
