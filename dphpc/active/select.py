"""Selection: how well the committee knows the frames it has explored, and which of them are labelled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import XYZError

from dphpc.active.config import Select
from dphpc.active.explore import CANDIDATES, deviations, unreached


@dataclass(frozen=True)
class Counts:
    """The frames of a round by what the models know of them; `worst` is the largest deviation in eV/Å."""

    accurate: int
    candidate: int
    failed: int
    worst: float

    @property
    def frames(self) -> int:
        """All of them."""
        return self.accurate + self.candidate + self.failed

    def converged(self, select: Select) -> bool:
        """Whether nearly all frames are accurate."""
        return self.accurate >= select.accurate * self.frames


def count(runs: Sequence[Path], select: Select) -> Counts:
    """Sort the frames of runs, by their folders; frames that runs did not reach, as they went astray, have failed."""
    worst = np.array([value for folder in runs for _, value in deviations(folder)])
    accurate, candidate = worst <= select.above, (worst > select.above) & (worst < select.below)
    known = int(accurate.sum()), int(candidate.sum())
    failed = len(worst) - sum(known) + sum(map(unreached, runs))
    return Counts(*known, failed, float(np.max(worst, initial=0.0)))


def choose(runs: Sequence[Path], select: Select, seed: int) -> list[Atoms]:
    """At most `select.most` of the candidates, drawn with equal chances; without what the models say of them."""
    found: dict[bytes, Atoms] = {}
    for folder in runs:
        for atoms in _frames(folder):
            deviation, step = float(atoms.info["max_devi_f"]), int(atoms.info["Step"])
            if select.above < deviation < select.below:
                # Runs from one structure share their first frame.
                key = atoms.numbers.tobytes() + atoms.cell.array.tobytes() + atoms.positions.tobytes()
                frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
                frame.info = {"run": folder.name, "step": step, "max_devi_f": deviation}
                found.setdefault(key, frame)
    frames = list(found.values())
    drawn = np.random.default_rng(seed).permutation(len(frames))[: select.most]
    return [frames[i] for i in np.sort(drawn)]


def _frames(folder: Path) -> Iterator[Atoms]:
    """The frames above `above`; of a run that died in the middle of one, those before."""
    path = folder / CANDIDATES
    if path.is_file() and path.stat().st_size:
        with contextlib.suppress(XYZError):
            yield from ase.io.iread(path, index=":", format="extxyz", parallel=False)
