"""Memory of this machine and of this process."""

from __future__ import annotations

import os

from dphpc.core.probes import lines_of


def memory_available() -> float:
    """Bytes still available on this node, within the limits of this process's control group."""
    found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for line in lines_of("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(float(line.split()[1]) * 1024.0)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        numbers = [line.strip() for line in (*lines_of(limit), *lines_of(used))]
        if len(numbers) == 2 and all(n.isdigit() for n in numbers):
            found.append(float(numbers[0]) - float(numbers[1]))
    return max(min(found), 0.0)


def peak_memory() -> float:
    """Peak resident memory of this process so far, in bytes."""
    for line in lines_of("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024.0
    return 0.0
