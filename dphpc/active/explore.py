"""Exploration: MD runs with the committee, which record how far its models disagree."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from dphpc.active.commands import command_line
from dphpc.active.committee import draw_seed, round_folder
from dphpc.active.config import Exploration, LearnConfig, Round, Select
from dphpc.active.work import LOG, Work, read_json, spoiled
from dphpc.core.config import parse_config, read_mapping
from dphpc.core.errors import EXIT_ASTRAY, EXIT_STOPPED_ABOVE, InputError
from dphpc.md.config import MdConfig
from dphpc.md.restart import is_restart, read_restart
from dphpc.md.sealed import previous_of
from dphpc.md.structures import read_structure, require_file

log = logging.getLogger(__name__)

_IN_RUN_FILE = {
    "deviation/mark_above": "select/above", "deviation/stop_above": "select/stop_above",
    "deviation/every": "explore/every",
}  # fmt: skip
"""Keys of a run that come from the loop's run file, with their paths there."""

RECORD, DEVIATIONS, CANDIDATES, RESTART = "run.json", "model_devi.out", "candidates.extxyz", "restart.h5"
"""Files that a run reads and writes in its folder."""

FILLED_IN = ("structure", "model", "deviation")
"""Keys of an MD run file that the loop sets."""


@dataclass(frozen=True)
class Condition:
    """What distinguishes one run of an exploration from the others."""

    exploration: Exploration
    structure: str
    temperature_K: float | None
    pressure_bar: float | None

    @property
    def name(self) -> str:
        """Name of the run, for its folder."""
        words = [Path(self.structure).name.split(".")[0]]
        words += [f"{self.temperature_K:g}K"] if self.temperature_K is not None else []
        words += [f"{self.pressure_bar:g}bar"] if self.pressure_bar is not None else []
        return "-".join(words)

    def run_file(self) -> dict[str, Any]:
        """The MD run file with structure, temperature and pressure filled in.

        Raises
        ------
        InputError
            The run file is wrong, sets what the loop sets, or has no place for a temperature or pressure.
        """
        path = self.exploration.md
        mapping = read_mapping(path)
        for key in FILLED_IN:
            if key in mapping:
                raise InputError(f"'{key}' is given by the loop", where=f"{path}: {key}", remedy="remove it")
        settings = parse_config(MdConfig, mapping | {"structure": self.structure}, source=path)
        run = settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        for key, value in (("temperature_K", self.temperature_K), ("pressure_bar", self.pressure_bar)):
            if value is None:
                continue
            sections = [stage for stage in run["stages"] if key in stage]
            if not sections:
                kind = "an nvt or npt" if key == "temperature_K" else "an npt"
                raise InputError(
                    f"'{key}' is given for a run without {kind} stage", where=f"explore, md: {path}",
                    remedy=f"remove '{key}', or add such a stage",
                )  # fmt: skip
            sections += [run["velocities"]] if key in run.get("velocities", {}) else []
            for section in sections:  # pressures of directions stay those of these directions
                named = isinstance(section[key], dict)
                section[key] = dict.fromkeys(section[key], value) if named else value
        return run


def conditions(entry: Round) -> Iterator[Condition]:
    """The runs of one round, in the order of the run file."""
    for exploration in entry.explore:
        temperatures: list[float | None] = [*exploration.temperature_K] or [None]
        pressures: list[float | None] = [*exploration.pressure_bar] or [None]
        for structure, temperature, pressure in product(exploration.structures, temperatures, pressures):
            yield Condition(exploration, structure, temperature, pressure)


def check(entry: Round, type_map: Sequence[str]) -> list[MdConfig]:
    """The runs of a round, checked with their structures.

    Raises
    ------
    InputError, DataError
        A run file or structure is wrong, has species unknown to the models, or cannot be labelled.
    """
    runs, files = [], dict[tuple[str, str], MdConfig]()
    for c in conditions(entry):
        runs.append(parse_config(MdConfig, c.run_file(), source=c.exploration.md))
        files[c.exploration.md, c.structure] = runs[-1]
        steps = sum(stage.steps for stage in runs[-1].stages)
        if c.exploration.every > steps:
            raise InputError(
                f"'every' is {c.exploration.every}: of {steps} steps no frame would be compared but the first",
                where=f"explore, md: {c.exploration.md}", expected=f"at most {steps}",
            )  # fmt: skip
    for (_, path), run in files.items():
        if is_restart(path):
            raise InputError("a restart file cannot be explored from", where=path, expected="a structure")
        require_file(path, "structures")
        source = read_structure(path, run.type_map, run.periodic).with_types_of(type_map, path)
        if len(set(source.box.periodic)) > 1:
            raise InputError(
                "the structure repeats in some directions only, which training data cannot",
                where=path, expected="all directions or none", remedy="a slab: give it a vacuum, and pbc T T T",
            )  # fmt: skip
    return runs


