"""Lets tests that measure run alone, with several workers (`make test`)."""

import fcntl
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Nothing is written to either; a lock needs a file or folder that all workers know.
_TURN, _DOOR = Path(__file__), Path(__file__).parent

# Above what any test of `make test` takes, and below what the run may; a test's own time limit starts only later.
_PATIENCE_S = 1000


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Waits for its turn before anything else, the test's own time limit included."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with _opened(_TURN) as turn:
        # Who waits to be alone holds the door, or others would slip in before it for ever.
        with _opened(_DOOR) as door:
            _lock(door, fcntl.LOCK_EX)
            _lock(turn, kind)
        return (yield)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would not do where a test has left a fork
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    """`flock`, but not for ever: a lock that nobody gives back ends the run with an error in place of silence."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
