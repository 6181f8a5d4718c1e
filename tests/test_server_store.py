"""The adapter for a Qdrant server: what it asks for, and what its failures become."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from qdrant_client import models

from qdrant_service.filters import parse_filter
from qdrant_service.server_store import QdrantServerStore
from qdrant_service.store import CollectionConfig
from qdrant_wire import QdrantWire
from store_kit import collection, point
from visionstack.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    Overloaded,
    ServiceUnavailable,
    UpstreamError,
    UpstreamTimeout,
    VisionError,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def wired() -> AsyncIterator[tuple[QdrantServerStore, QdrantWire]]:
    wire = QdrantWire()
    store = QdrantServerStore("http://qdrant:6333", timeout_s=30, transport=wire)
    yield store, wire
    await store.close()


async def test_filtered_keys_get_an_index_on_the_server(wired: tuple[QdrantServerStore, QdrantWire]) -> None:
    store, wire = wired
    name = await collection(store)

    async def search(**filter_metadata: Any) -> dict[str, str]:
        conditions = parse_filter(filter_metadata)
        await store.search(name, [1.0, 0.0, 0.0, 0.0], limit=1, conditions=conditions)
        return wire.indexes[name]

    assert wire.indexes[name] == {"_original_id": "keyword"}
    expected = {"_original_id": "keyword", "word": "keyword", "width": "float", "flag": "bool"}
    assert await search(word="a", width={"gt": 1}, flag=True) == expected
    before = len(wire.requests)
    await search(word="b", width=1, flag=False)
    assert len(wire.requests) == before + 1  # what was asked for once costs nothing more
    expected.pop("width")
    assert await search(width={"gte": "2026-01-31T12:00:00Z"}) == expected
    assert await search(width=1) == expected
    assert len(await search(**{f"k{i}": "x" for i in range(64)})) <= 17 + 64
    await store.delete_collection(name)
    await store.create_collection(CollectionConfig(name, 4, "cosine"))
    assert await search(word="a") == {"_original_id": "keyword", "word": "keyword"}


async def test_collections_of_other_programs_are_left_alone(wired: tuple[QdrantServerStore, QdrantWire]) -> None:
    store, wire = wired
    vector = models.VectorParams(size=4, distance=models.Distance.COSINE)
    await wire.engine.create_collection("named", vectors_config={"image": vector})
    await wire.engine.create_collection("odd name", vectors_config=vector)
    await wire.engine.create_collection("plain", vectors_config=vector)
    assert [info.config for info in await store.collections()] == [CollectionConfig("plain", 4, "cosine")]
    with pytest.raises(CollectionExists, match="another program"):
        await store.collection("named")


def answering(respond: Callable[[httpx.Request], httpx.Response]) -> QdrantServerStore:
    return QdrantServerStore("http://qdrant:6333", api_key="k", timeout_s=30, transport=httpx.MockTransport(respond))


def raising(error: type[httpx.TransportError]) -> Callable[[httpx.Request], httpx.Response]:
    def respond(request: httpx.Request) -> httpx.Response:
        raise error("at http://qdrant:6333", request=request)

    return respond


def status(code: int, text: str = "", **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(code, json={"status": {"error": text}}, headers=headers)


FAILURES: list[tuple[Callable[[httpx.Request], httpx.Response], type[VisionError]]] = [
    (status(404, "Not found: Collection `x` doesn't exist!"), CollectionNotFound),
    (status(400, "Wrong input: Vector dimension error: expected dim: 4, got 3"), DimensionMismatch),
    (status(400, "Wrong input"), UpstreamError),
    (status(401, "Must provide an API key"), ServiceUnavailable),
    (status(403, "Forbidden"), ServiceUnavailable),
    (status(408, "Timeout"), UpstreamTimeout),
    (status(409, "already exists"), CollectionExists),
    (status(422, "bad"), UpstreamError),
    (status(429, "too many"), Overloaded),
    (status(500, "panic at /qdrant/src"), UpstreamError),
    (status(500, "No space left on device: WAL buffer size exceeds available disk space"), ServiceUnavailable),
    (status(503), ServiceUnavailable),
    (status(504), UpstreamTimeout),
    (lambda _: httpx.Response(200, text="<html>"), UpstreamError),
    (lambda _: httpx.Response(200, json={"result": {"operation_id": "?"}}), UpstreamError),
    (raising(httpx.ConnectError), ServiceUnavailable),
    (raising(httpx.ConnectTimeout), ServiceUnavailable),
    (raising(httpx.ReadTimeout), UpstreamTimeout),
    (raising(httpx.WriteTimeout), UpstreamTimeout),
    (raising(httpx.PoolTimeout), Overloaded),
    (raising(httpx.ReadError), ServiceUnavailable),
    (raising(httpx.RemoteProtocolError), ServiceUnavailable),
]


@pytest.mark.parametrize(("respond", "error"), FAILURES)
async def test_every_failure_of_the_server_is_translated(
    respond: Callable[[httpx.Request], httpx.Response], error: type[VisionError]
) -> None:
    store = answering(respond)
    with pytest.raises(error) as caught:
        await store.upsert("images", [point(1)])
    assert type(caught.value) is error
    for secret in ("qdrant:6333", "/qdrant/src", "panic", "http"):
        assert secret not in caught.value.detail
    await store.close()


async def test_the_servers_retry_after_is_handed_on() -> None:
    store = answering(status(429, "too many", **{"Retry-After": "7"}))
    with pytest.raises(Overloaded) as caught:
        await store.upsert("images", [point(1)])
    assert caught.value.retry_after == 7
    await store.close()


@pytest.mark.parametrize("result", ["acknowledged", "wait_timeout"])
async def test_only_a_completed_write_is_acknowledged(result: str) -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path.endswith("/points") and request.method == "POST":
            return httpx.Response(200, json={"result": [{"id": 1}], "status": "ok", "time": 0})
        return httpx.Response(200, json={"result": {"operation_id": 1, "status": result}, "status": "ok", "time": 0})

    store = answering(respond)
    with pytest.raises(UpstreamTimeout):
        await store.upsert("images", [point(1)])
    with pytest.raises(UpstreamTimeout):
        await store.delete("images", [1])
    assert [request.url.params.get("wait") for request in seen] == ["true", None, "true"]
    assert all(request.headers["api-key"] == "k" for request in seen)
    await store.close()


async def test_one_call_never_takes_longer_than_its_time() -> None:
    async def respond(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    store = QdrantServerStore("http://qdrant:6333", timeout_s=0.05, transport=httpx.MockTransport(respond))
    with pytest.raises(UpstreamTimeout):
        await store.ping()
    await store.close()
