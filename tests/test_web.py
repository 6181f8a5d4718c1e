"""The scaffolding: one error shape for everything, request ids, probes."""

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Form
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

from visionstack.errors import Overloaded
from visionstack.schemas import ServiceStatus
from visionstack.web import create_base_app

pytestmark = pytest.mark.anyio


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n: int = Field(ge=1)


def make_app(status: ServiceStatus) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = create_base_app(
        title="t", description="", lifespan=lifespan, readiness=lambda: status, registry=CollectorRegistry()
    )

    router = APIRouter()

    @router.post("/echo")
    async def echo(body: Body) -> int:
        return body.n

    @router.post("/form")
    async def form(n: Annotated[int, Form()]) -> int:
        return n

    @router.get("/boom")
    async def boom() -> None:
        raise RuntimeError("the secret is tangerine")

    @router.get("/busy")
    async def busy() -> None:
        raise Overloaded(retry_after=3)

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
    assert "tangerine" not in response.text
    assert "unhandled error" in caplog.text


async def test_retry_after_is_a_header(client: httpx2.AsyncClient) -> None:
    response = await client.get("/busy")
    assert_problem(response, 503, "overloaded")
    assert response.headers["retry-after"] == "3"


async def test_security_headers_stand_on_every_answer_and_those_of_strangers_on_none(
    client: httpx2.AsyncClient,
) -> None:
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for method, path in (("GET", "/livez"), ("GET", "/nowhere"), ("GET", "/boom"), ("PUT", "/echo"), ("POST", "/echo")):
        response = await client.request(method, path, headers=origin)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert not {"server", "x-powered-by"} & set(response.headers)
        assert not [name for name in response.headers if name.startswith("access-control")]
    preflight = await client.options("/echo", headers=origin)
    assert_problem(preflight, 405, "method_not_allowed")
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    page = await client.get("/docs")
    assert "script-src 'unsafe-inline' https://cdn.jsdelivr.net" in page.headers["content-security-policy"]


async def test_a_sane_request_id_is_kept_and_another_replaced(client: httpx2.AsyncClient) -> None:
    kept = await client.get("/livez", headers={"X-Request-ID": "order-7.a_B"})
    assert kept.headers.get_list("x-request-id") == ["order-7.a_B"]
    for insane in ("a b", "x" * 65, "ü", "a\tb"):
        response = await client.get("/livez", headers=[(b"X-Request-ID", insane.encode())])
        assert len(response.headers["x-request-id"]) == 32


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


_A_LINE_EACH = """
import logging
import subprocess
import sys
from visionstack.web import configure_logging

configure_logging("clip", log_format="json", log_level="debug")
for name in ("httpx2", "httpcore2.connection", "httpx", "httpcore.http11", "visionstack.hub"):
    logging.getLogger(name).info("GET http://hub/weights?signature=secret")
"""


def test_what_http_clients_say_of_their_calls_is_in_no_log() -> None:
    command = [sys.executable, "-c", _A_LINE_EACH]
    (line,) = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    assert '"visionstack.hub"' in line
