"""Points of the vector service over HTTP: ids, metadata, vectors and searching."""

import json
import math
from typing import Any

import httpx2
import pytest

from problems import assert_problem
from qdrant_service.ids import derived_id
from store_kit import UUID
from vector_service import PPM, PPM_TYPE, FakeEmbedder, create, field_of, ok, upsert_file, upsert_vector
from vector_service import client as client
from vector_service import embedder as embedder
from vector_service import store as store

pytestmark = pytest.mark.anyio


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
