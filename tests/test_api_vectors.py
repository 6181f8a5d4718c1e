"""`/vectors/*` over real HTTP, on real processes with the embedded store."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from image_host import ImageHost
from problems import assert_problem
from scenes import encoded, picture, scene, webp


def ok(response: httpx2.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


@pytest.fixture
def collection(api: httpx2.Client) -> Iterator[str]:
    """An empty collection with CLIP's dimension."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    ok(api.post("/vectors/collections", json={"name": name}), 201)
    yield name
    api.delete(f"/vectors/collections/{name}")


def upsert_file(api: httpx2.Client, data: bytes, **form: str) -> Any:
    return ok(api.post("/vectors/upsert/file", files={"file": ("p.webp", data)}, data=form))


def search_file(api: httpx2.Client, data: bytes, **form: str) -> Any:
    return ok(api.post("/vectors/search/file", files={"file": ("p.webp", data)}, data=form))


def unit(*head: float) -> list[float]:
    vector = np.zeros(512)
    vector[: len(head)] = head
    return [float(x) for x in vector / np.linalg.norm(vector)]


def test_a_picture_is_found_again_though_scaled_and_recompressed(api: httpx2.Client, collection: str) -> None:
    for number in range(12):
        answer = upsert_file(api, webp(number), id=f"img-{number:03}", collection=collection)
        assert answer == {"id": answer["id"], "collection": collection, "original_id": f"img-{number:03}"}
        assert uuid.UUID(answer["id"]).version == 5
    for number in range(12):
        small = encoded(picture(number).resize((320, 200)), "JPEG", quality=40)
        hits = search_file(api, small, collection=collection, limit="3")
        assert len(hits) == 3
        assert [set(hit) for hit in hits] == [{"id", "score", "metadata"}] * 3
        assert hits[0]["metadata"]["_original_id"] == f"img-{number:03}"
        assert hits[0]["score"] > 0.9
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)


def test_upsert_and_search_by_url(api: httpx2.Client, image_host: ImageHost, collection: str) -> None:
    url = image_host.put("/v1.webp", webp(20), "image/webp")
    body = {"url": url, "id": 7, "metadata": {"category": "wallpaper"}, "collection": collection}
    assert ok(api.post("/vectors/upsert", json=body)) == {"id": 7, "collection": collection, "original_id": None}
    (hit,) = ok(api.post("/vectors/search", json={"url": url, "collection": collection}))
    assert (hit["id"], hit["metadata"]) == (7, {"category": "wallpaper"})
    assert hit["score"] == pytest.approx(1, abs=2e-3)


def test_search_by_text_finds_what_the_text_says(api: httpx2.Client, collection: str) -> None:
    lands: dict[str, int] = {}
    for number in range(40):
        lands.setdefault(scene(number).land, number)
    for land, number in lands.items():
        upsert_file(api, webp(number), id=land, collection=collection)
    right = 0
    for land in lands:
        hits = ok(api.post("/vectors/search/text", json={"text": f"a picture of {land}", "collection": collection}))
        right += hits[0]["metadata"]["_original_id"] == land
    assert right >= 0.8 * len(lands)


def test_embeddings_are_what_the_vector_calls_want(api: httpx2.Client, image_host: ImageHost, collection: str) -> None:
    by_file = ok(api.post("/vectors/embed/file", files={"file": ("p", webp(21))}))
    by_url = ok(api.post("/vectors/embed", json={"url": image_host.put("/e.webp", webp(21), "image/webp")}))
    by_text = ok(api.post("/vectors/embed/text", json={"text": "a boat on the sea"}))
    assert by_file["dim"] == len(by_file["vector"]) == 512
    assert np.linalg.norm(by_file["vector"]) == pytest.approx(1, abs=1e-5)
    assert np.dot(by_file["vector"], by_url["vector"]) == pytest.approx(1, abs=1e-5)
    assert by_text["model"] == by_file["model"]
    upsert_file(api, webp(21), id="1", collection=collection)
    body = {"vector": by_file["vector"], "collection": collection}
    (hit,) = ok(api.post("/vectors/search/vector", json=body))
    assert (hit["id"], hit["score"]) == (1, pytest.approx(1, abs=1e-3))


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (0, 0),
        (2**64 - 1, 2**64 - 1),
        ("42", 42),
        ("550E8400-E29B-41D4-A716-446655440000", "550e8400-e29b-41d4-a716-446655440000"),
        ("550e8400e29b41d4a716446655440001", "550e8400-e29b-41d4-a716-446655440001"),
        ("{550e8400-e29b-41d4-a716-446655440002}", "550e8400-e29b-41d4-a716-446655440002"),
        ("urn:uuid:550e8400-e29b-41d4-a716-446655440003", "550e8400-e29b-41d4-a716-446655440003"),
    ],
)
def test_integers_and_uuids_are_kept(api: httpx2.Client, collection: str, sent: object, kept: object) -> None:
    body = {"vector": unit(1), "id": sent, "collection": collection}
    answer = ok(api.post("/vectors/upsert/vector", json=body))
    assert answer == {"id": kept, "collection": collection, "original_id": None}
    point = ok(api.get(f"/vectors/points/{kept}", params={"collection": collection}))
    assert point == {"id": kept, "metadata": {}}


