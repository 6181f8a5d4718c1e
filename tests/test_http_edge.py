"""What a connection may cost, against a real server over raw sockets: slow, huge, broken and deaf clients."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from visionstack.http_edge import EdgeLimits, edge_protocol

pytestmark = pytest.mark.anyio

# Short times; what must not end sooner is given minutes.
QUICK_S = 0.3
NEVER_S = 600.0
PATIENCE_S = 20.0

_BIG = b"x" * 4_000_000


class App:
    """Answers at once, without reading a body; `/echo` reads it first, `/big` says more than any buffer holds."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        self.seen.append(scope["path"])
        body = b"ok"
        if scope["path"] == "/echo":
            body = b""
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/big":
            for _ in range(10):
                await send({"type": "http.response.body", "body": _BIG, "more_body": True})
        await send({"type": "http.response.body", "body": body})


class Server(uvicorn.Server):
    app: App

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.servers[0].sockets[0].getsockname()
        return host, port


@asynccontextmanager
async def serving(keep_alive_s: int = 60, **limits: Any) -> AsyncIterator[Server]:
    app = App()
    patient = {"head_s": NEVER_S, "linger_s": NEVER_S, "stalled_s": NEVER_S}
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=edge_protocol(EdgeLimits(**{**patient, **limits})),
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    server.app = app
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = server.force_exit = True
        await running


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, text: str | bytes) -> None:
        self.writer.write(text.encode() if isinstance(text, str) else text)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(PATIENCE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
            if "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:  # chunked, of a single chunk
                size = int(await self.reader.readline(), 16)
                body = (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(5)
        return int(lines[0].split()[1]), headers, body

    async def problem(self, status: int, code: str) -> dict[str, str]:
        """The answer's headers, once it is that problem and the connection has ended."""
        got, headers, body = await self.answer()
        problem = json.loads(body)
        assert (got, problem["status"], problem["code"]) == (status, status, code)
        assert headers["content-type"] == "application/problem+json"
        assert headers["x-request-id"] == problem["request_id"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
        await self.is_ended()
        return headers

    async def is_ended(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):  # cut off is an end too
                assert await self.reader.read() == b""


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


GET = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


# --- slow ------------------------------------------------------------------------------------------------------------


async def test_a_silent_connection_ends() -> None:
    async with serving(head_s=QUICK_S) as server, connected(server) as client:
        await client.is_ended()
        await until(lambda: not server.server_state.connections)


@pytest.mark.parametrize("after_a_request", [False, True])
async def test_a_head_that_drips_ends_however_lively_it_is(after_a_request: bool) -> None:
    async with serving(head_s=QUICK_S) as server, connected(server) as client:
        if after_a_request:
            await client.say(GET)
            assert (await client.answer())[0] == 200
        await client.say("GET /b HTTP/1.1\r\nHost: x\r\nX: ")

        async def drip() -> None:
            while True:
                await client.say("a")
                await asyncio.sleep(QUICK_S / 20)

        dripping = asyncio.create_task(drip())
        await client.problem(408, "receive_timeout")
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        assert server.app.seen == (["/a"] if after_a_request else [])


async def test_a_body_that_nobody_reads_ends_soon_after_the_answer() -> None:
    async with serving(linger_s=QUICK_S) as server, connected(server) as client:
        await client.say("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert (await client.answer())[0] == 200

        async def drip() -> None:
            while True:
                await client.say("a")
                await asyncio.sleep(QUICK_S / 20)

        dripping = asyncio.create_task(drip())
        await client.is_ended()
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def test_a_body_that_ends_in_time_leaves_the_connection_usable() -> None:
    async with serving() as server, connected(server) as client:
        for _ in range(2):
            await client.say("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
            assert (await client.answer())[0] == 200
            await client.say("abc")
        await client.say(GET)
        assert (await client.answer())[0] == 200


async def test_an_idle_connection_ends_and_not_before_its_time() -> None:
    async with serving(keep_alive_s=1, head_s=QUICK_S) as server, connected(server) as client:
        started = asyncio.get_running_loop().time()
        await client.say(GET)
        await client.answer()
        await client.is_ended()
        assert asyncio.get_running_loop().time() - started > 0.9


async def test_a_connection_whose_body_came_after_the_answer_ends_when_it_is_idle() -> None:
    async with serving(keep_alive_s=1) as server, connected(server) as client:
        await client.say("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        await client.answer()
        await client.say("abc")
        await client.is_ended()


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async with serving(stalled_s=QUICK_S) as server:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, server.address)
            await asyncio.get_running_loop().sock_sendall(deaf, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: server.app.seen == ["/big"])
            await until(lambda: not server.server_state.connections)


# --- large -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["X: " + "a" * 70_000], id="one long header"),
        pytest.param([f"X-{n}: {'a' * 1000}" for n in range(70)], id="long together"),
        pytest.param([f"X-{n}: a" for n in range(101)], id="many"),
        pytest.param(["a" * 70_000 + ": x"], id="a long name"),
    ],
)
async def test_more_headers_than_are_read_are_refused(lines: list[str]) -> None:
    async with serving() as server, connected(server) as client:
        await client.say("\r\n".join(["GET /a HTTP/1.1", "Host: x", *lines]) + "\r\n\r\n")
        await client.problem(431, "headers_too_large")
        assert server.app.seen == []


@pytest.mark.parametrize("start", ["GET /a HTTP/1.1\r\nX: ", "GET /"])
async def test_a_head_without_end_is_refused_while_it_comes(start: str) -> None:
    async with serving() as server, connected(server) as client:
        await client.say(start)
        sent = 0
        while not client.reader.at_eof() and sent < 10_000_000:
            try:
                await client.say(b"a" * 16_384)
            except ConnectionError:
                break
            sent += 16_384
            await asyncio.sleep(0.001)
            if client.reader._buffer:  # type: ignore[attr-defined]
                break
        assert sent < 1_000_000
        await client.problem(431, "headers_too_large")


async def test_a_hundred_headers_of_sixty_kilobytes_pass() -> None:
    async with serving() as server, connected(server) as client:
        lines = [f"X-{n}: {'a' * 600}" for n in range(99)]
        await client.say("\r\n".join(["GET /a HTTP/1.1", "Host: x", *lines]) + "\r\n\r\n")
        assert (await client.answer())[0] == 200


async def test_connections_beyond_the_limit_are_told_so_and_those_within_it_served() -> None:
    async with serving(connections=3) as server:
        async with connected(server) as one, connected(server) as two, connected(server) as three:
            await until(lambda: len(server.server_state.connections) == 3)
            async with connected(server) as fourth:
                assert (await fourth.problem(503, "overloaded"))["retry-after"] == "1"
            for client in (one, two, three):
                await client.say(GET)
                assert (await client.answer())[0] == 200
        await until(lambda: not server.server_state.connections)
        async with connected(server) as again:
            await again.say(GET)
            assert (await again.answer())[0] == 200


# --- broken ----------------------------------------------------------------------------------------------------------

BROKEN = {
    "no http": "hello\r\n\r\n",
    "http/0.9": "GET /\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "http/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "length and chunks": (
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two lengths": "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a negative length": "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length beyond 64 bits": "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "a blank before the colon": "GET /a HTTP/1.1\r\nHost : x\r\n\r\n",
    "a folded header": "GET /a HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "a nul": b"GET /a HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
    "a bare line feed": "GET /a HTTP/1.1\nHost: x\n\n",
    "no host": "GET /a HTTP/1.1\r\n\r\n",
    "two hosts": "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no path": "GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": "CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown version": "GET /a HTTP/9.9\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in BROKEN.items()])
async def test_broken_http_is_a_problem_and_reaches_no_app(text: str | bytes) -> None:
    async with serving() as server, connected(server) as client:
        await client.say(text)
        await client.problem(400, "malformed_request")
        assert server.app.seen == []


async def test_broken_chunks_end_the_request_in_whose_midst_they_come() -> None:
    async with serving() as server, connected(server) as client:
        await client.say("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        await client.is_ended()
        await until(lambda: not server.server_state.connections)


async def test_a_websocket_is_not_spoken() -> None:
    async with serving() as server, connected(server) as client:
        upgrade = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: QQ==\r\n"
        )
        await client.say(f"GET /a HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n")
        assert (await client.answer())[0] == 200
        assert server.app.seen == ["/a"]


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as server, connected(server) as client:
        await client.say("".join(f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{n}" for n in range(5)))
        assert [(await client.answer())[2] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_resets_in_any_state_leave_nothing() -> None:
    async with serving() as server:
        for text in ("", "GET", GET, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"):
            with socket.socket() as rude:
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                rude.setblocking(False)
                await asyncio.get_running_loop().sock_connect(rude, server.address)
                await asyncio.get_running_loop().sock_sendall(rude, text.encode())
        await until(lambda: not server.server_state.connections)
        await until(lambda: not server.server_state.tasks)
