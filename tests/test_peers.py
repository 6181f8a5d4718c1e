"""Calls to other services: translation of every failure, retries within reason, replicas, the breaker."""

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import BodyPartReader, web

from peer_server import Handler, break_off, nobody, served
from visionstack import peers
from visionstack.errors import (
    InvalidImage,
    Overloaded,
    PointNotFound,
    ReceiveTimeout,
    ServiceUnavailable,
    UpstreamError,
    UpstreamTimeout,
    VisionError,
)
from visionstack.inflight import Capacity
from visionstack.peers import Breaker, File, Peer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def peer_of(
    *handlers: Handler | None, timeout_s: float = 5, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Peer]:
    """A peer with a replica for each handler, and for each None one where nobody listens."""
    async with AsyncExitStack() as stack:
        urls = [
            stack.enter_context(nobody()) if handler is None else await stack.enter_async_context(served(handler))
            for handler in handlers
        ]
        peer = Peer("clip", urls, timeout_s=timeout_s, clock=clock)
        stack.push_async_callback(peer.aclose)
        yield peer


def answering(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    async def handle(_: web.BaseRequest) -> web.Response:
        return web.json_response(value, status=status, headers=headers)

    return handle


async def hang(_: web.BaseRequest) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_call_carries_the_request_and_its_time_left() -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        assert (request.method, request.path, request.query["q"]) == ("POST", "/p", "a b&ä%41")
        assert await request.json() == {"n": [1.5]}
        return web.json_response({"left": int(request.headers["X-Timeout-Ms"])}, status=201)

    async with peer_of(handle) as peer:
        reply = await peer.call("POST", "/p", params={"q": "a b&ä%41"}, json={"n": [1.5]}, timeout_s=3)
    assert reply.status == 201
    assert 2000 < reply.body["left"] <= 3000


async def test_a_form_arrives_as_it_was_sent() -> None:
    large = bytes(range(256)) * 20_000

    async def handle(request: web.BaseRequest) -> web.Response:
        parts: list[tuple[str | None, str]] = []
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            content = bytearray()
            while chunk := await part.read_chunk():
                content += chunk
            if part.name == "file":
                assert (part.filename, part.headers["Content-Type"]) == ("p.ppm", "image/x-ppm")
                assert content == large
                content.clear()
            parts.append((part.name, content.decode()))
        return web.json_response(parts)

    async with peer_of(handle) as peer:
        form = {"tags": ["a b", "ä\r\n--x"], "file": File("p.ppm", large, "image/x-ppm"), "id": "%41"}
        assert await peer.post("/", form=form) == [
            ["tags", "a b"], ["tags", "ä\r\n--x"], ["file", ""], ["id", "%41"],
        ]  # fmt: skip


async def test_a_refusal_before_the_body_was_read_is_understood() -> None:
    """The server answers at once and reads on, as ours does."""

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.json_response(Overloaded().problem(), status=503, headers={"Retry-After": "4"})

    async with peer_of(handle) as peer:
        for _ in range(5):
            with pytest.raises(Overloaded) as caught:
                await peer.post("/", content=b"x" * 5_000_000, content_type="image/png")
            assert caught.value.retry_after == 4


@pytest.mark.parametrize("error", [InvalidImage("Mend it."), PointNotFound(), Overloaded(retry_after=4)])
async def test_the_peers_own_errors_come_through(error: VisionError) -> None:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    async with peer_of(answering(error.problem(), error.status, headers)) as peer:
        with pytest.raises(type(error)) as caught:
            await peer.get("/")
    assert (caught.value.detail, caught.value.retry_after) == (error.detail, error.retry_after)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, "Traceback at 10.0.0.3"),
        (404, '{"code": "not_found", "detail": "no such route"}'),
        (405, '{"code": "method_not_allowed"}'),
        (200, "<html>"),
    ],
)
async def test_what_is_not_for_our_client_becomes_an_upstream_error(status: int, text: str) -> None:
    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status, text=text)

    async with peer_of(handle) as peer:
        with pytest.raises(UpstreamError) as caught:
            await peer.get("/")
    assert "10.0.0.3" not in caught.value.detail


