"""Memory of this machine and of this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from dphpc.core.probes import lines_of

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Folder of the machine's control groups, and file with those of this process."""

_FILES = (("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
"""Of control groups of version 2 and 1: the limit, what is used, and what precedes the names in memory.stat."""


def memory_available() -> float:
    """Bytes still available on this node, within the limits of this process's control groups."""
    found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for line in lines_of("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(float(line.split()[1]) * 1024.0)
    return max(min(*found, *map(_left_in, _own_groups())), 0.0)


def _own_groups() -> Iterator[Path]:
    """Folders of this process's control groups, from the inmost (of a job's step) to the machine's or container's."""
    for line in lines_of(OWN_GROUPS):
        _, kind, path = line.split(":", 2)
        if kind and "memory" not in kind.split(","):
            continue
        outmost = GROUPS / ("memory" if kind else "")  # version 2 has one kind only, without a name
        inmost = outmost / path.lstrip("/")
        yield from (inmost, *inmost.parents[: len(inmost.parts) - len(outmost.parts)])


def _left_in(group: Path) -> float:
    """Bytes left of a control group's limit; infinite if it has none.

    Of what is used the contents of files do not count, as in MemAvailable: the system gives up that memory.
    """
    for limit, used, prefix in _FILES:
        numbers = [*lines_of(group / limit), *lines_of(group / used)]
        if len(numbers) == 2 and all(map(str.isdigit, numbers)):
            of_files = f"{prefix}inactive_file", f"{prefix}active_file"
            stat = map(str.split, lines_of(group / "memory.stat"))
            return float(numbers[0]) - float(numbers[1]) + sum(float(n) for name, n in stat if name in of_files)
    return math.inf


def peak_memory() -> float:
    """Peak resident memory of this process so far, in bytes."""
    for line in lines_of("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024.0
    return 0.0
