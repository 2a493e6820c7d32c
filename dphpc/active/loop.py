"""`dphpc learn`: rounds of training, exploration, selection and labelling, until nothing new is found.

All state is in files below one folder: `round-NN/train`, `explore`, `label`, and a summary when the round is done.  So
after an interruption the same command continues, and does nothing twice.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

import numpy as np

from dphpc.active import explore, label
from dphpc.active.commands import require_program
from dphpc.active.committee import TRAINING, VALIDATION, Committee, Data, draw_seed, round_folder
from dphpc.active.config import LearnConfig, Round, Select
from dphpc.active.jobs import Jobs
from dphpc.active.queue import sections
from dphpc.active.result import LearnResult, RoundSummary
from dphpc.active.select import Counts, choose, count
from dphpc.active.work import (
    LOG,
    Stopped,
    Work,
    Workshop,
    read_json,
    spoiled,
    write_json,
)
from dphpc.core.config import load_config, parse_config
from dphpc.core.errors import InputError, RunError, counted
from dphpc.core.files import write_whole
from dphpc.parallel.launch import launched
from dphpc.train.evaluate import test as evaluate

log = logging.getLogger(__name__)

SUMMARY, SECONDS, TABLE = "summary.json", "seconds.json", "rounds.csv"


def learn(config: str | Path | Mapping[str, Any] | LearnConfig, *, dry_run: bool = False) -> LearnResult:
    """Run active learning as a run file says, or continue it.

    Parameters
    ----------
    config
        A run file (YAML or JSON), or its contents.
    dry_run
        Only check everything and log what would be done.

    Raises
    ------
    InputError, DataError
        The run file, or a file that it names, is wrong, or contradicts work that is done.
    RunError
        A step failed, or nothing can be learned from a round; what is done is kept.
    """
    _require_one_process()
    if isinstance(config, str | Path):
        config = load_config(LearnConfig, config)
    elif not isinstance(config, LearnConfig):
        config = parse_config(LearnConfig, config)
    loop = Loop(config)
    for line in loop.describe():
        log.info("%s", line)
    if dry_run:
        log.info("nothing wrong was found, and nothing was done")
        return LearnResult(loop.done)
    try:
        with loop.workshop.alone():
            return loop.run()
    except Stopped as stopped:
        log.info("stopped by %s; the same command goes on from there", stopped)
        return LearnResult(loop.done, stopped_by=stopped.number)


def _require_one_process() -> None:
    launcher, rank, size = launched()
    if size > 1:
        error = InputError(
            f"a loop is one process, and {launcher} started {size}", expected="dphpc learn RUN, by itself",
            remedy="let the run file's 'launch' give its steps ranks: launch: {train: mpirun -n 4, md: mpirun -n 4}",
        )  # fmt: skip
        error.speaks = rank == 0
        raise error


class Loop:
    """A loop in progress: its checked inputs, and the rounds that are done."""

    def __init__(self, config: LearnConfig) -> None:
        self.config, self.queue = config, sections(config.queue)
        for name, command in (("train", config.launch.train), ("md", config.launch.md)):
            if command:
                require_program(command, f"launch/{name}", here=name not in self.queue)
        self.committee = Committee.of(config)
        self.runs = [explore.check(entry, self.committee.type_map) for entry in config.rounds]
        label.check(config.label, "label" not in self.queue)
        self.folder = Path(config.folder)
        self.workshop = Workshop(self.folder)
        self.done = self._rounds_done()
        self._require_agreement()

    def _rounds_done(self) -> list[RoundSummary]:
        """Summaries of the rounds that are done, without the last one if its labels were removed to be made anew.

        Raises
        ------
        InputError
            A summary is damaged.
        """
        done: list[RoundSummary] = []
        while (path := round_folder(self.config, len(done)) / SUMMARY).is_file():
            done.append(RoundSummary.of(path, len(done)))
        last = len(done) - 1
        if done and done[last].labelled and not self._label_folder(last).is_dir() and max(self._begun()) == last:
            done.pop()
        return done

    def _begun(self) -> list[int]:
        """Numbers of the rounds that have a folder."""
        names = (path.name.removeprefix("round-") for path in self.folder.glob("round-*"))
        return [int(name) for name in names if name.isdecimal()]

    def _schedule(self) -> Iterator[tuple[int, int, Round]]:
        """(number, index in `rounds`, entry) of each round; the caller does a round before it asks for the next."""
        number = 0
        for place, entry in enumerate(self.config.rounds):
            for _ in range(entry.repeat):
                yield number, place, entry
                number += 1
                if self.done[number - 1].converged:
                    break

    def _require_agreement(self) -> None:
        """Refuse a run file that disagrees with the rounds that are done."""
        latest = max(self._begun(), default=0)
        if latest > len(self.done):
            raise InputError(
                f"round {len(self.done)} is not done, and there is a later one, which knew other data of it",
                where=str(round_folder(self.config, latest)), remedy="remove all later ones",
            )  # fmt: skip
        schedule, data, trained = self._schedule(), Data(), None
        for summary in self.done:
            number, place, entry = next(schedule, (summary.round, -1, None))
            if entry is None or place != summary.entry:
                raise InputError(
                    f"round {number} was done for entry {summary.entry + 1} of 'rounds', and would now be "
                    + (f"for entry {place + 1}" if entry else "none of it"),
                    where=str(round_folder(self.config, number)),
                    expected="the entries that were done, each with its 'repeat', and perhaps more behind them",
                    remedy="restore them, or name another 'folder'",
                )  # fmt: skip
            trainings = self._trainings(number, data, trained)
            trained = self._last_trained(number, trained)
            explorations = self._explorations(number, entry, trained)
            explore.require_same_runs(explorations, complete=True)
            labelling = [] if summary.converged else [self._labelling(number, entry, explorations)]
            for work in [*trainings, *explorations, *labelling]:
                work.is_done()
            data = self._with_labels(data, number)

    def describe(self) -> list[str]:
        """Lines for the log: what the loop does."""
        c, t = self.config, self.committee.first.training
        length = f"{t.numb_steps} steps" if t.numb_steps is not None else f"{t.numb_epoch:g} epochs"
        lines = [
            f"committee: {c.models} models of {c.train} ({', '.join(self.committee.type_map)}), {length} each; "
            f"{counted(len(self.committee.systems), 'data system')} to begin with",
            f"labels:    {c.label.calculator or c.label.command}",
        ]
        for kind, section in self.queue.items():
            lines.append(f"{f'{kind}:':10} {section.describe(self.folder, getattr(c.at_once, kind))}")
            if section.unused:
                lines.append(f"{'':10} not used: {', '.join(section.unused)}: dphpc runs, on files where they are")
        n_rounds = n_runs = n_labels = 0
        for place, (entry, runs) in enumerate(zip(c.rounds, self.runs, strict=True), 1):
            s, steps = c.selection(entry), sum(stage.steps for run in runs for stage in run.stages)
            n_rounds, n_runs = n_rounds + entry.repeat, n_runs + entry.repeat * len(runs)
            n_labels += entry.repeat * s.most
            times = f"up to {entry.repeat} rounds" if entry.repeat > 1 else "one round"
            lines.append(
                f"entry {place}:   {times} of {len(runs)} runs, {steps} steps in all; at most {s.most} of the frames "
                f"that deviate by {s.above:g} to {s.below:g} eV/Å are labelled"
            )
        return [
            *lines,
            f"at most:   {(n_rounds + 1) * c.models} trainings, {n_runs} runs, {n_labels} labels",
            f"folder:    {c.folder}" + (f" ({len(self.done)} rounds are done)" if self.done else ""),
        ]

    def run(self) -> LearnResult:
        """Do all rounds that are left, and the final training."""
        self._check_labels()
        data, trained = Data(), None
        for number, place, entry in self._schedule():
            if number == len(self.done):
                self._train(number, data, trained)
                self._round(number, place, entry, self._last_trained(number, trained))
            trained = self._last_trained(number, trained)
            data = self._with_labels(data, number)
        self._train(len(self.done), data, trained)
        models = self.committee.require_models(self._last_trained(len(self.done), trained))
        log.info("models, trained on all data: %s", ", ".join(map(str, models)))
        return LearnResult(self.done, models, self.done[-1].converged)

    def _check_labels(self) -> None:
        """Label a frame of the training data, so that errors of the labelling show before hours of training."""
        sample, folder = self.committee.sample, self.folder / "check"
        check = label.first_label(self.config, folder, sample, self.committee.type_map, self._labels_by_frames)
        try:
            done = check.is_done()
        except InputError:  # made with another calculator; rounds that it has labelled are refused elsewhere
            done = False
            for path in (folder, check.part):
                shutil.rmtree(path, ignore_errors=True)
        if not done:
            self._label(check)

    def _last_trained(self, number: int, trained: int | None) -> int:
        """The round whose committee a round uses: its own, or `trained`, the last one, if that has seen all data."""
        return number if trained is None or self._label_folder(number - 1).is_dir() else trained

    def _trainings(self, number: int, data: Data, trained: int | None) -> list[Work]:
        """The trainings of a round's committee; none if it uses the last one."""
        own = self._last_trained(number, trained) == number
        return self.committee.trainings(number, data, trained) if own else []

    def _explorations(self, number: int, entry: Round, trained: int) -> list[Work]:
        return explore.explorations(self.config, number, entry, self.committee.models(trained))

    def _labelling(self, number: int, entry: Round, explorations: Sequence[Work]) -> Work:
        select, seed = self.config.selection(entry), draw_seed(self.config.seed, number)
        runs = [work.folder for work in explorations]
        choice = {"above": select.above, "below": select.below, "most": select.most, "seed": seed}
        return label.labelling(
            self.config, f"round {number}, labelling", self._label_folder(number), lambda: choose(runs, select, seed),
            self.committee.type_map, choice, self._labels_by_frames,
        )  # fmt: skip

    def _train(self, number: int, data: Data, trained: int | None) -> None:
        """Train a round's committee, unless it uses the last one."""
        works = self._trainings(number, data, trained)
        self._do(number, "train", works, lambda: self._work("train", works, not self.config.launch.train))

    def _round(self, number: int, place: int, entry: Round, trained: int) -> None:
        """Explore, select, label, and write the summary."""
        select, works = self.config.selection(entry), self._explorations(number, entry, trained)
        self.committee.require_models(trained)
        explore.require_same_runs(works, complete=False)
        self._do(number, "explore", works, lambda: self._work("md", works, not self.config.launch.md))
        counts = count([work.folder for work in works], select)
        converged = counts.converged(select)
        if not converged:
            if not counts.candidate:
                raise _nothing_to_learn(counts, select, round_folder(self.config, number))
            labelling = self._labelling(number, entry, works)
            self._do(number, "label", [labelling], lambda: self._label(labelling))
        self._conclude(number, place, counts, trained, converged)

    def _with_labels(self, data: Data, number: int) -> Data:
        """The data with those that a round has added; InputError if these are missing."""
        folder, labelled = self._label_folder(number), self.done[number].labelled
        held = int(self.config.hold_out * labelled)
        for name, n in ((TRAINING, labelled - held), (VALIDATION, held)):
            if n and not (folder / name).is_dir():
                what = f"round {number} has labelled {labelled} frames, and their data are missing"
                raise spoiled(folder / name, what)
        return data.with_labels(folder)

    def _label_folder(self, number: int) -> Path:
        """The folder of a round's labels; it does not exist if nothing was labelled."""
        return round_folder(self.config, number) / "label"

    def _conclude(self, number: int, place: int, counts: Counts, trained: int, converged: bool) -> None:
        folder, n = round_folder(self.config, number), max(1, counts.frames)
        fractions = counts.accurate / n, counts.candidate / n, counts.failed / n
        labelled, force, energy = self._errors(number, trained)
        seconds = _seconds(folder / SECONDS)
        train, explored, labels = (seconds.get(step, 0.0) for step in ("train", "explore", "label"))
        summary = RoundSummary(
            number, place, counts.frames, *fractions, counts.worst, labelled, force, energy, train, explored,
            labels, converged,
        )  # fmt: skip
        write_json(folder / SUMMARY, asdict(summary))
        self.done.append(summary)
        lines = [",".join(f.name for f in fields(RoundSummary))]
        lines += [",".join(f"{float(value):.10g}" for value in astuple(s)) for s in self.done]
        write_whole(self.folder / TABLE, "\n".join(lines) + "\n")
        for line in LearnResult(self.done).table():
            log.info("%s", line)
        if converged:
            log.info("round %d has converged: %.1f %% of its frames are accurate", number, 100.0 * summary.accurate)

    def _errors(self, number: int, trained: int) -> tuple[int, float, float]:
        """Number of labelled frames, and the committee's RMSE on them: forces in eV/Å, energies in eV per atom."""
        systems = Data().with_labels(self._label_folder(number))
        names = [str(path) for path in (*systems.training, *systems.validation)]
        if not names:
            return 0, math.nan, math.nan
        reports = [evaluate(model, names) for model in self.committee.models(trained)]
        measures = np.array([[report.total.measures(kind) for kind in ("f", "e_peratom")] for report in reports], float)
        force, energy = np.sqrt(np.mean(measures[:, :, 1] ** 2, axis=0)).tolist()
        return sum(reports[0].n_frames.values()), force, energy

    @property
    def _labels_by_frames(self) -> bool:
        """Whether each frame is labelled by a job of its own."""
        return "label" in self.queue and self.config.label.command is None

    def _label(self, labelling: Work) -> None:
        """Label frames, in jobs or by one process."""
        if self._labels_by_frames:
            self._work("label", label.frame_works(labelling))
            self.workshop.do([labelling], 1)
        else:
            self._work("label", [labelling])

    def _work(self, kind: str, works: Sequence[Work], share_cores: bool = False) -> None:
        """Do works of a kind by jobs, if it has a section in `queue`, or by processes."""
        at_once: int | None = getattr(self.config.at_once, kind)
        if kind in self.queue:
            self.workshop.do(works, at_once or sys.maxsize, jobs=Jobs(self.queue[kind], self.folder))
        else:
            self.workshop.do(works, at_once or 1, share_cores)

    def _do(self, number: int, step: str, works: Sequence[Work], do: Callable[[], None]) -> None:
        """Do a round's step unless all its works are done, and record the time taken."""
        waiting = [work for work in works if not work.is_done()]
        if not waiting:
            return
        log.info("round %d, %s: %d to do; %s", number, step, len(waiting), waiting[0].part / LOG)
        started = time.monotonic()
        try:
            do()
        finally:
            path = round_folder(self.config, number) / SECONDS
            seconds = _seconds(path)
            write_json(path, seconds | {step: seconds.get(step, 0.0) + time.monotonic() - started})


def _seconds(path: Path) -> dict[str, float]:
    """Seconds taken by each step of a round, as far as known; no result depends on them."""
    try:
        found = read_json(path)
    except InputError:
        return {}
    return {k: v for k, v in found.items() if isinstance(v, float)} if isinstance(found, dict) else {}


def _nothing_to_learn(counts: Counts, select: Select, folder: Path) -> RunError:
    return RunError(
        f"no frame can be learned from: {counts.accurate} of {counts.frames} are accurate, {counts.failed} have failed",
        where=str(folder), expected=f"deviations between {select.above:g} and {select.below:g} eV/Å",
        remedy="raise 'below', or remove that round and explore more gently: colder, shorter, compared more often",
    )  # fmt: skip
