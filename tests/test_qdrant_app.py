"""The vector service over HTTP: pictures, collections, the models behind them, and its life."""

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path

import httpx2
import pytest

from problems import assert_problem
from qdrant_service.app import create_app
from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.embedder import EmbeddingModel
from qdrant_service.ids import derived_id
from qdrant_service.settings import QdrantServiceSettings
from qdrant_service.store import CollectionConfig, VectorStore
from vector_service import DIM, PPM, PPM_TYPE, FakeEmbedder, client_of, create, field_of, ok, upsert_file, upsert_vector
from vector_service import client as client
from vector_service import embedder as embedder
from vector_service import store as store
from visionstack.errors import Overloaded, ServiceUnavailable
from visionstack.routes import TIMEOUT_HEADER

pytestmark = pytest.mark.anyio


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