ODD_IDS = [
    "img-001", "a/b//c.jpg", "../telemetry", "..", "a?b=c&d#e", "ünïcode 画像", " leading", "007", "1e3", "-5",
    "18446744073709551616", "x" * 1024, "a\nb", "%2e%2e/x", "'; --",
]  # fmt: skip


@pytest.mark.parametrize("original", ODD_IDS)
def test_any_other_text_is_kept_beside_a_derived_uuid(api: httpx2.Client, collection: str, original: str) -> None:
    body = {"vector": unit(1), "id": original, "metadata": {"n": 1}, "collection": collection}
    first = ok(api.post("/vectors/upsert/vector", json=body))
    again = ok(api.post("/vectors/upsert/vector", json=body | {"metadata": {"n": 2}}))
    assert first == again
    assert first["original_id"] == original
    assert ok(api.get(f"/vectors/collections/{collection}"))["points_count"] == 1
    found = ok(api.get(f"/vectors/points/by-original-id/{quoted(original)}", params={"collection": collection}))
    assert found == {"id": first["id"], "metadata": {"n": 2, "_original_id": original}}
    assert ok(api.post("/vectors/delete", json={"ids": [original], "collection": collection})) == {"deleted": 1}


def quoted(text: str) -> str:
    """Every byte percent-encoded, so that no client normalises it."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def test_without_an_id_each_upsert_is_a_new_point(api: httpx2.Client, collection: str) -> None:
    body = {"vector": unit(1), "collection": collection}
    ids = {ok(api.post("/vectors/upsert/vector", json=body))["id"] for _ in range(3)}
    assert len(ids) == 3
    assert {uuid.UUID(id).version for id in ids} == {4}


METADATA = {
    "text": "ä\u0000\U0001f300",
    "int": 3, "float": 3.0, "big": 2**53 + 1, "huge": -(10**30), "bool": True, "none": None, "empty": "",
    "list": [1, "1", 1.5, False, None, [], {}], "nested": {"a": {"b.c": [{"d": -0.5}]}}, "key with spaces": 1, "a.b": 2,
}  # fmt: skip


def test_metadata_comes_back_exactly(api: httpx2.Client, collection: str) -> None:
    body = {"vector": unit(1), "id": 1, "metadata": METADATA, "collection": collection}
    ok(api.post("/vectors/upsert/vector", json=body))
    (hit,) = ok(api.post("/vectors/search/vector", json={"vector": unit(1), "collection": collection}))
    point = ok(api.get("/vectors/points/1", params={"collection": collection}))
    for got in (hit["metadata"], point["metadata"]):
        assert json.dumps(got, sort_keys=True) == json.dumps(METADATA, sort_keys=True)


def test_metadata_by_form(api: httpx2.Client, collection: str) -> None:
    upsert_file(api, webp(1), id="9", metadata_json='{"category":"photo","n":[1,2.5]}', collection=collection)
    point = ok(api.get("/vectors/points/9", params={"collection": collection, "with_vector": True}))
    assert point["metadata"] == {"category": "photo", "n": [1, 2.5]}
    assert len(point["vector"]) == 512
    for bad in ("{", "[1]", '"x"'):
        response = api.post(
            "/vectors/upsert/file",
            files={"file": ("p", webp(1))},
            data={"metadata_json": bad, "collection": collection},
        )
        assert assert_problem(response, 422, "invalid_request")["errors"][0]["field"] == "metadata_json"


@pytest.mark.parametrize(
    ("filter_metadata", "wanted"),
    [
        ({"kind": "a"}, {1, 2}),
        ({"kind": ["a", "b"]}, {1, 2, 3}),
        ({"size": {"gte": 2, "lt": 4}}, {2, 3}),
        ({"nested.deep": True}, {3}),
        ({"kind": "a", "size": {"gt": 1}}, {2}),
        ({"at": {"gte": "2024-06-01T00:00:00Z"}}, {2, 3, 4}),
        ({"kind": "nothing"}, set()),
    ],
)
def test_filters(api: httpx2.Client, collection: str, filter_metadata: dict[str, Any], wanted: set[int]) -> None:
    points = [
        (1, {"kind": "a", "size": 1, "nested": {"deep": False}, "at": "2024-01-01T00:00:00Z"}),
        (2, {"kind": "a", "size": 2, "nested": {"deep": 1}, "at": "2024-07-01T00:00:00Z"}),
        (3, {"kind": "b", "size": 3.5, "nested": {"deep": True}, "at": "2025-01-01T00:00:00+02:00"}),
        (4, {"kind": "c", "size": 4, "at": "2025-01-01T00:00:00Z"}),
    ]
    for id, metadata in points:
        body = {"vector": unit(1, id / 10), "id": id, "metadata": metadata, "collection": collection}
        ok(api.post("/vectors/upsert/vector", json=body))
    body = {"vector": unit(1), "filter_metadata": filter_metadata, "collection": collection}
    assert {hit["id"] for hit in ok(api.post("/vectors/search/vector", json=body))} == wanted


def test_search_limit_and_threshold(api: httpx2.Client, collection: str) -> None:
    for id in range(8):
        ok(api.post("/vectors/upsert/vector", json={"vector": unit(1, id), "id": id, "collection": collection}))
    search = {"vector": unit(1), "collection": collection}
    assert [hit["id"] for hit in ok(api.post("/vectors/search/vector", json=search))] == [0, 1, 2, 3, 4]
    assert len(ok(api.post("/vectors/search/vector", json=search | {"limit": 1000}))) == 8
    near = ok(api.post("/vectors/search/vector", json=search | {"score_threshold": 0.6}))
    assert [hit["id"] for hit in near] == [0, 1]
    assert near[1]["score"] == pytest.approx(2**-0.5, abs=1e-4)


def test_delete_counts_what_existed(api: httpx2.Client, collection: str) -> None:
    for id in (1, 2, "img-3"):
        ok(api.post("/vectors/upsert/vector", json={"vector": unit(1), "id": id, "collection": collection}))
    assert ok(api.post("/vectors/delete", json={"ids": [1, 99, "img-3", "img-3"], "collection": collection})) == {
        "deleted": 2
    }
    assert ok(api.post("/vectors/delete", json={"ids": [1], "collection": collection})) == {"deleted": 0}
    assert_problem(api.get("/vectors/points/1", params={"collection": collection}), 404, "point_not_found")
    assert ok(api.get("/vectors/points/2", params={"collection": collection}))["id"] == 2


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclid", "manhattan"])
def test_collections(api: httpx2.Client, distance: str) -> None:
    name = f"c-{distance}-{uuid.uuid4().hex[:6]}"
    config = {"name": name, "vector_dim": 3, "distance": distance}
    created = ok(api.post("/vectors/collections", json=config), 201)
    assert {key: created[key] for key in (*config, "points_count")} == config | {"points_count": 0}
    assert set(created) == {"name", "vector_dim", "distance", "points_count", "status"}
    assert ok(api.post("/vectors/collections", json=config)) == created
    assert_problem(api.post("/vectors/collections", json=config | {"vector_dim": 4}), 409, "collection_exists")
    for id, vector in enumerate(([1, 0, 0], [0.6, 0.8, 0], [0, 0, 1])):
        ok(api.post("/vectors/upsert/vector", json={"vector": vector, "id": id, "collection": name}))
    hits = ok(api.post("/vectors/search/vector", json={"vector": [1, 0.1, 0], "collection": name}))
    assert [hit["id"] for hit in hits] == [0, 1, 2]
    assert ok(api.get(f"/vectors/collections/{name}"))["points_count"] == 3
    assert name in {row["name"] for row in ok(api.get("/vectors/collections"))}
    assert ok(api.delete(f"/vectors/collections/{name}")) == {"deleted": True}
    assert_problem(api.delete(f"/vectors/collections/{name}"), 404, "collection_not_found")
    assert_problem(api.get(f"/vectors/collections/{name}"), 404, "collection_not_found")


def test_a_collection_takes_clips_dimension_by_default(api: httpx2.Client, collection: str) -> None:
    created = ok(api.get(f"/vectors/collections/{collection}"))
    assert (created["vector_dim"], created["distance"]) == (512, "cosine")


def test_the_default_collection_is_made_on_first_use(api: httpx2.Client) -> None:
    assert upsert_file(api, webp(1), id="default-1")["collection"] == "images"
    assert ok(api.get("/vectors/collections/images"))["vector_dim"] == 512
    assert search_file(api, webp(1))[0]["metadata"] == {"_original_id": "default-1"}
    assert ok(api.post("/vectors/delete", json={"ids": ["default-1"]})) == {"deleted": 1}


def test_a_batch_answers_item_by_item(api: httpx2.Client, image_host: ImageHost, collection: str) -> None:
    items: list[dict[str, Any]] = [
        {"url": image_host.put(f"/b{number}.webp", webp(number), "image/webp"), "id": f"b-{number}"}
        for number in range(10)
    ]
    items[3]["url"] = "http://10.0.0.1/x.png"
    items[6]["url"] = image_host.url("/missing.webp")
    items[8]["metadata"] = {"n": 8}
    results = ok(api.post("/vectors/upsert/batch", json={"items": items, "collection": collection}))
    assert len(results) == 10
    for number, result in enumerate(results):
        if number in (3, 6):
            assert result["error"]["code"] == ("url_not_allowed" if number == 3 else "fetch_failed")
        else:
            assert result["original_id"] == f"b-{number}"
    assert ok(api.get(f"/vectors/collections/{collection}"))["points_count"] == 8
    too_many = {"items": [items[0]] * 101, "collection": collection}
    assert_problem(api.post("/vectors/upsert/batch", json=too_many), 422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"vector": []}, "vector"),
        ({"vector": [0.0] * 512}, "vector"),
        ({"vector": "x"}, "vector"),
        ({"vector": unit(1), "id": ""}, "id"),
        ({"vector": unit(1), "id": -1}, "id"),
        ({"vector": unit(1), "id": 2**64}, "id"),
        ({"vector": unit(1), "id": "x" * 1025}, "id"),
        ({"vector": unit(1), "id": "a", "metadata": {"_original_id": "b"}}, "metadata"),
        ({"vector": unit(1), "metadata": {"x": "y" * 65537}}, "metadata"),
        ({"vector": unit(1), "colection": "x"}, "colection"),
    ],
)
def test_bad_upserts_name_the_field(api: httpx2.Client, collection: str, body: dict[str, Any], field: str) -> None:
    response = api.post("/vectors/upsert/vector", json={"collection": collection} | body)
    problem = assert_problem(response, 422, "invalid_request")
    assert problem["errors"][0]["field"].startswith(field)
    assert ok(api.get(f"/vectors/collections/{collection}"))["points_count"] == 0


def test_non_finite_numbers_are_refused(api: httpx2.Client, collection: str) -> None:
    for number in ("NaN", "-Infinity", "1e400"):
        for vector, metadata in (([number, 1], 0), (unit(1), number)):
            body = f'{{"vector": {vector}, "metadata": {{"a": [{{"b": {metadata}}}]}}, "collection": "{collection}"}}'
            response = api.post(
                "/vectors/upsert/vector",
                content=body.replace("'", ""),
                headers={"Content-Type": "application/json"},
            )
            assert_problem(response, 422, "invalid_request")


def test_dimensions_must_agree(api: httpx2.Client, collection: str) -> None:
    body = {"vector": [1.0, 2.0], "collection": collection}
    problem = assert_problem(api.post("/vectors/upsert/vector", json=body), 409, "dimension_mismatch")
    assert "512" in problem["detail"]
    assert_problem(api.post("/vectors/search/vector", json=body), 409, "dimension_mismatch")
    small = f"small-{uuid.uuid4().hex[:6]}"
    ok(api.post("/vectors/collections", json={"name": small, "vector_dim": 3}), 201)
    response = api.post("/vectors/upsert/file", files={"file": ("p", webp(1))}, data={"collection": small})
    assert_problem(response, 409, "dimension_mismatch")


BAD_NAMES = [
    "../telemetry",
    "..",
    ".",
    "a/../../cluster",
    "images/snapshots",
    "a?b",
    "a#b",
    "a b",
    "-a",
    "",
    "x" * 65,
    "ü",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_collection_names_are_422_everywhere(api: httpx2.Client, name: str) -> None:
    for response in (
        api.post("/vectors/upsert/vector", json={"vector": unit(1), "collection": name}),
        api.post("/vectors/search/vector", json={"vector": unit(1), "collection": name}),
        api.post("/vectors/search/text", json={"text": "x", "collection": name}),
        api.post("/vectors/delete", json={"ids": [1], "collection": name}),
        api.post("/vectors/collections", json={"name": name}),
        api.get("/vectors/points/1", params={"collection": name}),
        *(
            [api.get(f"/vectors/collections/{quoted(name)}"), api.delete(f"/vectors/collections/{quoted(name)}")]
            if name
            else []
        ),
    ):
        assert_problem(response, 422, "invalid_request")


def test_unknown_collections_are_404(api: httpx2.Client) -> None:
    vector = {"vector": unit(1), "collection": "nowhere"}
    for response in (
        api.post("/vectors/upsert/vector", json=vector),
        api.post("/vectors/search/vector", json=vector),
        api.post("/vectors/delete", json={"ids": [1], "collection": "nowhere"}),
        api.get("/vectors/points/1", params={"collection": "nowhere"}),
        api.get("/vectors/points/by-original-id/x", params={"collection": "nowhere"}),
    ):
        assert_problem(response, 404, "collection_not_found")
