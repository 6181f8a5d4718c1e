"""The vector service over HTTP, with an embedder that needs no model and the adapter for a server that needs none."""

import asyncio
import hashlib
import json
import math
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from problems import assert_problem
from qdrant_service.app import create_app
from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.embedder import ClipEmbedder, EmbeddingModel
from qdrant_service.ids import derived_id
from qdrant_service.server_store import QdrantServerStore
from qdrant_service.settings import QdrantServiceSettings
from qdrant_service.store import CollectionConfig, VectorStore
from qdrant_wire import QdrantWire
from store_kit import UUID
from visionstack.errors import Overloaded, ServiceUnavailable, UpstreamError, VisionError
from visionstack.inflight import time_left
from visionstack.peers import Peer
from visionstack.routes import TIMEOUT_HEADER
from visionstack.schemas import Embedding

pytestmark = pytest.mark.anyio

DIM = 4
PPM = b"P6 1 1 255\n\x00\r\n"
PPM_TYPE = "image/x-portable-pixmap"


class FakeEmbedder:
    """Equal bytes, equal unit vectors. `error` is raised instead; `asked` lists what came."""

    def __init__(self) -> None:
        self.model = EmbeddingModel("model-a", DIM)
        self.error: VisionError | None = None
        self.asked: list[tuple[Any, ...]] = []

    async def aclose(self) -> None:
        pass

    async def embed_image(self, data: bytes, content_type: str) -> Embedding:
        self.asked.append(("image", data, content_type))
        return self._embedding(data)

    async def embed_text(self, text: str) -> Embedding:
        self.asked.append(("text", text, time_left(30.0)))
        return self._embedding(text.encode())

    async def describe(self) -> EmbeddingModel:
        self.asked.append(("describe",))
        if self.error is not None:
            raise self.error
        return self.model

    def _embedding(self, data: bytes) -> Embedding:
        if self.error is not None:
            raise self.error
        numbers = [byte - 127.5 for byte in hashlib.sha256(data).digest()[: self.model.dim]]
        length = math.hypot(*numbers)
        return Embedding(vector=[number / length for number in numbers], model=self.model.name, dim=self.model.dim)


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def store() -> VectorStore:
    return QdrantServerStore("http://qdrant:6333", timeout_s=30, transport=QdrantWire())


@asynccontextmanager
async def client_of(store: VectorStore, embedder: FakeEmbedder) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app(QdrantServiceSettings(), store, embedder)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://qdrant-svc") as client,
    ):
        yield client


@pytest.fixture
async def client(store: VectorStore, embedder: FakeEmbedder) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(store, embedder) as client:
        yield client


