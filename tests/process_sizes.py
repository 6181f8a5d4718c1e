"""What processes hold, as Linux tells it: memory, open files, threads. Each process is counted with its children."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Held:
    """`files` by what is open, `threads` by name; `bytes` is the proportional set size: shared pages count once."""

    bytes: int
    processes: int
    files: Counter[str]
    threads: Counter[str]


def held_by(pid: int) -> Held:
    """Files and threads are those of the process itself: its children come and go."""
    family = list(_family(pid))
    return Held(sum(map(_proportional_bytes, family)), len(family), _files(pid), _threads(pid))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in _entries(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _files(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in _entries(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(entry)
            found[target.partition(":[")[0] if ":[" in target else target] += 1
    return found


def _threads(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in _entries(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            found[(entry / "comm").read_text().strip()] += 1
    return found


def _entries(folder: str) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(folder).iterdir())
    return []
