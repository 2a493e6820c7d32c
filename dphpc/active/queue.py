"""The section `queue` of a run file: how jobs of Slurm, PBS, LSF and others are submitted, in dpdispatcher's words."""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from dphpc.core.config import Config, parse_config, read_mapping
from dphpc.core.errors import InputError, did_you_mean

PROGRAMS = {
    "Slurm": ("sbatch", "scancel"), "SlurmJobArray": ("sbatch", "scancel"), "PBS": ("qsub", "qdel"),
    "Torque": ("qsub", "qdel"), "SGE": ("qsub", "qdel"), "LSF": ("bsub", "bkill"), "Fugaku": ("pjsub", "pjdel"),
    "JH_UniScheduler": ("jsub", "jctrl kill"), "Shell": ("bash", "kill"),
}  # fmt: skip
"""Batch type -> the programs that submit and end its jobs."""

IN_PLACE = ("lazylocal", "lazylocalcontext", "local", "localcontext")
"""Contexts of dpdispatcher in which a job sees the files of this machine; jobs work on them where they are."""

FOLDER = "queue"
"""Folder, in that of the loop, with a folder for each job's script and the queue system's own output."""


def _only_one(value: Any) -> Any:
    """DP-GEN's files may have a list of one section."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class SectionConfig(Config):
    """How the jobs of one kind of work are submitted, in dpdispatcher's words."""

    # DP-GEN's: what runs is this dphpc, and files are where they are.
    ignored_keys: ClassVar = frozenset({"command", "user_forward_files", "user_backward_files"})

    machine: dict[str, Any]
    resources: dict[str, Any] = Field(default={})


_Section = Annotated[SectionConfig | None, BeforeValidator(_only_one)]


class QueueConfig(Config):
    """The sections of `queue`; works of a kind without a section are done by processes.  DP-GEN's names are known."""

    key_aliases: ClassVar = {"model_devi": "md", "fp": "label"}
    ignored_keys: ClassVar = frozenset({"api_version", "deepmd_version"})

    train: _Section = None
    md: _Section = None
    label: _Section = None


@dataclass(frozen=True)
class Section:
    """The checked settings of the jobs of one kind of work.

    Attributes
    ----------
    machine, resources
        Settings as dpdispatcher takes them.
    batch_type
        dpdispatcher's name of the queue system, a key of `PROGRAMS`.
    unused
        What the section has beside these, and no job heeds.
    """

    machine: dict[str, Any]
    resources: dict[str, Any]
    batch_type: str
    unused: list[str]

    @property
    def group_size(self) -> int | float:
        """The largest number of works in a job."""
        return self.resources["group_size"] or math.inf

    def job(self, top: Path, token: str, commands: list[str]) -> Any:
        """The job of dpdispatcher that runs commands; it is not submitted.

        Parameters
        ----------
        top
            The loop's folder.
        """
        dp = _dpdispatcher()
        machine = dp.Machine.load_from_dict(self.machine | {"local_root": str(top.absolute())})
        resources = dp.Resources.load_from_dict(self.resources | {"group_size": 0, "batch_type": self.batch_type})
        tasks = [dp.Task(command=command, task_work_path=".") for command in commands]
        submission = dp.Submission(f"{FOLDER}/{token}", machine=machine, resources=resources, task_list=tasks)
        submission.generate_jobs()
        return submission.belonging_jobs[0]

    def describe(self, folder: Path, at_once: int | None) -> str:
        """What is asked of the queue system for each job."""
        job = self.job(folder, "none", ["true"])
        header = job.machine.gen_script_header(job) + "\n" + job.machine.gen_script_custom_flags_lines(job)
        words = [line.partition(" ")[2] for line in header.split("\n") if re.match("#[^!]", line)]
        bound = "all at the same time" if at_once is None else f"{at_once} at a time"
        size = "" if self.group_size == 1 else f", {self.group_size} works in each"
        if self.group_size == math.inf:
            size = ", all works in one"
        return f"jobs of {self.batch_type}, {bound}{size}" + f": {' '.join(words)}" * bool(words)