def ok(response: httpx2.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


async def create(client: httpx2.AsyncClient, name: str, **config: Any) -> Any:
    return ok(await client.post("/collections", json={"name": name, **config}), 201)


async def upsert_file(client: httpx2.AsyncClient, data: bytes = PPM, **form: str) -> httpx2.Response:
    return await client.post("/upsert/file", files={"file": ("picture.ppm", data, PPM_TYPE)}, data=form)


async def upsert_vector(client: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    return await client.post("/upsert/vector", json={"vector": [1, 0, 0, 0]} | body)


def field_of(response: httpx2.Response) -> str:
    problem = assert_problem(response, 422, "invalid_request")
    (error,) = problem["errors"]
    return str(error["field"])


# --- pictures ---------------------------------------------------------------------------------------------------------


async def test_a_picture_goes_to_the_embedder_byte_for_byte(client: httpx2.AsyncClient, embedder: FakeEmbedder) -> None:
    ok(await upsert_file(client, PPM, id="img-001"))
    assert embedder.asked == [("image", PPM, PPM_TYPE)]


async def test_the_embedder_gets_the_time_that_the_caller_waits(
    client: httpx2.AsyncClient, embedder: FakeEmbedder
) -> None:
    ok(await client.post("/search/text", json={"text": "a"}))  # no collection yet: nothing to embed for
    await create(client, "c")
    headers = {TIMEOUT_HEADER: "1500"}
    ok(await client.post("/search/text", json={"text": "a", "collection": "c"}, headers=headers))
    assert embedder.asked[-1] == ("text", "a", pytest.approx(1.5, abs=0.5))


async def test_a_picture_is_found_by_itself_and_by_its_id(client: httpx2.AsyncClient) -> None:
    answer = ok(await upsert_file(client, b"one", id="a/b..c", metadata_json='{"n": 1, "f": 1.0}'))
    derived = derived_id("images", "a/b..c")
    assert answer == {"id": derived, "collection": "images", "original_id": "a/b..c"}
    ok(await upsert_file(client, b"two", id="42"))
    files = {"file": ("picture.ppm", b"one", PPM_TYPE)}
    hits = ok(await client.post("/search/file", files=files, data={"limit": "1"}))
    metadata = {"n": 1, "f": 1.0, "_original_id": "a/b..c"}
    assert hits == [{"id": derived, "score": pytest.approx(1, abs=1e-6), "metadata": metadata}]
    for path in ("/points/by-original-id", "/points"):
        for id in ("a/b..c", derived) if path == "/points" else ("a/b..c",):
            point = ok(await client.get(path, params={"id": id}))
            assert point == {"id": derived, "metadata": metadata}
    point = ok(await client.get("/points", params={"id": "42", "with_vector": "true"}))
    assert (point["id"], point["metadata"], len(point["vector"])) == (42, {}, DIM)
    # an id that was kept is also the caller's own
    assert ok(await client.get("/points/by-original-id", params={"id": "42"})) == {"id": 42, "metadata": {}}


async def test_embeddings(client: httpx2.AsyncClient, embedder: FakeEmbedder) -> None:
    by_file = ok(await client.post("/embed/file", files={"file": ("p", b"a", PPM_TYPE)}))
    assert (by_file["model"], by_file["dim"], len(by_file["vector"])) == ("model-a", DIM, DIM)
    assert ok(await client.post("/embed/text", json={"text": "a"})) == by_file


async def test_a_bad_request_costs_no_embedding(client: httpx2.AsyncClient, embedder: FakeEmbedder) -> None:
    await create(client, "c", vector_dim=3)
    embedder.asked.clear()
    files = {"file": ("p", PPM, PPM_TYPE)}
    for form, field in (
        ({"id": ""}, "id"),
        ({"id": "x" * 1025}, "id"),
        ({"metadata_json": "{"}, "metadata_json"),
        ({"metadata_json": "[1]"}, "metadata_json"),
        ({"metadata_json": '"a"'}, "metadata_json"),
        ({"metadata_json": '{"a":' * 50_000}, "metadata_json"),
        ({"metadata_json": '{"a": NaN}'}, "metadata_json"),
        ({"metadata_json": '{"a": "\\ud800"}'}, "metadata"),
        ({"metadata_json": '{"_vision": 1}'}, "metadata"),
        ({"collection": "../c"}, "collection"),
    ):
        found = field_of(await client.post("/upsert/file", files=files, data=form))
        assert found.partition(".")[0] == field, form
    for form, field in (
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"score_threshold": "nan"}, "score_threshold"),
        ({"filter_metadata": "{"}, "filter_metadata"),
        ({"filter_metadata": '{"a": []}'}, "filter_metadata.a"),
    ):
        assert field_of(await client.post("/search/file", files=files, data=form)) == field
    assert_problem(await upsert_file(client, collection="unknown"), 404, "collection_not_found")
    assert field_of(await client.post("/upsert/file", data={"id": "1"})) == "file"
    assert embedder.asked == []


async def test_without_an_id_each_upsert_is_a_new_point(client: httpx2.AsyncClient) -> None:
    ids = {ok(await upsert_file(client))["id"] for _ in range(3)}
    assert {uuid.UUID(id).version for id in ids} == {4}
    assert ok(await client.get("/collections/images"))["points_count"] == len(ids) == 3


