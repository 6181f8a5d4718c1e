"""Calls to other services: translation of every failure, retries within reason, replicas, the breaker."""

import asyncio
import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import httpx2
import pytest

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
from visionstack.peers import Breaker, Peer

pytestmark = pytest.mark.anyio

Handler = (
    Callable[[httpx2.Request], httpx2.Response] | Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]
)


@asynccontextmanager
async def peer_of(
    handler: Handler, urls: tuple[str, ...] = ("http://a",), clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Peer]:
    peer = Peer("clip", urls, timeout_s=5, transport=httpx2.MockTransport(handler), clock=clock)
    yield peer
    await peer.aclose()


async def test_a_call_carries_the_request_and_its_time_left() -> None:
    seen: list[httpx2.Request] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(201, json={"x": 1})

    async with peer_of(handle) as peer:
        reply = await peer.call("POST", "/p", params={"q": "a b"}, json={"n": [1.5]}, timeout_s=3)
    assert (reply.status, reply.body) == (201, {"x": 1})
    (request,) = seen
    assert (request.method, request.url.path, request.url.params["q"]) == ("POST", "/p", "a b")
    assert json.loads(request.content) == {"n": [1.5]}
    assert 2000 < int(request.headers["x-timeout-ms"]) <= 3000


@pytest.mark.parametrize("error", [InvalidImage("Mend it."), PointNotFound(), Overloaded(retry_after=4)])
async def test_the_peers_own_errors_come_through(error: VisionError) -> None:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    async with peer_of(lambda _: httpx2.Response(error.status, json=error.problem(), headers=headers)) as peer:
        with pytest.raises(type(error)) as caught:
            await peer.get("/")
    assert (caught.value.detail, caught.value.retry_after) == (error.detail, error.retry_after)


@pytest.mark.parametrize(
    "response",
    [
        httpx2.Response(500, text="Traceback at 10.0.0.3"),
        httpx2.Response(404, json={"code": "not_found", "detail": "no such route"}),
        httpx2.Response(405, json={"code": "method_not_allowed"}),
        httpx2.Response(200, text="<html>"),
    ],
)
async def test_what_is_not_for_our_client_becomes_an_upstream_error(response: httpx2.Response) -> None:
    async with peer_of(lambda _: response) as peer:
        with pytest.raises(UpstreamError) as caught:
            await peer.get("/")
    assert "10.0.0.3" not in caught.value.detail


async def test_a_peer_that_gets_the_request_too_slowly_is_no_fault_of_our_client() -> None:
    async with peer_of(lambda _: httpx2.Response(408, json=ReceiveTimeout().problem())) as peer:
        with pytest.raises(UpstreamTimeout):
            await peer.post("/")


def transport_errors() -> list[type[httpx2.TransportError]]:
    return [
        value for value in vars(httpx2).values() if inspect.isclass(value) and issubclass(value, httpx2.TransportError)
    ]


@pytest.mark.parametrize("error_class", transport_errors())
async def test_every_transport_error_is_translated(error_class: type[httpx2.TransportError]) -> None:
    def handle(_: httpx2.Request) -> httpx2.Response:
        raise error_class("to 10.0.0.3:8000")

    async with peer_of(handle) as peer:
        with pytest.raises(VisionError) as caught:
            await peer.get("/")
    assert caught.value.status in (502, 503, 504)
    assert "10.0.0.3" not in caught.value.detail


