"""Labelling: energies, forces and stresses of chosen frames, by a calculator of ASE or by any command.

Either reads an extxyz file and writes another; `active/calculator.py` is the command for calculators.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from dphpc.active import calculator
from dphpc.active.calculator import FRAMES, LABELLED, RECORD
from dphpc.active.committee import TRAINING, VALIDATION
from dphpc.active.config import Label, LearnConfig
from dphpc.active.work import LOG, Work, log, require_program
from dphpc.core.errors import RunError
from dphpc.train.convert import read_configurations
from dphpc.train.data.writer import Configuration, write_systems


def labelling(
    config: LearnConfig, title: str, folder: Path, choose: Callable[[], list[Atoms]], type_map: Sequence[str],
    choice: Mapping[str, Any] | None = None,
) -> Work:  # fmt: skip
    """Label frames and make data systems of them.

    Parameters
    ----------
    choose
        Gives the frames.
    choice
        By what they are chosen, for the record; its `seed` draws those that are held out.
    """
    # A command is a way to labels, and may change with the machine; a calculator is a level of theory.
    label = config.label.model_dump(mode="json", exclude={"command"}, exclude_none=True)
    hold_out = config.hold_out if choice else 0.0
    settings = {"label": label, "choice": choice, "hold_out": hold_out}

    def begin(part: Path) -> list[str] | None:
        if not (part / FRAMES).is_file():
            partial = part / f".{FRAMES}"
            ase.io.write(partial, choose(), format="extxyz", parallel=False)
            partial.rename(part / FRAMES)
        (part / LABELLED).unlink(missing_ok=True)
        if config.label.command is None:
            return [sys.executable, "-m", calculator.__name__, str(part.resolve()), str(config.at_once.label)]
        command = config.label.command
        for name, file in (("{frames}", FRAMES), ("{labelled}", LABELLED)):
            command = command.replace(name, shlex.quote(str((part / file).resolve())))
        return ["/bin/sh", "-c", command]

    def finish(part: Path) -> None:
        frames = _usable(part)
        order = np.random.default_rng((choice or {}).get("seed", 0)).permutation(len(frames))
        held = set(order[: int(hold_out * len(frames))].tolist())
        for name, wanted in ((TRAINING, False), (VALIDATION, True)):
            chosen = [frame for i, frame in enumerate(frames) if (i in held) == wanted]
            shutil.rmtree(part / name, ignore_errors=True)  # of a part that was cut, perhaps with fewer frames
            if chosen:
                write_systems(chosen, type_map, part / name, "deepmd/npy")

    return Work(title, folder, RECORD, settings, begin, finish, directory=Path.cwd())


def _usable(folder: Path) -> list[Configuration]:
    """The labelled frames of a folder, without those that lack an energy or forces.

    Raises
    ------
    RunError
        There are none.
    """
    path, asked = folder / LABELLED, len(ase.io.read(folder / FRAMES, index=":", parallel=False))
    if not path.is_file():
        raise RunError(
            "the labelling has ended and has written no labels", where=str(path), expected="an extxyz file",
            remedy=f"see {folder / LOG}",
        )  # fmt: skip
    found = list(read_configurations(path, "ase/extxyz")) if path.stat().st_size else []
    whole = [
        c for c in found if all(name in c.values and np.isfinite(c.values[name]).all() for name in ("energy", "force"))
    ]
    if not whole:
        raise RunError(
            f"none of {asked} frames has both energy and forces", where=str(path),
            expected="energy= or free_energy= and a column forces:R:3 of each frame", remedy=f"see {folder / LOG}",
        )  # fmt: skip
    if len(whole) < asked:
        log.warning("%d of %d frames have no labels and are left out: see %s", asked - len(whole), asked, folder / LOG)
    return whole


def compare(folder: Path, sample: Atoms) -> str:
    """What the labels of a first frame say beside those that the data have of it."""
    (label,) = _usable(folder)
    if sample.calc is None:
        return "labelling works: the first frame of the training data was labelled"
    energy, forces = sample.get_potential_energy(), sample.get_forces()
    order = np.argsort(sample.numbers, kind="stable"), np.argsort(ase.Atoms(label.symbols).numbers, kind="stable")
    rms = np.sqrt(np.mean((label.values["force"][order[1]] - forces[order[0]]) ** 2))
    shift = 1e3 * (label.values["energy"] - energy) / len(sample)
    return f"labels of the first frame of the data differ from its own by {shift:.3g} meV/atom and {rms:.3g} eV/Å (RMS)"


def check(label: Label) -> None:
    """Find out whether labels can be made, as far as that goes without making one.

    Raises
    ------
    InputError
        There is no such calculator or program, or the calculator does not take the parameters.
    """
    if label.command is not None:
        require_program(label.command, "label/command")
        return
    calculator.make_calculator(label)
