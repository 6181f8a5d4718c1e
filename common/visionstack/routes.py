"""The route class of every service: who is let in, how large and slow a body may be, and when work for it ends.

FastAPI reads the body before it runs dependencies, and lets an endpoint run on after its client has left; both are
settled here, once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message

from .errors import BodyTooLarge, ReceiveTimeout, UpstreamTimeout
from .inflight import Capacity, hold, time_left

# How long the caller will wait for this request; nothing works for it after that.
TIMEOUT_HEADER = "X-Timeout-Ms"

# What ends by its own time-out gets this long to become an answer before the whole is cut.
_TO_ANSWER_S = 0.25
# nginx's status for a client that did not wait; nobody sees it but the log
_CLIENT_LEFT = 499
# A server hands on a body in pieces of 64 KiB or less; one message for so much saves a fifth of what receiving costs.
_GATHERED_BYTES = 4 * 1024 * 1024


def limited_route(
    capacity: Capacity,
    *,
    timeout_s: float,
    max_body_bytes: int,
    receive_timeout_s: float,
    admit: Callable[[Request], Awaitable[None]] | None = None,
) -> type[APIRoute]:
    """A route class that lets `admit` and `capacity` refuse before a byte of the body is read.

    `timeout_s` is for the whole, from the request's arrival; a caller may allow less in the header `X-Timeout-Ms`.
    The work is cancelled at its end, and as soon as the client closes the connection.
    """

    class LimitedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_limited(request: Request) -> Response:
                if admit is not None:
                    await admit(request)
                with capacity.admit(timeout_s=_allowed(request, timeout_s)):
                    body = _Body(request, max_body_bytes, receive_timeout_s)
                    try:
                        async with _while_wanted(body):
                            return await handle(Request(request.scope, body.receive))
                    except ClientDisconnect:
                        return Response(status_code=_CLIENT_LEFT)
                    except HTTPException as exc:  # what FastAPI makes of anything that the body's reading raises
                        if isinstance(exc.__cause__, ClientDisconnect):
                            return Response(status_code=_CLIENT_LEFT)
                        raise

            return handle_limited

    return LimitedRoute


def _allowed(request: Request, timeout_s: float) -> float:
    value = request.headers.get(TIMEOUT_HEADER, "")
    return min(timeout_s, int(value) / 1000) if value.isdecimal() and len(value) < 10 else timeout_s


@asynccontextmanager
async def _while_wanted(body: "_Body") -> AsyncIterator[None]:
    """Cancels what runs inside when the client leaves (`ClientDisconnect`) or the time is up (`UpstreamTimeout`)."""
    left = False

    async def watch() -> None:
        nonlocal left
        await body.until_client_left()
        left = True
        scope.reschedule(0)

    try:
        async with asyncio.timeout(time_left(float("inf")) + _TO_ANSWER_S) as scope:
            watcher = asyncio.create_task(watch(), name="watch-client")
            try:
                yield
            finally:
                watcher.cancel()
    except TimeoutError:
        if not scope.expired():
            raise
        if left:
            raise ClientDisconnect from None
        raise UpstreamTimeout("The time for this request is used up; try again.") from None


class _Body:
    """The request's body within its bounds, and after it the end of the connection."""

    def __init__(self, request: Request, max_bytes: int, timeout_s: float) -> None:
        self._receive = request.receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        length = request.headers.get("content-length", "")
        self._declared = int(length) if length.isdecimal() else None
        self._received = 0
        self._deadline: float | None = None
        self._next: Message | None = None
        self._complete = asyncio.Event()
        if not self._declared and "transfer-encoding" not in request.headers:
            self._declared = 0
            self._complete.set()

    async def until_client_left(self) -> None:
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def receive(self) -> Message:
        if self._complete.is_set():
            # the watcher has what comes now
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._deadline is None:
            self._check(self._declared or 0)
            hold(self._declared or 0)
            self._deadline = asyncio.get_running_loop().time() + time_left(self._timeout_s)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._gather()
        except TimeoutError:
            raise ReceiveTimeout(f"The request body did not arrive within {self._timeout_s:g} seconds.") from None
        count = len(message.get("body", b""))
        self._received += count
        self._check(self._received)
        if self._declared is None:
            hold(count)
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._complete.set()
        return message

    async def _gather(self) -> Message:
        """What is left of the body, or the next few MiB of it, as one message."""
        if self._next is not None:
            message, self._next = self._next, None
            return message
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return message
        parts = [message.get("body", b"")]
        size, more = len(parts[0]), True
        while more and size < _GATHERED_BYTES and self._received + size <= self._max_bytes:
            message = await self._receive()
            if message["type"] != "http.request":
                self._next = message
                break
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
        return {"type": "http.request", "body": b"".join(parts), "more_body": more}

    def _check(self, count: int) -> None:
        if count > self._max_bytes:
            raise BodyTooLarge(f"The request body may hold at most {self._max_bytes} bytes; send less.")
