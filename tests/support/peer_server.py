"""Services of a test's own in place of the stack's: real HTTP on loopback, an answer for each request."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web
from aiohttp.test_utils import RawTestServer

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """Gives the address."""
    async with RawTestServer(handler) as server:
        yield str(server.make_url("")).rstrip("/")


@contextmanager
def nobody() -> Iterator[str]:
    """An address where connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def break_off(request: web.BaseRequest) -> web.Response:
    """Ends the connection without an answer; what it gives is seen by nobody."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
