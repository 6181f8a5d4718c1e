"""Lets tests that measure run alone, with several workers (`make test`)."""

import fcntl
import os
from collections.abc import Generator
from pathlib import Path

import pytest

# Nothing is written to either; a lock needs a file that all workers know.
_TURN, _DOOR = Path(__file__), Path(__file__).with_name("conftest.py")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Waits for its turn before anything else, the test's own time limit included."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with _TURN.open() as turn:
        # Who waits to be alone holds the door, or others would slip in before it for ever.
        with _DOOR.open() as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(turn, kind)
        try:
            return (yield)
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)  # closing would not do where a test has left a fork
