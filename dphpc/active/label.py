"""Labelling: energies, forces and stresses of chosen frames, by a calculator of ASE or by any command.

Either reads an extxyz file and writes another.  `python -m dphpc.active.label FOLDER N` is the command for calculators:
it labels N frames at a time, each in a process of its own, and goes on with those that are left where it was cut.
"""

from __future__ import annotations

import importlib
import inspect
import json
import multiprocessing
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes, get_calculator_class
from ase.calculators.names import names as ASE_NAMES
from ase.calculators.singlepoint import SinglePointCalculator

from dphpc.active.committee import TRAINING, VALIDATION
from dphpc.active.config import Label, LearnConfig
from dphpc.active.work import POLL, Work, log, require_program
from dphpc.core.config import parse_config
from dphpc.core.errors import DataError, DphpcError, InputError, RunError, did_you_mean
from dphpc.train.convert import read_configurations
from dphpc.train.data.writer import Configuration, write_systems

RECORD, FRAMES, LABELLED = "label.json", "frames.extxyz", "labelled.extxyz"
WANTED = ("energy", "forces", "stress")


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
            return [sys.executable, "-m", __name__, str(part.resolve()), str(config.at_once.label)]
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
            remedy=f"see {folder / 'log'}",
        )  # fmt: skip
    found = list(read_configurations(path, "ase/extxyz")) if path.stat().st_size else []
    whole = [
        c for c in found if all(name in c.values and np.isfinite(c.values[name]).all() for name in ("energy", "force"))
    ]
    if not whole:
        raise RunError(
            f"none of {asked} frames has both energy and forces", where=str(path),
            expected="energy= or free_energy= and a column forces:R:3 of each frame", remedy=f"see {folder / 'log'}",
        )  # fmt: skip
    if len(whole) < asked:
        log.warning(
            "%d of %d frames have no labels and are left out: see %s", asked - len(whole), asked, folder / "log"
        )
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
    make_calculator(label)


def make_calculator(label: Label) -> Any:
    """The calculator that a run file asks for.

    Raises
    ------
    InputError
        It cannot be imported or made.
    """
    name, parameters = str(label.calculator), dict(label.parameters)
    module, colon, attribute = name.partition(":")
    if not colon and name not in ASE_NAMES:
        raise InputError(
            f"ASE has no calculator '{name}'", where="label/calculator", expected="ASE's name of one, or module:class",
            remedy=did_you_mean(name, ASE_NAMES),
        )  # fmt: skip
    try:
        if colon:
            if str(Path.cwd()) not in sys.path:  # a file beside the run file, for a command that is no `python -m`
                sys.path.insert(0, str(Path.cwd()))
            make = getattr(importlib.import_module(module), attribute)
        else:
            make = get_calculator_class(name)
        if isinstance(parameters.get("profile"), dict):
            parameters["profile"] = _profile(make)(**parameters["profile"])
        return make(**parameters)
    except Exception as error:  # whatever a module, a class or its check of arguments raises
        raise InputError(
            f"the calculator '{name}' cannot be made: {type(error).__name__}: {error}", where="label",
            remedy="install or load its program, and check 'parameters' with its documentation",
        ) from None  # fmt: skip


def _profile(calculator: Any) -> Any:
    """The class that tells some of ASE's calculators of their program."""
    module = inspect.getmodule(calculator)
    found = [kind for name, kind in vars(module).items() if name.endswith("Profile") and name != "BaseProfile"]
    if len(found) != 1:
        raise TypeError("it takes no 'profile'")
    return found[0]


def label_frame(label: Label, atoms: Atoms, directory: Path) -> Atoms:
    """A frame with its labels; the calculator's own files go to `directory`.

    Raises
    ------
    DataError
        It has not converged, or gave something that is not finite.
    """
    calculator = make_calculator(label)
    if hasattr(calculator, "directory"):
        calculator.directory = directory
    possible = set(calculator.implemented_properties) - (set() if atoms.pbc.all() else {"stress"})
    wanted = [name for name in WANTED if name in possible]
    calculator.calculate(atoms, wanted, all_changes)
    if getattr(calculator, "converged", True) is False:
        raise DataError("the calculation has not converged")
    results = {name: calculator.results[name] for name in (*wanted, "free_energy") if name in calculator.results}
    for name, value in results.items():
        if not np.isfinite(value).all():
            raise DataError(f"'{name}' is not finite")
    labelled = atoms.copy()
    labelled.calc = SinglePointCalculator(labelled, **results)
    return labelled


def _label_one(label: Label, atoms: Atoms, folder: Path, number: int) -> None:
    """In a process of its own: write the labelled frame, or end with status 1."""
    try:
        labelled = label_frame(label, atoms, folder / f"{number:04d}")
    except Exception as error:  # whatever a calculator raises
        print(f"frame {number}: {error if isinstance(error, DphpcError) else f'{type(error).__name__}: {error}'}")
        sys.exit(1)
    partial = folder / f".{number:04d}.extxyz"
    ase.io.write(partial, labelled, format="extxyz", parallel=False)
    partial.rename(folder / f"{number:04d}.extxyz")


def label_frames(folder: Path, at_once: int) -> None:
    """Label the frames of a folder that are not labelled yet, and write all that are.

    Raises
    ------
    RunError
        Not one could be labelled.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    label = parse_config(Label, record["label"], source=str(folder / RECORD))
    frames = list(ase.io.iread(folder / FRAMES, index=":", parallel=False))
    results = [folder / f"{number:04d}.extxyz" for number in range(len(frames))]
    waiting = [number for number, path in enumerate(results) if not path.is_file()]
    running: dict[int, BaseProcess] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.pop(0)
            # Forked, so that the packages are loaded; nothing but this loop has run before.
            process = multiprocessing.get_context("fork").Process(
                target=_label_one, args=(label, frames[number], folder, number)
            )
            process.start()
            running[number] = process
        for number in [number for number, process in running.items() if not process.is_alive()]:
            status = running.pop(number).exitcode
            if results[number].is_file():
                print(f"frame {number}: labelled", flush=True)
            elif status != 1:
                print(f"frame {number}: the calculation ended with status {status}", flush=True)
        time.sleep(POLL / 5 if running else 0.0)
    labelled = [frame for path in results if path.is_file() for frame in ase.io.iread(path, parallel=False)]
    if not labelled:
        raise RunError(f"none of {len(frames)} frames could be labelled")
    ase.io.write(folder / LABELLED, labelled, format="extxyz", parallel=False)


if __name__ == "__main__":
    try:
        label_frames(Path(sys.argv[1]), int(sys.argv[2]))
    except DphpcError as caught:
        sys.exit(f"error: {caught}")
