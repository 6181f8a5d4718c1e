"""On PYTHONPATH, it lets a process say on stderr what held its event loop for 20 ms and more.

asyncio's debug mode does that, too, but uvicorn switches it off on Python 3.11. Of the time held, what was not work the
thread waited for a core or for the GIL.
"""

import asyncio
import sys
import time
from typing import Any

_FROM_S = 0.02

_run: Any = asyncio.Handle._run


def _timed_run(self: asyncio.Handle) -> None:
    began, worked = time.perf_counter(), time.thread_time()
    _run(self)
    if (took := time.perf_counter() - began) > _FROM_S:
        worked = time.thread_time() - worked
        print(f"event loop held {took * 1000:.0f} ms, worked {worked * 1000:.0f} ms: {self!r}", file=sys.stderr)


asyncio.Handle._run = _timed_run  # type: ignore[method-assign]
