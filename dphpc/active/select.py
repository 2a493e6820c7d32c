"""Selection: how well the committee knows the frames it has explored, and which of them are labelled."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from dphpc.active.config import Select
from dphpc.active.explore import CANDIDATES, deviations, unreached
from dphpc.active.work import spoiled


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
    """At most `select.most` of the candidates, drawn with equal chances; without what the models say of them.

    Raises
    ------
    InputError
        Frames are damaged, or fewer than the runs have written.
    """
    found: dict[bytes, Atoms] = {}
    for folder in runs:
        for atoms, deviation, step in _all_frames(folder, select):
            if select.above < deviation < select.below:
                # Runs from one structure share their first frame.
                key = atoms.numbers.tobytes() + atoms.cell.array.tobytes() + atoms.positions.tobytes()
                frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
                frame.info = {"run": folder.name, "step": step, "max_devi_f": deviation}
                found.setdefault(key, frame)
    frames = list(found.values())
    drawn = np.random.default_rng(seed).permutation(len(frames))[: select.most]
    return [frames[i] for i in np.sort(drawn)]


def _all_frames(folder: Path, select: Select) -> list[tuple[Atoms, float, int]]:
    """What a run has written of frames above `above`: they, max_devi_f in eV/Å, and step."""
    frames = list(_frames(folder / CANDIDATES))
    # Deviations stand there rounded, and one that is infinite without a frame.
    expected = sum(select.above * (1.0 + 1e-5) < worst < np.inf for _, worst in deviations(folder))
    if len(frames) < expected - 1:  # a run may die between a deviation and its frame
        what = f"{len(frames)} frames can be read, and {expected} deviate so that they are there"
        raise spoiled(folder / CANDIDATES, what)
    return frames


def _frames(path: Path) -> Iterator[tuple[Atoms, float, int]]:
    """The frames of a file; of a run that died in the middle of one, those before."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number in itertools.count():
            lines = [file.readline()]
            try:
                lines += itertools.islice(file, int(lines[0]) + 1) if lines[0].endswith("\n") else []
                if not lines[-1].endswith("\n") or len(lines) < int(lines[0]) + 2:
                    return
                (atoms,) = ase.io.iread(io.StringIO("".join(lines)), format="extxyz", parallel=False)
                yield atoms, float(atoms.info["max_devi_f"]), int(atoms.info["Step"])
            except Exception as error:  # whatever ASE makes of damaged lines
                raise spoiled(path, f"frame {number} is damaged: {type(error).__name__}: {error}") from None
