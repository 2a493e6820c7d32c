"""Labelling: energies, forces and stresses of chosen frames, by an ASE calculator or any command.

The command reads one extxyz file and writes another; for ASE calculators it is `active/calculator.py`.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from dphpc.active import calculator
from dphpc.active.calculator import FRAMES, LABELLED, RECORD
from dphpc.active.commands import require_shell_command
from dphpc.active.committee import TRAINING, VALIDATION
from dphpc.active.config import Label, LearnConfig
from dphpc.active.match import matched
from dphpc.active.work import JOB, LOG, Work, job_of_another
from dphpc.core.errors import DataError, RunError
from dphpc.train.data.writer import Configuration, write_systems
from dphpc.train.readers import read_configurations

log = logging.getLogger(__name__)

LARGEST = {"energy": 1e12, "force": 1e6, "virial": 1e12}
"""eV and eV/Å; a larger value is taken for a failed calculation, and would ruin a training."""

MOST_REPORTED = 10
"""Largest number of frames whose problems are reported one by one."""


def labelling(
    config: LearnConfig, title: str, folder: Path, choose: Callable[[], list[Atoms]], type_map: Sequence[str],
    choice: Mapping[str, Any] | None = None, by_frames: bool = False,
) -> Work:  # fmt: skip
    """The work of labelling frames and making data systems of them.

    Parameters
    ----------
    choose
        Returns the frames.
    choice
        How they were chosen, for the record; its `seed` decides which are held out.
    by_frames
        Whether the frames are labelled before, by the works of `frame_works`.
    """
    # The record has the calculator, as it is a level of theory, but no command, which may change with the machine.
    label = config.label.model_dump(mode="json", exclude={"command"}, exclude_none=True)
    hold_out = config.hold_out if choice else 0.0
    settings = {"label": label, "choice": choice, "hold_out": hold_out}

    def begin(part: Path) -> list[str] | None:
        for job in sorted(part.glob(f"frames/*/{JOB}")) if not by_frames else ():
            raise job_of_another(job.parent, "and is to be done by a process now")
        if not (part / FRAMES).is_file():
            partial = part / f".{FRAMES}"
            ase.io.write(partial, choose(), format="extxyz", parallel=False)
            partial.rename(part / FRAMES)
        (part / LABELLED).unlink(missing_ok=True)
        if config.label.command is None:
            return _calculator(part, 0 if by_frames else config.at_once.label or 1)
        command = config.label.command
        for name, file in (("{frames}", FRAMES), ("{labelled}", LABELLED)):
            command = command.replace(name, shlex.quote(str((part / file).resolve())))
        return ["/bin/sh", "-c", command]

    def finish(part: Path) -> None:
        frames = [frame for frame in _usable(part) if frame is not None]
        order = np.random.default_rng((choice or {}).get("seed", 0)).permutation(len(frames))
        held = set(order[: int(hold_out * len(frames))].tolist())
        for name, wanted in ((TRAINING, False), (VALIDATION, True)):
            chosen = [frame for i, frame in enumerate(frames) if (i in held) == wanted]
            shutil.rmtree(part / name, ignore_errors=True)  # left by an interrupted run, perhaps with fewer frames
            if chosen:
                write_systems(chosen, type_map, part / name, "deepmd/npy")

    known_as = {"choice/above": "select/above", "choice/below": "select/below", "choice/most": "select/most"}
    return Work(title, folder, RECORD, settings, begin, finish, directory=Path.cwd(), known_as=known_as)


def _calculator(part: Path, *arguments: Any) -> list[str]:
    return [sys.executable, "-m", calculator.__name__, str(part.resolve()), *map(str, arguments)]


def frame_works(work: Work) -> list[Work]:
    """Prepare a labelling by a calculator, and return a work for each of its frames that has no labels."""
    if work.is_done():
        return []
    work.prepare()
    work.begin(work.part)
    n = sum(1 for _ in ase.io.iread(work.part / FRAMES, index=":", parallel=False))
    works = [_frame_work(work, k) for k in range(n) if not calculator.result_of(work.part, k).is_file()]
    for one in works:
        shutil.rmtree(one.folder, ignore_errors=True)  # of a frame that has failed, and is tried again
    return works


def _frame_work(work: Work, number: int) -> Work:
    result = calculator.result_of(work.part, number)

    def begin(part: Path) -> list[str] | None:
        return None if result.is_file() else _calculator(work.part, "frame", number)

    def accept(status: int, part: Path) -> bool:
        if not result.is_file():  # it is left out
            lines = (part / LOG).read_text(encoding="utf-8", errors="replace").splitlines() or [f"status {status}"]
            log.warning("no labels: %s", lines[-1])
        return True

    folder = work.part / "frames" / f"{number:04d}"
    return Work(f"{work.title} frame {number}", folder, "frame.json", {}, begin, accept=accept, directory=Path.cwd())


def first_label(
    config: LearnConfig, folder: Path, sample: Atoms, type_map: Sequence[str], by_frames: bool = False
) -> Work:
    """The work of labelling a frame of the training data, and comparing with its labels there."""
    title = "labelling of a first frame, to see that it works,"
    chosen = [sample.copy()]  # without its labels
    work = labelling(config, title, folder, lambda: chosen, type_map, by_frames=by_frames)
    return replace(work, finish=lambda part: log.info("%s", compare(part, sample)))


def _usable(folder: Path) -> list[Configuration | None]:
    """The labels of each frame of a labelling; None if energy or forces are missing or impossible.

    Raises
    ------
    RunError
        There are no labels, or they cannot be read.
    """
    path, asked = folder / LABELLED, list(ase.io.iread(folder / FRAMES, index=":", parallel=False))
    see = f"see {folder / LOG}"
    if not path.is_file():
        raise RunError(
            "the labelling has ended and has written no labels", where=str(path), expected="an extxyz file", remedy=see
        )
    labels, problems = matched(asked, _read(path, see))
    for i, label in enumerate(labels):
        if label is not None and (wrong := _wrong(label)):
            problems.append(f"frame {i}: {wrong}")
            labels[i] = None
        elif label is not None and "virial" in label.values and not _is_possible(label, "virial"):
            problems.append(f"frame {i}: its virial is left out: it is not finite, or beyond anything physical")
            del label.values["virial"]
    for problem in problems[:MOST_REPORTED]:
        log.warning("%s", problem)
    if len(problems) > MOST_REPORTED:
        log.warning("and %d more", len(problems) - MOST_REPORTED)
    lost = labels.count(None)
    if lost == len(asked):
        raise RunError(
            f"none of {lost} frames has both energy and forces" + "".join(f"\n  | {p}" for p in problems[:1]),
            where=str(path), remedy=see,
            expected="the frames that were asked for, each with energy= or free_energy= and a column forces:R:3",
        )  # fmt: skip
    if lost:
        log.warning("%d of %d frames have no labels and are left out: see %s", lost, len(asked), folder / LOG)
    return labels


def _read(path: Path, remedy: str) -> list[Configuration]:
    try:
        return list(read_configurations(path, "ase/extxyz")) if path.stat().st_size else []
    except (DataError, ValueError, TypeError) as error:  # the latter two for a malformed virial
        what, where = (error.what, error.where) if isinstance(error, DataError) else (str(error), None)
        raise RunError(
            f"the labels cannot be read: {what}", where=where or str(path), expected="an extxyz file", remedy=remedy
        ) from None


def _wrong(label: Configuration) -> str:
    """Why a labelled frame cannot be trained on; empty if it can."""
    for name in ("energy", "force"):
        if name not in label.values:
            return f"it has no {name}"
        if not _is_possible(label, name):
            return f"its {name} is none, not finite, or beyond anything physical"
    return ""


def _is_possible(label: Configuration, name: str) -> bool:
    shape = {"energy": (), "force": (len(label.symbols), 3), "virial": (3, 3)}[name]
    try:
        values = np.asarray(label.values[name], np.float64)
    except ValueError:  # text
        return False
    return values.shape == shape and bool((np.abs(values) <= LARGEST[name]).all())  # a NaN fails the comparison too


def compare(folder: Path, sample: Atoms) -> str:
    """A sentence that compares the labels of the first frame with those in the data."""
    (label,) = _usable(folder)
    assert label is not None, "or there is none at all"
    if sample.calc is None:
        return "labelling works: the first frame of the training data was labelled"
    rms = np.sqrt(np.mean((label.values["force"] - sample.get_forces()) ** 2))
    shift = 1e3 * (label.values["energy"] - sample.get_potential_energy()) / len(sample)
    return f"labels of the first frame of the data differ from its own by {shift:.3g} meV/atom and {rms:.3g} eV/Å (RMS)"


def check(label: Label, here: bool = True) -> None:
    """Check whether labels can be made, as far as possible without making one.

    Parameters
    ----------
    here
        Whether the command is for this machine, whose programs are known.

    Raises
    ------
    InputError
        The calculator or program does not exist, or the calculator refuses the parameters.
    """
    if label.command is not None:
        if here:
            require_shell_command(label.command, "label/command")
        return
    calculator.make_calculator(label)
