"""What a connection may cost: uvicorn's HTTP protocol with bounds on what it leaves open.

uvicorn waits for ever for a request's head, keeps any number of connections and headers, reads on after it has answered
and waits for ever for a client that does not read. Here each of these ends, and what the server refuses by itself
leaves as a problem document like every other error. The body's own bounds are `web.limited_route`'s.
"""

import asyncio
import logging
import resource
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .errors import HeadersTooLarge, MalformedRequest, Overloaded, ReceiveTimeout, VisionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Seconds, bytes and counts of one connection; `connections` is that of all."""

    connections: int = 4096
    head_s: float = 10.0
    head_bytes: int = 64 * 1024
    headers: int = 100
    # between an answer and the end of the body that nobody wanted to read: a client that sends first reads it only then
    linger_s: float = 5.0
    # a client takes at least the transport's buffer, 64 KiB, in this time
    stalled_s: float = 30.0


def edge_protocol(limits: EdgeLimits) -> type[asyncio.Protocol]:
    """The class for uvicorn's `http=`."""
    return type("BoundEdge", (Edge,), {"limits": limits})


class Edge(HttpToolsProtocol):
    """One connection. One timer stands for what the client has to send next, another for what it has to read."""

    limits = EdgeLimits()

    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _in_head = False
    _head_bytes = 0
    _message_complete = True
    _refusal: VisionError | None = None
    _refused = False

    # --- what asyncio calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(Overloaded("The server has no connection left; try again as Retry-After says."))
        else:
            self._expect(self.limits.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._cancel_stall()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        began_before = self._in_head
        super().data_received(data)
        if began_before and self._in_head and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(HeadersTooLarge())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self._stall or self.loop.call_later(self.limits.stalled_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_stall()

    # --- what the parser calls --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._message_complete = True, False
        self._head_bytes = 0
        self._expect(self.limits.head_s, self._head_is_late)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        bytes_so_far = sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > self.limits.headers or bytes_so_far > self.limits.head_bytes:
            self._refusal = HeadersTooLarge()
            raise self._refusal  # the parser wraps it, and `send_400_response` has the word

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._expect_nothing()
        version = self.parser.get_http_version()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
            raise MalformedRequest
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._message_complete = True
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():  # the connection is good for another
            self._expect(self.timeout_keep_alive, self.transport.abort)

    # --- what uvicorn calls -----------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect(self.limits.stalled_s, self.transport.abort)
        elif not self._message_complete and not self._in_head and not self.pipeline:
            self._unset_keepalive_if_required()
            self._expect(self.limits.linger_s, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        # close() would wait for a client that does not read what was written
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or MalformedRequest())

    # --- ends -------------------------------------------------------------------------------------------------------

    def _expect(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._expect_nothing()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _head_is_late(self) -> None:
        if self._in_head:
            self._refuse(ReceiveTimeout("The request's head did not arrive in time; send it again."))
        else:  # it never said a word
            self.transport.abort()

    def _refuse(self, error: VisionError) -> None:
        """Answer by ourselves, without the app, and close."""
        self._refused = True
        self._unset_keepalive_if_required()
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering:  # else it would stand in the middle of the other answer
            self.transport.write(_answer(error))
        self.transport.close()
        self._expect(self.limits.linger_s, self.transport.abort)


def _answer(error: VisionError) -> bytes:
    request_id = uuid.uuid4().hex
    logger.info("refused: %s (request_id %s)", error.code, request_id)
    body = orjson.dumps(error.problem(request_id))
    headers: dict[str, Any] = {
        "content-type": "application/problem+json",
        "content-length": len(body),
        "x-request-id": request_id,
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "connection": "close",
    }
    if error.retry_after is not None:
        headers["retry-after"] = error.retry_after
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body


def allow_open_files(wanted: int = 65_536) -> None:
    """Raise the soft limit on open files as far as the hard one lets: 1,024, usual outside containers, is too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform == "linux" and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