async def test_the_embedders_errors_are_handed_on(client: httpx2.AsyncClient, embedder: FakeEmbedder) -> None:
    embedder.error = Overloaded(retry_after=3)
    response = await upsert_file(client)
    assert_problem(response, 503, "overloaded")
    assert response.headers["Retry-After"] == "3"
    assert_problem(await client.get("/collections/images"), 404, "collection_not_found")
    assert_problem(await upsert_vector(client), 503, "overloaded")


# --- the default collection -------------------------------------------------------------------------------------------


async def test_before_its_first_use_the_default_collection_is_empty(client: httpx2.AsyncClient) -> None:
    for path, body in (
        ("/search/vector", {"vector": [1, 0, 0, 0]}),
        ("/search/vector", {"vector": [1, 0]}),
        ("/search/text", {"text": "a"}),
    ):
        assert ok(await client.post(path, json=body)) == []
    assert ok(await client.post("/search/file", files={"file": ("p", PPM, PPM_TYPE)})) == []
    assert ok(await client.post("/delete", json={"ids": [1, "a"]})) == {"deleted": 0}
    for path in ("/points", "/points/by-original-id"):
        assert_problem(await client.get(path, params={"id": "a"}), 404, "point_not_found")
    assert ok(await client.get("/collections")) == []
    assert_problem(await client.get("/collections/images"), 404, "collection_not_found")


@pytest.mark.parametrize("by", ["picture", "vector"])
async def test_the_first_upsert_makes_the_default_collection(client: httpx2.AsyncClient, by: str) -> None:
    ok(await (upsert_file(client) if by == "picture" else upsert_vector(client)))
    assert ok(await client.get("/collections")) == [
        {"name": "images", "vector_dim": DIM, "distance": "cosine", "points_count": 1, "status": "green"}
    ]


async def test_simultaneous_first_upserts_make_it_once(client: httpx2.AsyncClient) -> None:
    upserts = [upsert_file(client, b"%d" % i, id=str(i)) for i in range(6)]
    upserts += [upsert_vector(client, id=10 + i) for i in range(6)]
    for response in await asyncio.gather(*upserts):
        ok(response)
    assert ok(await client.get("/collections/images"))["points_count"] == 12


@pytest.mark.parametrize("vector", [[1, 0], [0, 0, 0, 0]])
async def test_a_bad_vector_does_not_make_it(client: httpx2.AsyncClient, vector: list[float]) -> None:
    assert (await upsert_vector(client, vector=vector)).status_code in (409, 422)
    assert ok(await client.get("/collections")) == []


async def test_other_unknown_collections_are_not_made(client: httpx2.AsyncClient) -> None:
    files = {"file": ("p", PPM, PPM_TYPE)}
    params = {"id": "a", "collection": "unknown"}
    for response in (
        await client.post("/upsert/file", files=files, data={"collection": "unknown"}),
        await client.post("/search/file", files=files, data={"collection": "unknown"}),
        await upsert_vector(client, collection="unknown"),
        await client.post("/search/vector", json={"vector": [1], "collection": "unknown"}),
        await client.post("/search/text", json={"text": "a", "collection": "unknown"}),
        await client.post("/delete", json={"ids": [1], "collection": "unknown"}),
        await client.get("/points", params=params),
        await client.get("/points/by-original-id", params=params),
        await client.get("/collections/unknown"),
        await client.delete("/collections/unknown"),
    ):
        assert_problem(response, 404, "collection_not_found")


