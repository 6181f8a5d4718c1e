"""What has to be on the disk before a write is acknowledged, and whether there is room for it.

The engine appends each write to a log in shared memory maps of `wal/`: that survives a kill of the process, and a
power failure only once the file was flushed. The files are sparse, so that a write to them on a full disk does not
fail but kills the process (SIGBUS). Neither is left to the engine.

A thread of the engine's makes the log's next file ahead and then gives it its name, at any time. So whoever goes
through a shard's files may find one gone, and has to begin again.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from visionstack.errors import CollectionNotFound, ServiceUnavailable

# More than one request can make the engine write, with what may be taken by others meanwhile.
MIN_FREE_BYTES = 64 * 1024 * 1024

_OPEN_SEGMENT = re.compile(r"open-([0-9]+)")
# Of going through the files; only thousands of writes later the engine renames another one.
_ATTEMPTS = 10

T = TypeVar("T")


def check_space(folder: Path) -> None:
    """Raises `ServiceUnavailable` where a write might find the disk full."""
    if not has_space(folder):
        raise disk_full(f"{folder}: less than {MIN_FREE_BYTES} bytes are free")


def disk_full(log_detail: str) -> ServiceUnavailable:
    return ServiceUnavailable(
        "The vector store's disk is full; free some space and send it again. Reading goes on.", log_detail=log_detail
    )


def has_space(folder: Path, wanted: int = 0) -> bool:
    """Whether so many bytes can be written, and a request's besides."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize >= MIN_FREE_BYTES + wanted


def tree_size(path: Path) -> int:
    """In bytes on the disk: the engine's files are sparse."""
    return _settled(path, lambda: sum(file.stat().st_blocks * 512 for file in path.rglob("*")))


def copy_tree(source: Path, target: Path) -> None:
    """A copy in the place of `target`. Raises `CollectionNotFound` when `source` is deleted meanwhile."""

    def copy() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, copy_function=_copy_file)

    try:
        _settled(source, copy)
    except (shutil.Error, FileNotFoundError):
        if source.exists():
            raise
        raise CollectionNotFound from None


def sync_folder(path: Path) -> None:
    """The folder's own entries: which files there are under which names."""
    _flush(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(path: Path) -> None:
    """Everything below `path`, and its entry in the folder above."""

    def sync() -> None:
        for folder, _, files in os.walk(path):
            for name in files:
                _flush(Path(folder) / name, os.O_RDONLY)
            sync_folder(Path(folder))

    _settled(path, sync)
    sync_folder(path.parent)


class LogSync:
    """Flushes a shard's log, once for all writes that wait at the time. Used on one event loop.

    A failed flush is final: the system may have dropped what it could not write, and a second flush would say that all
    is well. Nothing is acknowledged from then on until the service starts again and reads what there is.
    """

    def __init__(self, shard: Path, executor: Executor) -> None:
        self._wal = shard / "wal"
        self._executor = executor
        self._turn = asyncio.Lock()
        self._asked = self._flushed = 0
        self._names: frozenset[str] = frozenset()
        self._failure: OSError | None = None
        self._retired = False

    def retire(self) -> None:
        """All that was applied to the shard is on the disk, in another one that took its place."""
        self._retired = True

    def fail(self, failure: OSError) -> None:
        self._failure = failure

    async def flushed(self) -> None:
        """Returns once every write that was applied before the call is on the disk."""
        self._asked += 1
        mine = self._asked
        async with self._turn:
            if self._retired or self._flushed >= mine:
                return  # by another's flush, which began after this write
            asked = self._asked
            if self._failure is None:
                try:
                    await asyncio.get_running_loop().run_in_executor(self._executor, self._flush_log)
                except OSError as exc:
                    self._failure = exc
            if self._failure is not None:
                raise ServiceUnavailable(
                    "The vector store cannot use its disk; restart it once that is mended.",
                    log_detail=f"flushing {self._wal}: {self._failure!r}",
                )
            self._flushed = asked

    def _flush_log(self) -> None:
        """Only the newest file holds unflushed writes, unless the log began another one since the last flush."""

        def flush() -> None:
            try:
                names = frozenset(os.listdir(self._wal))
            except FileNotFoundError:
                if self._retired:
                    return
                raise CollectionNotFound from None  # deleted meanwhile, with this write
            if names == self._names:
                _flush(self._wal / _current(names), os.O_RDONLY)
            else:
                for name in names:
                    _flush(self._wal / name, os.O_RDONLY)
                sync_folder(self._wal)
            self._names = names

        _settled(self._wal, flush)


class _RenamedError(Exception):
    """Not an OSError, which `copytree` would keep until all else is copied."""


def _settled(path: Path, work: Callable[[], T]) -> T:
    """What `work` makes of the files below `path`, again from the beginning when one of them was renamed meanwhile."""
    for _ in range(_ATTEMPTS):
        try:
            return work()
        except (FileNotFoundError, _RenamedError) as exc:
            last = exc
    raise FileNotFoundError(f"{path} does not hold still") from last


def _copy_file(source: str, target: str) -> str:
    try:
        return shutil.copy2(source, target)
    except FileNotFoundError as exc:
        raise _RenamedError from exc


def _current(names: frozenset[str]) -> str:
    """The segment being written: those with higher numbers are made ahead, and full ones are renamed."""
    numbers = [(int(match[1]), name) for name in names if (match := _OPEN_SEGMENT.fullmatch(name))]
    if not numbers:
        raise FileNotFoundError("no open segment")
    return min(numbers)[1]


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor) if not flags & os.O_DIRECTORY else os.fsync(descriptor)
    finally:
        os.close(descriptor)