async def test_a_peer_that_gets_the_request_too_slowly_is_no_fault_of_our_client() -> None:
    async with peer_of(answering(ReceiveTimeout().problem(), 408)) as peer:
        with pytest.raises(UpstreamTimeout):
            await peer.post("/")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1,2",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"[]"),  # nothing is unpacked
        b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.3/\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_whatever_is_no_answer_is_an_upstream_error(sent: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        peer = Peer("clip", [f"http://{host}:{port}"], timeout_s=5)
        with pytest.raises(UpstreamError) as caught:
            await peer.get("/")
        await peer.aclose()
    assert "127.0.0.1" not in caught.value.detail


async def test_a_service_that_cannot_be_reached_is_unavailable() -> None:
    async with peer_of(None) as peer:
        with pytest.raises(ServiceUnavailable) as caught:
            await peer.get("/")
    assert caught.value.detail == "The clip service is not reachable; try again as Retry-After says."


async def test_a_service_without_an_address_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    # not of a real name server, whose answer may take its time
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    peer = Peer("clip", ["http://clip:8000"], timeout_s=5)
    with pytest.raises(ServiceUnavailable) as caught:
        await peer.get("/")
    await peer.aclose()
    assert caught.value.detail == "The clip service is not reachable; try again as Retry-After says."


async def test_a_slow_peer_is_cut_at_the_deadline() -> None:
    async with peer_of(hang) as peer:
        with pytest.raises(UpstreamTimeout):
            await peer.get("/", timeout_s=0.05)


async def test_a_hung_service_opens_the_breaker() -> None:
    async with peer_of(hang, timeout_s=0.05) as peer:
        for _ in range(5):
            with pytest.raises(UpstreamTimeout):
                await peer.get("/")
        assert peer.breaker == "open"


async def test_a_call_with_little_time_says_nothing_about_the_service() -> None:
    async with peer_of(hang) as peer:
        for _ in range(10):
            with pytest.raises(UpstreamTimeout):
                await peer.get("/", timeout_s=0.01)
        assert peer.breaker == "closed"


async def test_a_call_takes_no_longer_than_its_request_has_left() -> None:
    asked: list[int] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append(int(request.headers["X-Timeout-Ms"]))
        return await hang(request)

    async with peer_of(handle) as peer:
        with Capacity(max_requests=1, max_bytes=1).admit(timeout_s=0.2):
            with pytest.raises(UpstreamTimeout):
                await peer.get("/")
            with pytest.raises(UpstreamTimeout):  # its time is over: nothing is sent
                await peer.get("/")
    (theirs,) = asked
    assert 0 < theirs <= 180  # they answer before we stop to wait


async def test_a_refused_connection_is_tried_again_where_the_service_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with nobody() as before:
        async with served(answering(1)) as now:
            found = iter([[before], [now]])

            async def addresses_of(_: str) -> list[str]:
                return next(found)

            monkeypatch.setattr(peers, "_addresses_of", addresses_of)
            peer = Peer("clip", ["http://clip:8000"], timeout_s=5)
            assert await peer.call("POST", "/", idempotent=False) == peers.Reply(200, 1)
            await peer.aclose()


@pytest.mark.parametrize(("idempotent", "tries_wanted"), [(True, 2), (False, 1)])
async def test_a_call_that_broke_off_is_repeated_only_if_idempotent(idempotent: bool, tries_wanted: int) -> None:
    tries = 0

    async def handle(request: web.BaseRequest) -> web.Response:
        nonlocal tries
        tries += 1
        return break_off(request)

    async with peer_of(handle) as peer:
        with pytest.raises(UpstreamError):
            await peer.call("POST", "/", idempotent=idempotent)
    assert tries == tries_wanted


async def test_retries_have_a_budget() -> None:
    tries = failed = 0

    async def handle(request: web.BaseRequest) -> web.Response:
        nonlocal tries
        tries += 1
        return break_off(request) if tries % 2 else web.json_response(1)

    async with peer_of(handle) as peer:
        for _ in range(40):
            try:
                await peer.post("/")
            except UpstreamError:
                failed += 1
    assert 40 < tries < 60
    assert failed > 0


def noting(name: str, asked: list[str], then: Handler) -> Handler:
    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        asked.append(name)
        return then(request)

    return handle


async def test_a_dead_replica_costs_nothing_once_the_breaker_knows() -> None:
    asked: list[str] = []

    async def die(request: web.BaseRequest) -> web.Response:
        return break_off(request)

    async with peer_of(noting("dead", asked, die), noting("good", asked, answering(1))) as peer:
        for _ in range(60):
            await peer.get("/")
        assert "dead" in asked
        asked.clear()
        for _ in range(20):
            await peer.get("/")
        assert peer.breaker == "closed"
    assert asked == ["good"] * 20


async def test_requests_go_to_the_least_busy_replica() -> None:
    gate, all_asked = asyncio.Event(), asyncio.Event()
    asked: list[str] = []

    async def wait(_: web.BaseRequest) -> web.Response:
        if len(asked) == 9:
            all_asked.set()
        await gate.wait()
        return web.json_response(1)

    async with peer_of(*(noting(name, asked, wait) for name in "abc")) as peer:
        calls = [asyncio.create_task(peer.get("/")) for _ in range(9)]
        await all_asked.wait()
        gate.set()
        await asyncio.gather(*calls)
    assert sorted(asked) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


async def test_an_overloaded_replica_hands_over_to_another() -> None:
    async with peer_of(answering(Overloaded().problem(), 503), answering(1)) as peer:
        assert [await peer.get("/") for _ in range(8)] == [1] * 8


async def test_when_all_breakers_are_open_calls_end_at_once_and_one_trial_closes_them() -> None:
    now = 1000.0
    alive = False
    asked = 0

    async def handle(request: web.BaseRequest) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response(1) if alive else break_off(request)

    async with peer_of(handle, clock=lambda: now) as peer:
        while peer.breaker == "closed":
            with pytest.raises(VisionError):
                await peer.get("/")
        assert state_of(peer) == "open"
        before = asked
        with pytest.raises(ServiceUnavailable) as caught:
            await peer.get("/")
        assert asked == before
        assert caught.value.retry_after is not None
        now += 60
        assert state_of(peer) == "half-open"
        alive = True
        assert await peer.get("/") == 1
        assert state_of(peer) == "closed"


def state_of(of: Peer | Breaker) -> str:
    """Read anew each time; the type checker would take it for the value it last saw."""
    return of.breaker if isinstance(of, Peer) else of.state


def test_a_half_open_breaker_lets_one_trial_through_at_a_time() -> None:
    breaker = Breaker(failures_to_open=1, open_s=0.0)
    breaker.begin()
    breaker.failed()
    assert state_of(breaker) == "half-open"
    breaker.begin()
    assert state_of(breaker) == "open"
    breaker.abandoned()
    assert state_of(breaker) == "half-open"


async def test_a_caller_that_leaves_does_not_count_against_the_replica() -> None:
    asked = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.set()
        return await hang(request)

    async with peer_of(handle) as peer:
        for _ in range(20):
            call = asyncio.create_task(peer.get("/"))
            await asked.wait()
            asked.clear()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert peer.breaker == "closed"


async def test_status_never_raises() -> None:
    for handler, wanted in (
        (answering({"status": "ok", "model": "m"}), "ok"),
        (answering({"status": "loading"}, 503), "loading"),
        (answering("<html>"), "unavailable"),
        (None, "unavailable"),
    ):
        async with peer_of(handler) as peer:
            assert (await peer.status()).status == wanted


async def test_a_name_with_several_addresses_is_several_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def lookup(host: str, port: int, **_: object) -> list[object]:
        return [(10, 1, 6, "", ("::1", port)), *[(2, 1, 6, "", (f"127.0.0.{n}", port)) for n in (2, 3)]]

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    assert await peers._addresses_of("http://clip:8000") == ["http://127.0.0.2:8000", "http://127.0.0.3:8000"]
