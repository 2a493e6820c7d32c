"""Labels by an ASE calculator: `python -m dphpc.active.calculator FOLDER N` labels the frames of a folder.

N frames are labelled at a time, each in a process of its own, so that a crash costs one frame only.  After an
interruption it continues with the frames that are left.  If N is 0, the labels are those that are there: of frames that
`python -m dphpc.active.calculator FOLDER frame K` has labelled one by one.
"""

from __future__ import annotations

import importlib
import inspect
import json
import multiprocessing
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes, get_calculator_class
from ase.calculators.names import names as ASE_NAMES
from ase.calculators.singlepoint import SinglePointCalculator

from dphpc.active.config import Label
from dphpc.core.config import parse_config
from dphpc.core.errors import DataError, DphpcError, InputError, RunError, did_you_mean

RECORD, FRAMES, LABELLED = "label.json", "frames.extxyz", "labelled.extxyz"
"""Files in the folder of a labelling: what was asked for, the frames, and the labelled frames."""

WANTED = ("energy", "forces", "stress")
"""ASE's names of the properties that a calculator is asked for, if it has them."""

POLL = 0.01
"""Seconds between two looks at the processes."""


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
    except (Exception, SystemExit) as error:  # whatever a module, a class or its check of arguments raises
        raise InputError(
            f"the calculator '{name}' cannot be made: {type(error).__name__}: {error}", where="label",
            remedy="install or load its program, and check 'parameters' with its documentation",
        ) from None  # fmt: skip


def _profile(calculator: Any) -> Any:
    """The profile class by which some of ASE's calculators are told how to start their program."""
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
        The calculation has not converged, or a result is not finite.
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
    """Label a frame in a process of its own and write it to a file; exit status 1 if that fails."""
    try:
        labelled = label_frame(label, atoms, folder / f"{number:04d}")
    except (Exception, SystemExit) as error:  # whatever a calculator raises
        print(f"frame {number}: {error if isinstance(error, DphpcError) else f'{type(error).__name__}: {error}'}")
        sys.exit(1)
    partial = folder / f".{number:04d}.extxyz"
    ase.io.write(partial, labelled, format="extxyz", parallel=False)
    partial.rename(result_of(folder, number))


def _asked(folder: Path) -> tuple[Label, list[Atoms]]:
    """The calculator and the frames that a folder asks for."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    label = parse_config(Label, record["label"], source=str(folder / RECORD))
    return label, list(ase.io.iread(folder / FRAMES, index=":", parallel=False))


def result_of(folder: Path, number: int) -> Path:
    """The file with the labels of a frame."""
    return folder / f"{number:04d}.extxyz"


def label_frames(folder: Path, at_once: int) -> None:
    """Label the frames of a folder that are not labelled yet, and write all labelled ones to one file.

    Raises
    ------
    RunError
        Not one could be labelled.
    """
    label, frames = _asked(folder)
    results = [result_of(folder, number) for number in range(len(frames))]
    waiting = [number for number, path in enumerate(results) if at_once and not path.is_file()]
    running: dict[int, BaseProcess] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.pop(0)
            # Forked, so that packages need not be imported again; safe, as no other thread runs here.
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
        time.sleep(POLL if running else 0.0)
    labelled = [frame for path in results if path.is_file() for frame in ase.io.iread(path, parallel=False)]
    if not labelled:
        raise RunError(f"none of {len(frames)} frames could be labelled")
    ase.io.write(folder / LABELLED, labelled, format="extxyz", parallel=False)


if __name__ == "__main__":
    try:
        if sys.argv[2] == "frame":
            asked, number = _asked(Path(sys.argv[1])), int(sys.argv[3])
            _label_one(asked[0], asked[1][number], Path(sys.argv[1]), number)
        else:
            label_frames(Path(sys.argv[1]), int(sys.argv[2]))
    except DphpcError as caught:
        sys.exit(f"error: {caught}")
