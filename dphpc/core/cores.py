"""Which processor cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""File with the container's limit on processor time: "quota period" in µs, or "max period"."""


def affinity() -> frozenset[int]:
    """The cores that this process may run on: those of the machine, or fewer where a launcher pinned it."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quota() -> int | None:
    """How many cores' processor time the container may use, at least 1; None without a limit."""
    try:
        limit, period = QUOTA.read_text().split()
        return max(1, int(limit) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def n_cores() -> int:
    """How many cores this process may use."""
    return min(len(affinity()), quota() or len(affinity()))