BAD_NAMES = [
    "../telemetry", "..", ".", "a/../../cluster", "images/snapshots", "images%2Fsnapshots", "..\\telemetry",
    "images?wait=false", "images#x", "images\n", "images\u0000", "images;x", "", "x" * 65, "\u0130mages",
    "images\u200b", ".snapshots", "-a", "_a",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_bad_collection_names_are_refused_everywhere(client: httpx2.AsyncClient, name: str) -> None:
    files = {"file": ("p", PPM, PPM_TYPE)}
    responses = [
        await upsert_vector(client, collection=name),
        await client.post("/search/vector", json={"vector": [1, 0, 0, 0], "collection": name}),
        await client.post("/search/text", json={"text": "a", "collection": name}),
        await client.post("/delete", json={"ids": [1], "collection": name}),
        await client.get("/points", params={"id": "1", "collection": name}),
        await client.get("/points/by-original-id", params={"id": "1", "collection": name}),
        await client.post("/upsert/file", files=files, data={"collection": name}),
        await client.post("/search/file", files=files, data={"collection": name}),
    ]
    for response in responses:
        assert field_of(response) == "collection"
    assert field_of(await client.post("/collections", json={"name": name})) == "name"
    if name:
        path = "/collections/" + "".join(f"%{byte:02X}" for byte in name.encode())
        for method in ("GET", "DELETE"):
            assert (await client.request(method, path)).status_code in (404, 422)
    assert ok(await client.get("/collections")) == []


# --- ids and metadata -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spellings", "kept"),
    [
        ([UUID, UUID.upper(), UUID.replace("-", ""), f"urn:uuid:{UUID}", f"{{{UUID}}}"], UUID),
        ([7, "7"], 7),
        (["img-001"], None),
        (["007"], None),
    ],
)
async def test_every_spelling_of_an_id_is_the_point(
    client: httpx2.AsyncClient, spellings: list[int | str], kept: int | str | None
) -> None:
    for spelling in spellings:
        answer = ok(await upsert_vector(client, id=spelling, metadata={"as": spelling}))
        assert answer["id"] == (kept if kept is not None else derived_id("images", str(spelling)))
        assert answer["original_id"] == (None if kept is not None else spelling)
    assert ok(await client.get("/collections/images"))["points_count"] == 1
    for spelling in spellings:
        point = ok(await client.get("/points", params={"id": str(spelling)}))
        assert point == ok(await client.get("/points/by-original-id", params={"id": str(spelling)}))
        assert point["metadata"]["as"] == spellings[-1]
    assert ok(await client.post("/delete", json={"ids": spellings})) == {"deleted": 1}
    assert ok(await client.post("/delete", json={"ids": spellings})) == {"deleted": 0}


@pytest.mark.parametrize(
    "original", ["..", "../a", "a//b", "a?b=c&d#e", "%2e%2e", "a\u0000b", "\u00e9\u0130\n", "+1 ", "-5"]
)
async def test_an_original_id_comes_back_byte_for_byte(client: httpx2.AsyncClient, original: str) -> None:
    ok(await upsert_vector(client, id=original))
    point = ok(await client.get("/points/by-original-id", params={"id": original}))
    assert point["metadata"] == {"_original_id": original}


@pytest.mark.parametrize("id", ["-1", str(2**64), "true", "1.5", "[]", '""', '"\\ud800"', f'"{"x" * 1025}"'])
async def test_bad_ids_are_refused(client: httpx2.AsyncClient, id: str) -> None:
    headers = {"Content-Type": "application/json"}
    content = f'{{"vector": [1, 0, 0, 0], "id": {id}}}'
    response = await client.post("/upsert/vector", content=content, headers=headers)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"].startswith("id")
    response = await client.post("/delete", content=f'{{"ids": [1, {id}]}}', headers=headers)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"].startswith("ids.1")


async def test_metadata_comes_back_exactly_over_http(client: httpx2.AsyncClient) -> None:
    text = (
        '{"a":1,"b":1.0,"c":-0.0,"d":18446744073709551616,"e":0.30000000000000004,"f":1e22,"g":[null,true,"",{}],'
        '"h":{"":{"x.y":[[]]}},"i":"\\u0000\\ud83d\\ude00","j":12345678901234567890123456789}'
    )
    headers = {"Content-Type": "application/json"}
    content = f'{{"vector": [1, 0, 0, 0], "id": 1, "metadata": {text}}}'
    ok(await client.post("/upsert/vector", content=content, headers=headers))
    ok(await upsert_file(client, id="2", metadata_json=text))
    expected = json.dumps(json.loads(text), sort_keys=True)
    for id in ("1", "2"):
        point = await client.get("/points", params={"id": id})
        assert json.dumps(json.loads(point.text)["metadata"], sort_keys=True) == expected
    hits = await client.post("/search/vector", json={"vector": [1, 0, 0, 0], "limit": 2})
    assert [json.dumps(hit["metadata"], sort_keys=True) for hit in json.loads(hits.text)] == [expected] * 2


