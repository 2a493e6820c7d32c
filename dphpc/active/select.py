"""Selection: counting the explored frames by the committee's deviation, and choosing those to be labelled."""

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
    """Numbers of a round's frames by deviation, see `config.Select`; `worst` is the largest deviation in eV/Å."""

    accurate: int
    candidate: int
    failed: int
    worst: float

    @property
    def frames(self) -> int:
        """Number of all frames."""
        return self.accurate + self.candidate + self.failed

    def converged(self, select: Select) -> bool:
        """Whether nearly all frames are accurate."""
        return self.accurate >= select.accurate * self.frames


def count(runs: Sequence[Path], select: Select) -> Counts:
    """Count the frames of runs, given by their folders; frames that a run did not reach count as failed."""
    worst = np.array([value for folder in runs for _, value in deviations(folder)])
    accurate, candidate = worst <= select.above, (worst > select.above) & (worst < select.below)
    known = int(accurate.sum()), int(candidate.sum())
    failed = len(worst) - sum(known) + sum(map(unreached, runs))
    return Counts(*known, failed, float(np.max(worst, initial=0.0)))


def choose(runs: Sequence[Path], select: Select, seed: int) -> list[Atoms]:
    """At most `select.most` of the candidates, drawn at random, without the models' energies and forces.

    Raises
    ------
    InputError
        Frames are damaged or missing.
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
    """The frames that a run has written, those with a deviation above `above`: (frame, max_devi_f in eV/Å, step)."""
    frames = list(_frames(folder / CANDIDATES))
    # The file has rounded deviations, and an infinite one has no frame.
    expected = sum(select.above * (1.0 + 1e-5) < worst < np.inf for _, worst in deviations(folder))
    if len(frames) < expected - 1:  # a run may die between a deviation and its frame
        what = f"{len(frames)} frames can be read, and {expected} deviate so that they are there"
        raise spoiled(folder / CANDIDATES, what)
    return frames


def _frames(path: Path) -> Iterator[tuple[Atoms, float, int]]:
    """The complete frames of a file; a run may have died in the middle of the last one."""
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
            except Exception as error:  # ASE raises anything for damaged lines
                raise spoiled(path, f"frame {number} is damaged: {type(error).__name__}: {error}") from None