async def test_a_slow_peer_is_cut_at_the_deadline() -> None:
    async def handle(_: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async with peer_of(handle) as peer:
        with pytest.raises(UpstreamTimeout):
            await peer.get("/", timeout_s=0.05)


async def test_a_hung_service_opens_the_breaker() -> None:
    async def handle(_: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError

    peer = Peer("clip", ("http://a",), timeout_s=0.05, transport=httpx2.MockTransport(handle))
    for _ in range(5):
        with pytest.raises(UpstreamTimeout):
            await peer.get("/")
    assert peer.breaker == "open"
    await peer.aclose()


async def test_a_call_with_little_time_says_nothing_about_the_service() -> None:
    async def handle(_: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with peer_of(handle) as peer:
        for _ in range(10):
            with pytest.raises(UpstreamTimeout):
                await peer.get("/", timeout_s=0.01)
        assert peer.breaker == "closed"


async def test_a_call_takes_no_longer_than_its_request_has_left() -> None:
    asked: list[int] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(int(request.headers["x-timeout-ms"]))
        await asyncio.Event().wait()
        raise AssertionError

    async with peer_of(handle) as peer:
        with Capacity(max_requests=1, max_bytes=1).admit(timeout_s=0.2):
            with pytest.raises(UpstreamTimeout):
                await peer.get("/")
            with pytest.raises(UpstreamTimeout):  # its time is over: nothing is sent
                await peer.get("/")
    (theirs,) = asked
    assert 0 < theirs <= 180  # they answer before we stop to wait


async def test_a_refused_connection_is_tried_once_more() -> None:
    tries = 0

    def handle(_: httpx2.Request) -> httpx2.Response:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, json=1)

    async with peer_of(handle) as peer:
        assert await peer.call("POST", "/", idempotent=False) == peers.Reply(200, 1)
    assert tries == 2


@pytest.mark.parametrize(("idempotent", "tries_wanted"), [(True, 2), (False, 1)])
async def test_a_call_that_broke_off_is_repeated_only_if_idempotent(idempotent: bool, tries_wanted: int) -> None:
    tries = 0

    def handle(_: httpx2.Request) -> httpx2.Response:
        nonlocal tries
        tries += 1
        raise httpx2.RemoteProtocolError("closed")

    async with peer_of(handle) as peer:
        with pytest.raises(UpstreamError):
            await peer.call("POST", "/", idempotent=idempotent)
    assert tries == tries_wanted


async def test_retries_have_a_budget() -> None:
    tries = 0

    def handle(_: httpx2.Request) -> httpx2.Response:
        nonlocal tries
        tries += 1
        if tries % 2:
            raise httpx2.RemoteProtocolError("closed")
        return httpx2.Response(200, json=1)

    async with peer_of(handle) as peer:
        results = await asyncio.gather(*(peer.get("/") for _ in range(40)), return_exceptions=True)
    failed = sum(isinstance(result, UpstreamError) for result in results)
    assert 40 < tries < 60
    assert failed > 0


async def test_a_dead_replica_costs_nothing_once_the_breaker_knows() -> None:
    asked: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.host)
        if request.url.host == "dead":
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, json=1)

    async with peer_of(handle, ("http://dead", "http://good")) as peer:
        for _ in range(60):
            await peer.get("/")
        asked.clear()
        for _ in range(20):
            await peer.get("/")
        assert peer.breaker == "closed"
    assert asked == ["good"] * 20


async def test_requests_go_to_the_least_busy_replica() -> None:
    gate, all_asked = asyncio.Event(), asyncio.Event()
    asked: list[str] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.host)
        if len(asked) == 9:
            all_asked.set()
        await gate.wait()
        return httpx2.Response(200, json=1)

    async with peer_of(handle, ("http://a", "http://b", "http://c")) as peer:
        calls = [asyncio.create_task(peer.get("/")) for _ in range(9)]
        await all_asked.wait()
        gate.set()
        await asyncio.gather(*calls)
    assert sorted(asked) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


async def test_an_overloaded_replica_hands_over_to_another() -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "full":
            return httpx2.Response(503, json=Overloaded().problem())
        return httpx2.Response(200, json=1)

    async with peer_of(handle, ("http://full", "http://free")) as peer:
        assert [await peer.get("/") for _ in range(8)] == [1] * 8


async def test_when_all_breakers_are_open_calls_end_at_once_and_one_trial_closes_them() -> None:
    now = 1000.0
    alive = False
    asked = 0

    def handle(_: httpx2.Request) -> httpx2.Response:
        nonlocal asked
        asked += 1
        if not alive:
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, json=1)

    async with peer_of(handle, clock=lambda: now) as peer:
        while peer.breaker == "closed":
            with pytest.raises(ServiceUnavailable):
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
    async def handle(_: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async with peer_of(handle) as peer:
        for _ in range(20):
            call = asyncio.create_task(peer.get("/"))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert peer.breaker == "closed"


async def test_status_never_raises() -> None:
    def refuse(_: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    for handler, wanted in (
        (lambda _: httpx2.Response(200, json={"status": "ok", "model": "m"}), "ok"),
        (lambda _: httpx2.Response(503, json={"status": "loading"}), "loading"),
        (lambda _: httpx2.Response(200, text="<html>"), "unavailable"),
        (refuse, "unavailable"),
    ):
        async with peer_of(handler) as peer:
            assert (await peer.status()).status == wanted


async def test_a_name_with_several_addresses_is_several_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def lookup(host: str, port: int, **_: object) -> list[object]:
        return [(10, 1, 6, "", ("::1", port)), *[(2, 1, 6, "", (f"127.0.0.{n}", port)) for n in (2, 3)]]

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    assert await peers._addresses_of("http://clip:8000") == ["http://127.0.0.2:8000", "http://127.0.0.3:8000"]
