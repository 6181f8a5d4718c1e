"""The route class: who is let in, how large and slow a body may be, and that work ends with its time or its client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Form, Request, UploadFile
from prometheus_client import CollectorRegistry

from problems import assert_problem
from visionstack.errors import Unauthorized
from visionstack.inflight import Capacity, hold, holding_apart, time_left
from visionstack.routes import TIMEOUT_HEADER, limited_route
from visionstack.schemas import ServiceStatus
from visionstack.web import create_base_app

pytestmark = pytest.mark.anyio


class Service:
    """An app whose `/work` never ends by itself, and what became of the work in it."""

    def __init__(
        self,
        *,
        max_requests: int = 8,
        max_bytes: int = 2000,
        timeout_s: float = 30.0,
        receive_timeout_s: float = 5.0,
    ) -> None:
        self.capacity = Capacity(max_requests=max_requests, max_bytes=max_bytes)
        self.started = 0
        self.cancelled = 0
        self.app = create_base_app(
            title="t",
            description="",
            lifespan=nothing_to_keep,
            readiness=lambda: ServiceStatus(status="ok"),
            registry=CollectorRegistry(),
        )
        route = limited_route(
            self.capacity,
            timeout_s=timeout_s,
            max_body_bytes=1000,
            receive_timeout_s=receive_timeout_s,
            admit=refuse_marked,
        )
        router = APIRouter(route_class=route)

        @router.post("/raw")
        async def raw(request: Request) -> int:
            return len(await request.body())

        @router.post("/pieces")
        async def pieces(request: Request) -> list[int]:
            return [len(piece) async for piece in request.stream()]

        @router.post("/json")
        async def json(body: dict[str, Any]) -> int:
            return len(body)

        @router.post("/form")
        async def form(n: Annotated[int, Form()]) -> int:
            return n

        @router.post("/file")
        async def file(file: UploadFile) -> int:
            return len(await file.read())

        @router.post("/nothing")
        async def nothing() -> float:
            return time_left(100.0)

        @router.get("/time-left")
        async def left() -> float:
            return time_left(20.0)

        @router.post("/work")
        async def work(request: Request) -> None:
            await request.body()
            await self._endless()

        @router.get("/work")
        async def work_without_body() -> None:
            await asyncio.gather(self._endless(), self._endless())

        self.app.include_router(router)

    async def _endless(self) -> None:
        self.started += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx2.AsyncClient]:
        transport = httpx2.ASGITransport(self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
            yield client


@asynccontextmanager
async def nothing_to_keep(_: FastAPI) -> AsyncIterator[None]:
    yield


async def refuse_marked(request: Request) -> None:
    if request.headers.get("x-no"):
        raise Unauthorized()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it is no event that the code under test has
            await asyncio.sleep(0.001)


class Connection:
    """One request on the level of ASGI, whose client sends and leaves when told to."""

    def __init__(self, service: Service, method: str, path: str, headers: dict[str, str]) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "query_string": b"",
            "http_version": "1.1",
        }
        self.done = asyncio.create_task(self._run(service, scope))

    async def _run(self, service: Service, scope: dict[str, Any]) -> None:
        await service.app(scope, self.messages.get, self._send)

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def body(self, data: bytes, more: bool = False) -> None:
        self.messages.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


# --- bodies -----------------------------------------------------------------------------------------------------------


async def test_a_body_over_the_limit_is_refused_declared_or_not() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 500

    async with Service().client() as client:
        for path in ("/raw", "/json"):
            declared = await client.post(path, content=b"x" * 1001, headers={"content-type": "application/json"})
            assert "1000 bytes" in assert_problem(declared, 413, "body_too_large")["detail"]
            streamed = await client.post(path, content=chunks(), headers={"content-type": "application/json"})
            assert_problem(streamed, 413, "body_too_large")
        assert_problem(await client.post("/form", data={"n": "1" * 2000}), 413, "body_too_large")
        assert (await client.post("/raw", content=b"x" * 1000)).json() == 1000


async def test_a_body_that_comes_in_pieces_is_handed_on_whole() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for size in (1, 0, 400, 99):
            yield b"x" * size

    async with Service().client() as client:
        # the end of what is streamed is a piece of its own, without anything in it
        assert (await client.post("/pieces", content=pieces())).json() == [500, 0]
        assert (await client.post("/pieces", content=b"x" * 700)).json() == [700, 0]


async def test_no_body_is_no_body_however_it_is_read() -> None:
    async with Service().client() as client:
        assert (await client.post("/raw")).json() == 0
        assert (await client.post("/nothing", content=b"unread")).status_code == 200
        assert_problem(await client.post("/form"), 422, "invalid_request")
        assert_problem(await client.post("/json"), 422, "invalid_request")
        assert (await client.get("/time-left")).json() == 20.0


async def test_admission_comes_before_the_body() -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 100

    full = Service(max_requests=0)
    async with full.client() as client:
        assert_problem(await client.post("/raw", content=chunks(), headers={"x-no": "1"}), 401, "unauthorized")
        assert_problem(await client.post("/raw", content=chunks()), 503, "overloaded")
        assert (await client.get("/livez")).status_code == 200
    assert read == 0


async def test_a_body_that_comes_too_slowly_is_a_408() -> None:
    connection = Connection(Service(receive_timeout_s=0.05), "POST", "/raw", {"transfer-encoding": "chunked"})
    connection.body(b"x", more=True)
    await connection.done
    assert connection.sent[0]["status"] == 408
    assert b"receive_timeout" in connection.sent[1]["body"]


# --- capacity ---------------------------------------------------------------------------------------------------------


async def test_beyond_its_capacity_requests_are_refused_and_room_comes_back() -> None:
    service = Service(max_requests=2)
    working = [Connection(service, "GET", "/work", {}) for _ in range(2)]
    await until(lambda: service.started == 4)
    async with service.client() as client:
        refused = await client.post("/raw", content=b"x")
        assert_problem(refused, 503, "overloaded")
        working[0].leave()
        await working[0].done
        assert (await client.post("/raw", content=b"x")).json() == 1
    working[1].leave()
    await working[1].done
    assert (service.capacity.requests, service.capacity.bytes) == (0, 0)


@pytest.mark.parametrize("path", ["/work", "/file"])
async def test_what_all_bodies_hold_together_is_bounded(path: str) -> None:
    service = Service(max_bytes=1500)
    held = [Connection(service, "POST", "/work", {"content-length": "700"}) for _ in range(2)]
    for connection in held:
        connection.body(b"x" * 700)
    await until(lambda: service.started == 2)
    assert service.capacity.bytes == 1400

    form = {"content-type": "multipart/form-data; boundary=b"}
    declared = Connection(service, "POST", path, {"content-length": "101"} | form)
    await declared.done  # not a byte of it came
    assert declared.sent[0]["status"] == 503
    chunked = Connection(service, "POST", "/work", {"transfer-encoding": "chunked"})
    chunked.body(b"x" * 100, more=True)
    chunked.body(b"x")
    await chunked.done
    assert chunked.sent[0]["status"] == 503
    for connection in held:
        connection.leave()
        await connection.done
    assert service.capacity.bytes == 0


async def test_parts_of_a_request_give_back_what_they_held() -> None:
    capacity = Capacity(max_requests=1, max_bytes=10)
    with capacity.admit(timeout_s=1):
        hold(4)

        async def part() -> None:
            with holding_apart():
                hold(6)
                assert capacity.bytes == 10

        for _ in range(3):
            await asyncio.create_task(part())
        assert capacity.bytes == 4
    assert capacity.bytes == 0


# --- the end of the work ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"), [("1500", 1.5), ("99999", 20.0), ("-1", 20.0), ("x", 20.0), ("9" * 400, 20.0)]
)
async def test_the_callers_time_left_is_honoured(header: str, seconds: float) -> None:
    async with Service().client() as client:
        left = (await client.get("/time-left", headers={TIMEOUT_HEADER: header})).json()
    assert seconds - 1 < left <= seconds


async def test_work_ends_with_its_time() -> None:
    service = Service(timeout_s=0.2)
    async with service.client() as client:
        assert_problem(await client.post("/work", content=b"x"), 504, "upstream_timeout")
        assert_problem(await client.get("/work"), 504, "upstream_timeout")
        assert_problem(await client.get("/work", headers={TIMEOUT_HEADER: "0"}), 504, "upstream_timeout")
    assert (service.started, service.cancelled) == (3, 3)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_work_for_a_client_that_left_is_cancelled(method: str) -> None:
    service = Service(timeout_s=600)  # its own time would end it, too
    connection = Connection(service, method, "/work", {"content-length": "1"} if method == "POST" else {})
    if method == "POST":
        connection.body(b"x")
    await until(lambda: service.started > 0)
    connection.leave()
    await until(connection.done.done)
    assert service.cancelled == service.started
    assert connection.sent[0]["status"] == 499


@pytest.mark.parametrize("path", ["/raw", "/json", "/file"])
async def test_a_client_that_leaves_within_its_body_is_no_error(path: str, caplog: pytest.LogCaptureFixture) -> None:
    content_type = "multipart/form-data; boundary=b" if path == "/file" else "application/json"
    connection = Connection(Service(), "POST", path, {"content-length": "100", "content-type": content_type})
    connection.body(b"--b" if path == "/file" else b"{", more=True)
    connection.leave()
    await connection.done
    assert connection.sent[0]["status"] == 499
    assert "unhandled" not in caplog.text


async def test_nothing_of_a_request_is_left_when_it_is_answered() -> None:
    async with Service().client() as client:
        before = len(asyncio.all_tasks())
        for _ in range(5):
            await client.post("/raw", content=b"x")
            await client.get("/time-left")
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before