async def test_an_original_id_in_the_metadata_may_only_name_this_point(client: httpx2.AsyncClient) -> None:
    for id, named in (("img-1", "img-1"), (derived_id("images", "img-1"), "img-1"), (42, "42"), ("42", 42)):
        ok(await upsert_vector(client, id=id, metadata={"_original_id": named}))
        point = ok(await client.get("/points", params={"id": str(id)}))
        assert point["metadata"] == {"_original_id": named}
    cases: tuple[tuple[Any, Any], ...] = (
        (None, "img-1"),
        ("img-2", "img-1"),
        ("img-2", None),
        (42, 43),
        (1, True),
        (1, {}),
    )
    for id, named in cases:
        response = await upsert_vector(client, id=id, metadata={"_original_id": named})
        assert field_of(response) == "metadata._original_id"
    assert ok(await client.get("/collections/images"))["points_count"] == 2


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"a": NaN}', "holds a number that is not finite"),
        ('{"a": 1e999}', "holds a number that is not finite"),
        ('{"a": "%s"}' % ("x" * 65536), "has 65544 bytes as JSON; at most 65536"),
        ('{"a": ' + '{"a": ' * 70 + "1" + "}" * 71, "nests deeper than 64 levels"),
        ('{"_vision": {}}', "the key _vision is reserved"),
    ],
    ids=["nan", "infinite", "large", "deep", "reserved"],
)
async def test_metadata_that_cannot_be_kept_is_refused(client: httpx2.AsyncClient, metadata: str, message: str) -> None:
    content = f'{{"vector": [1, 0, 0, 0], "metadata": {metadata}}}'
    headers = {"Content-Type": "application/json"}
    response = await client.post("/upsert/vector", content=content, headers=headers)
    assert field_of(response) == "metadata"
    assert response.json()["errors"][0]["message"].startswith(message)


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\ud800": 1}', '{"a": ' + "[" * 5000 + "]" * 5000 + "}"])
async def test_what_json_cannot_carry_is_refused(client: httpx2.AsyncClient, text: str) -> None:
    headers = {"Content-Type": "application/json"}
    for path, name, head in (
        ("/upsert/vector", "metadata", '"vector": [1, 0, 0, 0]'),
        ("/search/vector", "filter_metadata", '"vector": [1, 0, 0, 0]'),
    ):
        response = await client.post(path, content=f'{{{head}, "{name}": {text}}}', headers=headers)
        assert_problem(response, 422, "invalid_request")


# --- vectors and searching --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclid", "manhattan"])
@pytest.mark.parametrize(
    ("vector", "refused_under"),
    [
        ("[NaN, 1]", {"cosine", "dot", "euclid", "manhattan"}),
        ("[1e999, 1]", {"cosine", "dot", "euclid", "manhattan"}),
        ("[0, -0.0]", {"cosine"}),
        ("[1e300, 1]", {"dot", "euclid", "manhattan"}),
        ("[8e17, -8e17]", {"dot", "euclid", "manhattan"}),
        ("[7e17, -7e17]", set()),
    ],
)
async def test_vectors_that_have_no_place_are_refused(
    client: httpx2.AsyncClient, distance: str, vector: str, refused_under: set[str]
) -> None:
    await create(client, "c", vector_dim=2, distance=distance)
    ok(await upsert_vector(client, vector=[0.6, 0.8], collection="c"))
    for path in ("/upsert/vector", "/search/vector"):
        content = f'{{"vector": {vector}, "collection": "c"}}'
        response = await client.post(path, content=content, headers={"Content-Type": "application/json"})
        if distance in refused_under:
            assert field_of(response).partition(".")[0] == "vector"
        elif path == "/search/vector":
            assert all(math.isfinite(hit["score"]) for hit in ok(response))
        else:
            ok(response)