def sections(queue: str | Mapping[str, Any] | None) -> dict[str, Section]:
    """The checked sections of `queue` in a run file, by the kinds of work that they are for.

    Raises
    ------
    InputError
        dpdispatcher is missing, a key or value is wrong, or such jobs cannot be submitted from here.
    """
    if queue is None:
        return {}
    source = queue if isinstance(queue, str) else "queue"
    mapping = read_mapping(queue) if isinstance(queue, str) else queue
    config = parse_config(QueueConfig, mapping, source=source)
    given = {name: section for name in QueueConfig.model_fields if (section := getattr(config, name)) is not None}
    if not given:
        raise InputError("it has no section of jobs", where=source, expected="'train', 'md' or 'label'")
    raw = {QueueConfig.key_aliases.get(key, key): _only_one(value) for key, value in mapping.items()}
    return {name: _checked(section, raw[name], f"{source}: {name}") for name, section in given.items()}


def _checked(section: SectionConfig, raw: Mapping[str, Any], where: str) -> Section:
    dp = _dpdispatcher()
    machine, resources = dict(section.machine), dict(section.resources)
    known = dp.Machine.subclasses_dict
    name = str(machine.get("batch_type"))
    if name not in known:
        raise InputError(
            f"dpdispatcher has no batch type '{name}'" if "batch_type" in machine else "'batch_type' is missing",
            where=f"{where}/machine/batch_type", expected="the name of a queue system",
            remedy=did_you_mean(name, PROGRAMS),
        )  # fmt: skip
    batch_type = known[name].__name__
    context = str(machine.get("context_type", IN_PLACE[0]))
    if batch_type not in PROGRAMS or context.lower() not in IN_PLACE:
        far = f"batch type {batch_type}" if batch_type not in PROGRAMS else f"context {context}"
        raise InputError(
            f"{far}: files of a loop are not sent to another machine", where=f"{where}/machine",
            expected=f"context_type: LazyLocalContext, and one of {', '.join(PROGRAMS)}",
            remedy="start `dphpc learn` on that machine's login node, in a folder that its nodes see",
        )  # fmt: skip
    # A LocalContext would copy files to `remote_root` and back: they are used where they are.
    machine = {k: v for k, v in machine.items() if k not in ("remote_root", "remote_profile", "local_root")}
    machine |= {"batch_type": batch_type, "context_type": "LazyLocalContext", "local_root": "."}
    resources = {"group_size": 1} | resources | {"batch_type": batch_type}
    machine = _normalized(dp.Machine.arginfo(), machine, f"{where}/machine")
    resources = _normalized(dp.Resources.arginfo(), resources, f"{where}/resources")
    if resources["group_size"] < 0:
        raise InputError("'group_size' is negative", where=f"{where}/resources", expected="1 or more, or 0 for all")
    program = PROGRAMS[batch_type][0]
    if shutil.which(program) is None:
        raise InputError(
            f"there is no program '{program}', which submits jobs of {batch_type}", where=f"{where}/machine",
            expected=f"{program} in PATH", remedy="start `dphpc learn` on a login node of the cluster",
        )  # fmt: skip
    unused = [f"'{key}'" for key in sorted(SectionConfig.ignored_keys & raw.keys()) if raw[key]]
    unused += ["'ratio_unfinished'"] if (resources.get("strategy") or {}).get("ratio_unfinished") else []
    checked = Section(machine, resources, batch_type, unused)
    try:
        job = checked.job(Path(), "none", ["true"])
        job.machine.gen_script(job)
    except Exception as error:  # whatever dpdispatcher raises of values that its schema lets pass
        raise InputError(f"dpdispatcher refuses it: {error}", where=where) from None
    return checked


def _normalized(schema: Any, given: dict[str, Any], where: str) -> dict[str, Any]:
    """Settings with defaults, checked by dpdispatcher's schema; keys with a leading underscore are comments."""
    try:
        normal: dict[str, Any] = schema.normalize_value(given, trim_pattern="_*")
        schema.check_value(normal, strict=True)
    except Exception as error:  # dargs' errors of keys and values, and what it meets in values of other types
        raise InputError(
            f"dpdispatcher refuses it: {str(error).strip()}", where=where, remedy="see dpdispatcher's documentation"
        ) from None
    return normal


def _dpdispatcher() -> Any:
    """The package, kept from writing to the terminal and into a file `dpdispatcher.log`; its errors are raised."""
    logging.getLogger("dpdispatcher").addFilter(_nothing)
    try:
        import dpdispatcher
    except ImportError as error:
        raise InputError(
            f"'queue' needs the package dpdispatcher: {error}", remedy="pip install 'dphpc[queue]'"
        ) from None
    return dpdispatcher


def _nothing(_: logging.LogRecord) -> bool:
    return False
