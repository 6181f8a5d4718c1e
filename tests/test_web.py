"""The scaffolding: one error shape for everything, request ids, body limits, probes."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Form, Request
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

from visionstack.errors import Overloaded, Unauthorized
from visionstack.schemas import ServiceStatus
from visionstack.web import TIMEOUT_HEADER, create_base_app, limited_route, remaining_timeout

pytestmark = pytest.mark.anyio


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n: int = Field(ge=1)


def make_app(status: ServiceStatus, *, receive_timeout_s: float = 5.0) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = create_base_app(
        title="t", description="", lifespan=lifespan, readiness=lambda: status, registry=CollectorRegistry()
    )

    async def admit(request: Request) -> None:
        if request.headers.get("x-no"):
            raise Unauthorized()

    router = APIRouter(route_class=limited_route(max_body_bytes=1000, receive_timeout_s=receive_timeout_s, admit=admit))

    @router.post("/echo")
    async def echo(body: Body) -> int:
        return body.n

    @router.post("/form")
    async def form(n: Annotated[int, Form()]) -> int:
        return n

    @router.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @router.get("/boom")
    async def boom() -> None:
        raise RuntimeError("the secret is 42")

    @router.get("/busy")
    async def busy() -> None:
        raise Overloaded(retry_after=3)

    @router.get("/time-left")
    async def time_left(request: Request) -> float:
        return remaining_timeout(request, 30.0)

    app.include_router(router)
    return app


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://t") as client,
    ):
        yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(make_app(ServiceStatus(status="ok", model="m"))) as client:
        yield client


def assert_problem(response: httpx2.Response, status: int, code: str) -> dict[str, object]:
    problem: dict[str, object] = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert set(problem) >= {"type", "title", "detail"}
    return problem


async def test_framework_errors_have_our_shape(client: httpx2.AsyncClient) -> None:
    assert_problem(await client.get("/nowhere"), 404, "not_found")
    wrong_method = await client.get("/echo")
    assert_problem(wrong_method, 405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "POST"
    assert_problem(
        await client.post("/form", content=b"x", headers={"content-type": "multipart/form-data"}),
        422,
        "invalid_request",
    )


@pytest.mark.parametrize(
    ("send", "field", "says"),
    [
        ({"json": {"n": 0}}, "n", "greater than or equal to 1"),
        ({"json": {"n": 1, "m": 2}}, "m", "unknown field"),
        ({"json": {}}, "n", "required"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "body", "not valid JSON"),
        ({"content": b'{"n":1}'}, "body", "Content-Type: application/json"),
        ({"json": [1]}, "body", "JSON object"),
        ({"data": {"n": "1"}}, "body", "Content-Type: application/json"),
    ],
)
async def test_a_422_names_the_field_and_what_to_do(
    client: httpx2.AsyncClient, send: dict[str, object], field: str, says: str
) -> None:
    problem = assert_problem(await client.post("/echo", **send), 422, "invalid_request")  # type: ignore[arg-type]
    errors = problem["errors"]
    assert isinstance(errors, list)
    assert [error["field"] for error in errors] == [field]
    assert says in errors[0]["message"]
    assert field in str(problem["detail"])


async def test_an_unhandled_exception_is_a_500_without_its_text(
    client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = await client.get("/boom")
    assert_problem(response, 500, "internal_error")
    assert "42" not in response.text
    assert "unhandled error" in caplog.text


async def test_retry_after_is_a_header(client: httpx2.AsyncClient) -> None:
    response = await client.get("/busy")
    assert_problem(response, 503, "overloaded")
    assert response.headers["retry-after"] == "3"


async def test_a_sane_request_id_is_kept_and_another_replaced(client: httpx2.AsyncClient) -> None:
    kept = await client.get("/livez", headers={"X-Request-ID": "order-7.a_B"})
    assert kept.headers.get_list("x-request-id") == ["order-7.a_B"]
    for insane in ("a b", "x" * 65, "ü", "a\tb"):
        response = await client.get("/livez", headers=[(b"X-Request-ID", insane.encode())])
        assert len(response.headers["x-request-id"]) == 32


async def test_a_body_over_the_limit_is_refused_declared_or_not(client: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 500

    for path in ("/raw", "/echo"):
        declared = await client.post(path, content=b"x" * 1001, headers={"content-type": "application/json"})
        assert "1000 bytes" in str(assert_problem(declared, 413, "body_too_large")["detail"])
        streamed = await client.post(path, content=chunks(), headers={"content-type": "application/json"})
        assert_problem(streamed, 413, "body_too_large")
    form = await client.post("/form", data={"n": "1" * 2000})
    assert_problem(form, 413, "body_too_large")
    assert (await client.post("/raw", content=b"x" * 1000)).json() == 1000


async def test_admission_comes_before_the_body() -> None:
    async with client_of(make_app(ServiceStatus(status="ok"))) as client:
        read = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(100):
                read += 1
                yield b"x" * 100

        response = await client.post("/raw", content=chunks(), headers={"x-no": "1"})
        assert_problem(response, 401, "unauthorized")
        assert read == 0


async def test_a_body_that_comes_too_slowly_is_a_408() -> None:
    app = make_app(ServiceStatus(status="ok"), receive_timeout_s=0.05)
    sent: list[dict[str, object]] = []
    hold = asyncio.Event()
    messages = [{"type": "http.request", "body": b"x", "more_body": True}]

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        await hold.wait()
        raise AssertionError

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/raw",
        "headers": [],
        "query_string": b"",
        "http_version": "1.1",
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 408
    assert b"receive_timeout" in sent[1]["body"]  # type: ignore[operator]


async def test_probes_and_metrics(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"status": "ok"}
    ready = await client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["model"] == "m"
    await client.post("/echo", json={"n": 1})
    metrics = (await client.get("/metrics")).text
    assert 'vision_http_request_seconds_count{method="POST",route="/echo",status="200"} 1.0' in metrics


async def test_not_ready_is_a_503() -> None:
    async with client_of(make_app(ServiceStatus(status="loading"))) as client:
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["status"] == "loading"
        assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("header", "seconds"), [("1500", 1.5), ("99999", 30.0), ("-1", 30.0), ("x", 30.0), ("9" * 400, 30.0)]
)
async def test_the_callers_time_left_is_honoured(client: httpx2.AsyncClient, header: str, seconds: float) -> None:
    assert (await client.get("/time-left", headers={TIMEOUT_HEADER: header})).json() == seconds
