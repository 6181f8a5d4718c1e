"""`python -m visionstack.weights`: load the model of the current folder's service once, as its start would, and end.

Whatever the model needs lies in the service's caches afterwards, so that later starts need no network. A model that
cannot be loaded ends the process as it ends the service: one line that says what to do, and status 1.
"""

import asyncio
import importlib
import signal
import sys

from fastapi import FastAPI

from .schemas import ServiceStatus

_LOOK_EVERY_S = 0.2


async def load_once(app: FastAPI) -> ServiceStatus:
    """What the service says of itself once its model is no longer loading."""
    async with app.router.lifespan_context(app):
        while True:
            status: ServiceStatus = app.state.readiness()
            if status.status != "loading":
                return status
            await asyncio.sleep(_LOOK_EVERY_S)


def main() -> None:
    # Ctrl-C ends at once; Python would wait for the thread that downloads, however long that takes
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = asyncio.run(load_once(importlib.import_module("main").app))
    if status.status != "ok":
        sys.exit(f"the model is not ready: {status.status}")
    print(f"{status.model}: everything is there")


if __name__ == "__main__":
    main()