async def test_lengths_beyond_32_bits_keep_their_direction(client: httpx2.AsyncClient) -> None:
    await create(client, "c", vector_dim=2)
    for id, vector in enumerate(([1.2e308, 1.6e308], [3e-310, 4e-310], [-3, 4])):
        ok(await upsert_vector(client, id=id, vector=vector, collection="c"))
        point = ok(await client.get("/points", params={"id": str(id), "collection": "c", "with_vector": "true"}))
        assert point["vector"] == pytest.approx([-0.6 if id == 2 else 0.6, 0.8], rel=1e-5)
    hits = ok(await client.post("/search/vector", json={"vector": [3e-30, 4e-30], "collection": "c"}))
    assert [hit["score"] for hit in hits] == pytest.approx([1, 1, 0.28], abs=1e-6)
    assert max(hit["score"] for hit in hits) <= 1


async def test_dimensions_must_agree(client: httpx2.AsyncClient, embedder: FakeEmbedder) -> None:
    await create(client, "c", vector_dim=3)
    files = {"file": ("p", PPM, PPM_TYPE)}
    for response in (
        await upsert_vector(client, collection="c"),
        await client.post("/search/vector", json={"vector": [1, 0], "collection": "c"}),
        await client.post("/search/text", json={"text": "a", "collection": "c"}),
        await client.post("/upsert/file", files=files, data={"collection": "c"}),
        await client.post("/search/file", files=files, data={"collection": "c"}),
    ):
        problem = assert_problem(response, 409, "dimension_mismatch")
        assert "c holds vectors of 3 numbers" in problem["detail"]


@pytest.mark.parametrize(("distance", "threshold", "found"), [
    ("cosine", 0.8, [1, 2]), ("cosine", 1, [1]), ("dot", 8, [2]), ("euclid", 0, [1]), ("euclid", 9.1, [1, 3]),
    ("manhattan", 7, [1]),
])  # fmt: skip
async def test_the_threshold_belongs_to_the_result(
    client: httpx2.AsyncClient, distance: str, threshold: float, found: list[int]
) -> None:
    await create(client, "c", vector_dim=2, distance=distance)
    for id, vector in ((1, [1, 0]), (2, [8, 6]), (3, [0, 9])):
        ok(await upsert_vector(client, id=id, vector=vector, collection="c"))
    body = {"vector": [1, 0], "collection": "c", "score_threshold": threshold}
    assert [hit["id"] for hit in ok(await client.post("/search/vector", json=body))] == found


async def test_filters_over_http(client: httpx2.AsyncClient) -> None:
    for id in range(20):
        ok(await upsert_vector(client, id=id, vector=[1, id, 0, 0], metadata={"a": {"b": id}, "even": id % 2 == 0}))
    wanted = {"a.b": {"gte": 5, "lt": 11}, "even": True}
    body = {"vector": [1, 0, 0, 0], "filter_metadata": wanted, "limit": 2}
    assert [hit["id"] for hit in ok(await client.post("/search/vector", json=body))] == [6, 8]
    response = await client.post(
        "/search/file",
        files={"file": ("p", PPM, PPM_TYPE)},
        data={"filter_metadata": json.dumps(wanted), "limit": "10"},
    )
    assert {hit["id"] for hit in ok(response)} == {6, 8, 10}


# --- collections and models -------------------------------------------------------------------------------------------


async def test_collections(client: httpx2.AsyncClient) -> None:
    created = await create(client, "c", distance="dot")
    assert created == {"name": "c", "vector_dim": DIM, "distance": "dot", "points_count": 0, "status": "green"}
    for same in ({}, {"vector_dim": DIM}):
        assert ok(await client.post("/collections", json={"name": "c", "distance": "dot", **same})) == created
    for other in ({"distance": "cosine"}, {"distance": "dot", "vector_dim": 5}):
        problem = assert_problem(
            await client.post("/collections", json={"name": "c", **other}), 409, "collection_exists"
        )
        assert problem["detail"] == "The collection c exists with 4 dimensions and dot distance; choose another name."
    await create(client, "b", vector_dim=3, distance="manhattan")
    assert [row["name"] for row in ok(await client.get("/collections"))] == ["b", "c"]
    assert ok(await client.get("/collections/c")) == created
    assert ok(await client.delete("/collections/c")) == {"deleted": True}
    assert_problem(await client.delete("/collections/c"), 404, "collection_not_found")


