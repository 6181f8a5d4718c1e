"""What of the machine this process may use: a container's share, not what its host has."""

import contextlib
import os
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may use: its affinity, cut by the container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        return cores
    return min(cores, max(1, int(quota) // int(period))) if quota != "max" else cores


def available_memory() -> int:
    """Bytes of memory that this process may have: its container's limit, or else all of the machine's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or the word max
            return min(machine, int(Path(path).read_text("ascii")))
    return machine
