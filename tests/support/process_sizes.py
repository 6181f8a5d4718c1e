"""What processes hold: memory, open files, threads. Each process is counted with its children."""

import contextlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Held:
    """`files` by what is open, `threads` by name; `bytes` is the proportional set size: shared pages count once."""

    bytes: int
    processes: int
    files: Counter[str]
    threads: Counter[str]


def held_by(pid: int) -> Held:
    """Files and threads are those of the process itself: its children come and go."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return Held(sum(map(_proportional_bytes, family)), len(family), _files(pid), _threads(pid))


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


# psutil leaves out sockets and pipes where it names files, and the names of threads.


def _files(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(entry)
            found[target.partition(":[")[0] if ":[" in target else target] += 1
    return found


def _threads(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # ended meanwhile
            found[(entry / "comm").read_text().strip()] += 1
    return found