async def test_a_collection_for_own_vectors_needs_no_embedder(
    client: httpx2.AsyncClient, embedder: FakeEmbedder
) -> None:
    embedder.error = ServiceUnavailable()
    await create(client, "c", vector_dim=3)
    assert_problem(await client.post("/collections", json={"name": "d"}), 503, "service_unavailable")
    ok(await upsert_vector(client, vector=[1, 0, 0], collection="c"))
    assert len(ok(await client.post("/search/vector", json={"vector": [1, 0, 0], "collection": "c"}))) == 1


async def models(store: VectorStore) -> dict[str, str | None]:
    return {info.config.name: info.config.embedding_model for info in await store.collections()}


async def test_vectors_of_two_models_never_meet(
    client: httpx2.AsyncClient, embedder: FakeEmbedder, store: VectorStore
) -> None:
    ok(await upsert_file(client, id="1"))
    assert await models(store) == {"images": "model-a"}
    embedder.model = EmbeddingModel("model-b", DIM)
    for response in (
        await upsert_file(client, id="2"),
        await client.post("/search/text", json={"text": "a"}),
        await client.post("/search/file", files={"file": ("p", PPM, PPM_TYPE)}),
    ):
        problem = assert_problem(response, 409, "collection_exists")
        assert problem["detail"] == (
            "The collection images holds vectors of model-a, this server embeds with model-b; "
            "use another collection, or send vectors of model-a."
        )
    ok(await upsert_vector(client, id=3))  # the caller's own vectors are his own affair
    assert len(ok(await client.post("/search/vector", json={"vector": [1, 0, 0, 0]}))) == 2
    assert await models(store) == {"images": "model-a"}


async def test_a_collection_takes_the_model_of_its_first_picture(
    client: httpx2.AsyncClient, embedder: FakeEmbedder, store: VectorStore
) -> None:
    await create(client, "empty")
    await store.create_collection(CollectionConfig("unknown", DIM, "cosine"))
    ok(await upsert_vector(client, collection="unknown"))
    assert await models(store) == {"empty": "model-a", "unknown": None}
    embedder.model = EmbeddingModel("model-b", DIM)
    ok(await client.post("/search/text", json={"text": "a", "collection": "unknown"}))
    assert (await models(store))["unknown"] is None  # reading records nothing
    for name in ("empty", "unknown"):
        ok(await upsert_file(client, collection=name))
    assert await models(store) == {"empty": "model-b", "unknown": "model-b"}


async def test_the_model_is_recorded_where_it_fits(
    client: httpx2.AsyncClient, embedder: FakeEmbedder, store: VectorStore
) -> None:
    await create(client, "default-dim")
    await create(client, "same-dim", vector_dim=DIM, distance="dot")
    await create(client, "other-dim", vector_dim=3)
    assert await models(store) == {"default-dim": "model-a", "same-dim": "model-a", "other-dim": None}


# --- life -------------------------------------------------------------------------------------------------------------


