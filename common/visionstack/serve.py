"""`python -m visionstack.serve`: the service of the current folder, as the images and `make run` run it.

It is `uvicorn main:app` with the stack's options, the bounds of `http_edge` on connections, what the first requests
would have to wait for done beforehand, and one difference: a stop by SIGTERM, even before the service is ready, ends
with status 0. uvicorn alone ends by that signal, which looks like a failure to whoever started it. `HOST` (default:
every address) and `PORT` (8000) say where it listens.
"""

import importlib
import logging
import os
import signal
from types import FrameType

import anyio
import uvicorn
from fastapi import FastAPI

from .http_edge import EdgeLimits, allow_open_files, edge_protocol

# Docker kills what has not ended 30 seconds (`stop_grace_period`) after SIGTERM.
_GRACE_S = 20


def _end(_: int, __: FrameType | None) -> None:
    """Not by `sys.exit`, which would wait for a thread that still loads a model, however long its download takes."""
    logging.shutdown()
    os._exit(0)


def _warmed_up_app() -> FastAPI:
    """The service's app, after work that would hold its event loop for a tenth of a second at the first requests."""
    app: FastAPI = importlib.import_module("main").app
    # FastAPI prepares a router's routes when one of them is first looked for, and the document when it is asked for
    app.openapi()
    anyio.run(anyio.sleep, 0)  # anyio imports its backend when it is first used
    return app


def main() -> None:
    # uvicorn puts its own handler in place while it serves, and raises the signal anew once all is closed
    signal.signal(signal.SIGTERM, _end)
    allow_open_files()
    uvicorn.run(
        _warmed_up_app(),
        host=os.environ.get("HOST") or "0.0.0.0",  # noqa: S104 - in a container; what is published says Compose
        port=int(os.environ.get("PORT", "8000")),
        http=edge_protocol(EdgeLimits()),
        ws="none",
        # not uvloop, which accepts one connection per turn of its loop: under load new clients, whom a refusal would
        # cost a millisecond, waited for seconds
        loop="asyncio",
        server_header=False,
        access_log=False,
        # above the 30 s after which the gateway lets go of an idle connection
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE_S,
    )


if __name__ == "__main__":
    main()
