"""Who may call: keys, the rate that stands on each answer, wrong keys counted by sender. Over the app's own routes."""

import re
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from limits import parse
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from gateway_service.auth import Gate
from visionstack.inflight import Capacity
from visionstack.routes import limited_route
from visionstack.schemas import ServiceStatus
from visionstack.web import create_base_app

KEYS = ("the-first-key", "the-second-key")


def client_of(gate: Gate, address: str = "198.51.100.7") -> TestClient:
    app = create_base_app(
        title="t",
        description="",
        lifespan=None,  # type: ignore[arg-type]
        readiness=lambda: ServiceStatus(status="ok"),
        registry=CollectorRegistry(),
    )
    capacity = Capacity(max_requests=10, max_bytes=1000)
    route = limited_route(capacity, timeout_s=30, max_body_bytes=1000, receive_timeout_s=5, admit=gate.admit)
    router = APIRouter(route_class=route)

    @router.get("/a/{n}")
    async def answer(n: int) -> int:
        return n

    app.include_router(router)
    return TestClient(_From(app, address))


class _From:
    """The app as a client of this address reaches it."""

    def __init__(self, app: FastAPI, address: str) -> None:
        self._app, self._address = app, address

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["client"] = (self._address, 1)
        await self._app(scope, receive, send)


def gate(key_rate: str | None = None, failed: str | None = None) -> Gate:
    return Gate(KEYS, key_rate=parse(key_rate) if key_rate else None, failed_key_rate=parse(failed) if failed else None)


def test_what_is_left_of_the_rate_stands_on_every_answer_errors_too() -> None:
    client = client_of(gate("3/hour"))
    left = []
    for path, status in (("/a/1", 200), ("/a/x", 422), ("/a/2", 200), ("/a/3", 429), ("/a/4", 429)):
        response = client.get(path, headers={"X-API-Key": KEYS[0]})
        assert response.status_code == status
        assert response.headers["ratelimit-policy"] == '"key";q=3;w=3600'
        match = re.fullmatch(r'"key";r=(\d+);t=(\d+)', response.headers["ratelimit"])
        assert match
        assert int(match[2]) <= 3600
        left.append(int(match[1]))
    assert left == [2, 1, 0, 0, 0]
    assert int(response.headers["retry-after"]) >= 1

    other = client.get("/a/1", headers={"X-API-Key": KEYS[1]})  # each key has its own
    assert (other.status_code, other.headers["ratelimit"][:9]) == (200, '"key";r=2')


def test_without_a_rate_no_header_speaks_of_one() -> None:
    response = client_of(gate()).get("/a/1", headers={"X-API-Key": KEYS[0]})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("ratelimit")]


def test_somebody_without_a_key_learns_nothing_of_rates() -> None:
    response = client_of(gate("3/hour", "2/hour")).get("/a/1")
    assert response.status_code == 401
    assert not [name for name in response.headers if name.startswith("ratelimit")]


@pytest.mark.parametrize(
    ("addresses", "statuses"),
    [
        (["198.51.100.7"] * 3, [401, 401, 429]),
        (["198.51.100.7", "198.51.100.8", "198.51.100.9"], [401, 401, 401]),
        (["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:2:1:2:3:4"], [401, 401, 429]),
        (["2001:db8:1:2::1", "2001:db8:1:3::1", "2001:db8:1:4::1"], [401, 401, 401]),
        (["a-socket"] * 3, [401, 401, 429]),
    ],
)
def test_wrong_keys_are_counted_by_sender(addresses: list[str], statuses: list[int]) -> None:
    shared = gate(failed="2/hour")
    clients = [client_of(shared, address) for address in addresses]
    assert [client.get("/a/1", headers={"X-API-Key": "wrong"}).status_code for client in clients] == statuses
    assert clients[-1].get("/a/1", headers={"X-API-Key": KEYS[1]}).status_code == 200  # a right key passes