async def test_readiness_follows_the_store(
    store: VectorStore, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdrant_service.app._READY_EVERY_S", 0.001)
    monkeypatch.setattr("qdrant_service.app._NOT_READY_EVERY_S", 0.001)
    failures: list[Exception | None] = [ServiceUnavailable(), None, RuntimeError("whatever"), None]
    states: list[int] = []
    done = asyncio.Event()

    async def ping() -> None:
        """Notes what the probe says of the answer before, and gives the next one."""
        states.append((await probe.get("/readyz")).status_code)
        if not failures:
            done.set()
        elif failure := failures.pop(0):
            raise failure

    monkeypatch.setattr(store, "ping", ping)
    app = create_app(QdrantServiceSettings(), store, embedder)
    probe = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://qdrant-svc")
    async with probe, app.router.lifespan_context(app), asyncio.timeout(60):
        await done.wait()
        assert states[:5] == [503, 503, 200, 503, 200]
        body = (await probe.get("/readyz")).json()
        assert (body["status"], body["model"]) == ("ok", store.engine)
        assert ok(await probe.get("/livez")) == {"status": "ok"}


async def test_data_outlives_the_service(embedder: FakeEmbedder, tmp_path: Path) -> None:
    async with client_of(QdrantEdgeStore(tmp_path, timeout_s=30), embedder) as client:
        upserts = [upsert_file(client, b"%d" % i, id=f"img-{i}", metadata_json=f'{{"n": {i}}}') for i in range(6)]
        for response in await asyncio.gather(*upserts):
            ok(response)
    async with client_of(QdrantEdgeStore(tmp_path, timeout_s=30), embedder) as client:
        assert ok(await client.get("/collections/images"))["points_count"] == 6
        point = ok(await client.get("/points/by-original-id", params={"id": "img-3"}))
        assert point["metadata"] == {"n": 3, "_original_id": "img-3"}


async def test_a_store_that_does_not_open_ends_the_process_with_one_line(
    tmp_path: Path, embedder: FakeEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    class Ended(Exception):
        pass

    def end() -> None:
        raise Ended

    (tmp_path / "file").write_text("")
    store = QdrantEdgeStore(tmp_path / "file", timeout_s=5)
    app = create_app(QdrantServiceSettings(), store, embedder, on_open_failure=end)
    with pytest.raises(Ended):
        async with app.router.lifespan_context(app):
            raise AssertionError
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"QDRANT_PATH: {tmp_path / 'file'} cannot be used: Not a directory"
    ]


async def test_the_service_starts_from_its_folder_and_only_once(tmp_path: Path) -> None:
    store = QdrantEdgeStore(tmp_path, timeout_s=5)
    await store.open()
    folder = Path(__file__).parent.parent
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "uvicorn", "main:app", "--host", "127.0.0.1", "--port", "0"],
        cwd=folder / "qdrant",
        env=os.environ | {"PYTHONPATH": str(folder / "common"), "QDRANT_PATH": str(tmp_path), "LOG_FORMAT": "console"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    await store.close()
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "[error" in line]
    assert f"QDRANT_PATH: {tmp_path} is in use by another process" in line


# --- the embedder -----------------------------------------------------------------------------------------------------


def clip(respond: Callable[[httpx2.Request], httpx2.Response]) -> ClipEmbedder:
    return ClipEmbedder(Peer("clip", ["http://clip:8000"], timeout_s=5, transport=httpx2.MockTransport(respond)))


async def test_the_clip_service_is_asked_as_it_answers() -> None:
    seen: list[httpx2.Request] = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"vector": [0.6, 0.8], "model": "m", "dim": 2})

    embedder = clip(respond)
    expected = Embedding(vector=[0.6, 0.8], model="m", dim=2)
    assert await embedder.embed_image(PPM, PPM_TYPE) == expected
    assert await embedder.embed_text("red") == expected
    assert await embedder.describe() == EmbeddingModel("m", 2)
    assert [request.url.path for request in seen] == ["/embed", "/embed/text", "/embed/text"]
    assert (seen[0].content, seen[0].headers["content-type"]) == (PPM, PPM_TYPE)
    assert json.loads(seen[1].content) == {"text": "red"}
    assert 0 < int(seen[0].headers[TIMEOUT_HEADER]) <= 5000
    await embedder.aclose()


@pytest.mark.parametrize(
    "answer", [{}, [], {"vector": [1.0], "model": "m", "dim": 2}, {"vector": "x", "model": "m", "dim": 1}]
)
async def test_another_shape_is_the_clip_services_failure(answer: Any) -> None:
    embedder = clip(lambda _: httpx2.Response(200, json=answer))
    with pytest.raises(UpstreamError):
        await embedder.embed_text("a")
    await embedder.aclose()