def explorations(config: LearnConfig, number: int, entry: Round, models: Sequence[Path]) -> list[Work]:
    """The exploration runs of a round with a committee."""
    top = round_folder(config, number) / "explore"
    return [
        _exploration(config, condition, top / f"{k:02d}-{condition.name}", (number, k), config.selection(entry), models)
        for k, condition in enumerate(conditions(entry))
    ]


def require_same_runs(works: Sequence[Work], complete: bool) -> None:
    """Refuse a round with explorations, done or begun, that the run file no longer asks for.

    Parameters
    ----------
    complete
        Whether the round is done, so that all explorations must be there (unless all were removed).
    """
    top, asked = works[0].folder.parent, {work.folder.name for work in works}
    found = {path.name.removesuffix(".part") for path in top.glob("*")}
    other = sorted(found ^ asked if complete and found else found - asked)
    if other:
        raise InputError(
            f"the round has {'done' if complete else 'begun'} other explorations than those of the run file: "
            f"'{other[0]}' is only {'there' if other[0] in found else 'in the run file'}",
            where=str(top), expected=", ".join(sorted(found)),
            remedy=f"restore 'explore', name another 'folder', or remove {top} and what follows from it",
        )  # fmt: skip


def _exploration(
    config: LearnConfig, condition: Condition, folder: Path, place: tuple[int, int], select: Select,
    models: Sequence[Path],
) -> Work:  # fmt: skip
    run = condition.run_file()
    first, *others = (os.path.relpath(model, folder) for model in models)
    run |= {"structure": os.path.relpath(condition.structure, folder), "model": first}
    # All frames above `above`, even those above `below`, so that `below` can be changed before frames are selected.
    run["deviation"] = {
        "models": others, "every": condition.exploration.every, "file": DEVIATIONS, "candidates": CANDIDATES,
        "mark_above": select.above, "stop_above": select.stop_above,
    }  # fmt: skip
    # Every run has its own seeds, and writes into its own folder.
    run["seed"] = draw_seed(config.seed, *place, 0)
    if "velocities" in run:
        run["velocities"]["seed"] = draw_seed(config.seed, *place, 1)
    run["thermo"] = run.get("thermo", {}) | {"file": "thermo.csv"}
    if "trajectory" in run:
        run["trajectory"]["file"] = Path(run["trajectory"].get("file", "traj.extxyz")).name
    if "restart" in run:
        run["restart"]["file"] = RESTART

    def begin(part: Path) -> list[str] | None:
        resume = "restart" in run and any(p.is_file() for p in (part / RESTART, previous_of(part / RESTART)))
        if resume and _is_over(part, run, select):
            return None
        return command_line(config.launch.md, "md", RECORD, *["--continue"] * resume)

    number, k = place
    title = f"round {number}, exploration {k} ({condition.name})"
    return Work(title, folder, RECORD, run, begin, accept=_explored, known_as=_IN_RUN_FILE)


def _is_over(part: Path, run: dict[str, Any], select: Select) -> bool:
    """Whether an interrupted run was at its end: all stages done, or a deviation above `stop_above`."""
    checkpoint = read_restart(str(part / RESTART))[1]
    over = checkpoint.position_in(MdConfig.model_validate(run).stages) is None
    return over or any(worst > select.stop_above for _, worst in deviations(part))


def _explored(status: int, folder: Path) -> bool:
    """Whether a run counts as done: at its end, or where its atoms went astray, as with poor models."""
    if status in (0, EXIT_STOPPED_ABOVE):
        return True
    # A signal, or an error that is not due to the models; or nothing was explored.
    if status != EXIT_ASTRAY or len(deviations(folder)) < 2:
        return False
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    reason = text.rpartition("error: ")[2].strip().split("\n")[0]
    log.warning("%s: the run ended early, and is explored as far as it went: %s", folder.stem, reason)
    return True


def unreached(folder: Path) -> int:
    """Number of frames not compared because the run ended early; 0 with a minimization, whose length is not known."""
    run = read_json(folder / RECORD)
    if any(stage["ensemble"] == "minimize" for stage in run["stages"]):
        return 0
    planned = sum(stage["steps"] for stage in run["stages"]) // run["deviation"]["every"] + 1
    return max(0, planned - len(deviations(folder)))


def deviations(folder: Path) -> list[tuple[int, float]]:
    """(step, max_devi_f in eV/Å) of each frame on which a run has compared the models.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path = folder / DEVIATIONS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or not line.endswith("\n"):  # an incomplete last line, of a run that was killed
            continue
        try:
            step, _, _, _, worst, _, _ = line.split()
            found.append((int(step), float(worst)))
        except ValueError:
            raise spoiled(path, f"line {number} of a run's deviations is damaged") from None
    return found
