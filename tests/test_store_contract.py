"""One suite over every vector store: the embedded engine, the server adapter, and any real server in `QDRANT_TEST_URL`.

The server adapter speaks its real JSON to `QdrantWire`. What only one adapter has (files and kills, HTTP errors) is
tested beside it, in `test_edge_store.py` and `test_server_store.py`.
"""

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import qdrant_edge

from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.filters import parse_filter
from qdrant_service.ids import resolve_id
from qdrant_service.server_store import QdrantServerStore
from qdrant_service.store import CollectionConfig, NewPoint, ScoredPoint, StoredPoint, VectorStore, best
from store_kit import UUID, collection, point
from store_kit import folder as folder
from store_kit import store as store
from visionstack.errors import CollectionExists, CollectionNotFound, DimensionMismatch
from visionstack.schemas import Distance

pytestmark = pytest.mark.anyio


# --- collections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclid", "manhattan"])
async def test_a_collection_is_what_was_asked_for(store: VectorStore, distance: Distance) -> None:
    name = await collection(store, 7, distance, "model-a")
    info = await store.collection(name)
    assert info.config == CollectionConfig(name, 7, distance, "model-a")
    assert (info.points_count, info.status) == (0, "green")
    assert info in await store.collections()
    await store.delete_collection(name)
    assert name not in [info.config.name for info in await store.collections()]


async def test_collections_are_listed_by_name(store: VectorStore) -> None:
    names = [await collection(store) for _ in range(3)]
    assert [info.config.name for info in await store.collections() if info.config.name in names] == sorted(names)


async def test_a_name_is_taken_once_and_free_after_deletion(store: VectorStore) -> None:
    name = await collection(store, 4)
    await store.upsert(name, [point(1)])
    with pytest.raises(CollectionExists):
        await store.create_collection(CollectionConfig(name, 4, "cosine"))
    await store.delete_collection(name)
    await store.create_collection(CollectionConfig(name, 3, "dot"))
    info = await store.collection(name)
    assert (info.config.vector_dim, info.points_count) == (3, 0)


async def test_of_simultaneous_creations_one_succeeds(store: VectorStore) -> None:
    config = CollectionConfig(f"t-{uuid.uuid4().hex}", 4, "cosine")
    results = await asyncio.gather(*(store.create_collection(config) for _ in range(4)), return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, CollectionExists) for result in results) == 3


async def test_the_model_can_be_recorded_later_and_anew(store: VectorStore) -> None:
    name = await collection(store)
    assert (await store.collection(name)).config.embedding_model is None
    for model in ("ViT-B-32/one", "ViT-B-32/two"):
        await store.record_model(name, model)
        assert (await store.collection(name)).config == CollectionConfig(name, 4, "cosine", model)


UNKNOWN: dict[str, Callable[[VectorStore], Awaitable[object]]] = {
    "collection": lambda store: store.collection("t-unknown"),
    "delete_collection": lambda store: store.delete_collection("t-unknown"),
    "record_model": lambda store: store.record_model("t-unknown", "model"),
    "upsert": lambda store: store.upsert("t-unknown", [point(1)]),
    "search": lambda store: store.search("t-unknown", [1.0, 0.0, 0.0, 0.0], limit=1),
    "filtered search": lambda store: store.search(
        "t-unknown", [1.0, 0.0, 0.0, 0.0], limit=1, conditions=parse_filter({"a": "b"})
    ),
    "retrieve": lambda store: store.retrieve("t-unknown", 1),
    "find": lambda store: store.find_by_original_id("t-unknown", "a"),
    "delete": lambda store: store.delete("t-unknown", [1]),
}


@pytest.mark.parametrize("operation", UNKNOWN)
async def test_an_unknown_collection_is_told_as_such(store: VectorStore, operation: str) -> None:
    with pytest.raises(CollectionNotFound):
        await UNKNOWN[operation](store)


# --- points -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [0, 1, 2**63, 2**64 - 1, UUID])
async def test_a_point_comes_back_under_its_id(store: VectorStore, id: int | str) -> None:
    name = await collection(store)
    await store.upsert(name, [point(id, [0.0, 0.6, 0.8, 0.0], a=1)])
    assert await store.retrieve(name, id) == StoredPoint(id, {"a": 1}, None)
    found = await store.retrieve(name, id, with_vector=True)
    assert found is not None
    assert found.vector == pytest.approx([0.0, 0.6, 0.8, 0.0])
    (hit,) = await store.search(name, [0.0, 0.6, 0.8, 0.0], limit=1)
    assert (hit.id, hit.metadata) == (id, {"a": 1})


async def test_what_is_not_there_is_none(store: VectorStore) -> None:
    name = await collection(store)
    assert await store.retrieve(name, 1) is None
    assert await store.find_by_original_id(name, "1") is None
    assert await store.search(name, [1.0, 0.0, 0.0, 0.0], limit=10) == []


async def test_a_second_upsert_replaces_vector_and_metadata(store: VectorStore) -> None:
    name = await collection(store)
    await store.upsert(name, [NewPoint(1, [1.0, 0.0, 0.0, 0.0], {"a": 1, "b": 2}, "first")])
    await store.upsert(name, [NewPoint(1, [0.0, 1.0, 0.0, 0.0], {"a": 3})])
    assert await store.retrieve(name, 1, with_vector=True) == StoredPoint(1, {"a": 3}, [0.0, 1.0, 0.0, 0.0])
    assert await store.find_by_original_id(name, "first") is None
    assert (await store.collection(name)).points_count == 1


@pytest.mark.parametrize(
    "original",
    ["img-001", "../telemetry", "a/b", "..", ".", "x?y#z", "a\nb", "a\u0000b", '"quoted"', "\u0130\u200b", "e\u0301",
     "\U0001f600" * 500, " ", "x" * 1024],
)  # fmt: skip
async def test_an_original_id_finds_its_point_and_no_other(store: VectorStore, original: str) -> None:
    name = await collection(store)
    resolved = resolve_id(name, original)
    await store.upsert(
        name,
        [
            NewPoint(resolved.point_id, [1.0, 0.0, 0.0, 0.0], {"n": 1}, resolved.original),
            NewPoint(2, [1.0, 0.0, 0.0, 0.0], {"n": 2}, original + "."),
        ],
    )
    found = await store.find_by_original_id(name, original, with_vector=True)
    assert found == StoredPoint(resolved.point_id, {"n": 1, "_original_id": original}, [1.0, 0.0, 0.0, 0.0])


async def test_deletion_counts_what_existed(store: VectorStore) -> None:
    name = await collection(store)
    await store.upsert(name, [point(i) for i in range(100)])
    assert await store.delete(name, []) == 0
    assert await store.delete(name, [500, UUID]) == 0
    assert await store.delete(name, [7, 7, 7, 500]) == 1
    assert await store.delete(name, [7]) == 0
    assert await store.delete(name, list(range(150))) == 99
    assert (await store.collection(name)).points_count == 0


async def test_simultaneous_deletions_count_each_point_once(store: VectorStore) -> None:
    name = await collection(store)
    await store.upsert(name, [point(i) for i in range(50)])
    counts = await asyncio.gather(*(store.delete(name, list(range(50))) for _ in range(4)))
    assert sorted(counts) == [0, 0, 0, 50]


async def test_a_vector_of_another_length_is_refused_whole(store: VectorStore) -> None:
    name = await collection(store, 4)
    with pytest.raises(DimensionMismatch):
        await store.upsert(name, [point(1), point(2, [1.0, 0.0, 0.0])])
    with pytest.raises(DimensionMismatch):
        await store.search(name, [1.0, 0.0, 0.0, 0.0, 0.0], limit=1)
    assert (await store.collection(name)).points_count == 0


async def test_simultaneous_writers_lose_nothing(store: VectorStore) -> None:
    name = await collection(store)

    async def write(writer: int) -> None:
        for i in range(40):
            await store.upsert(name, [point(writer * 1000 + i, writer=writer, i=i)])

    await asyncio.gather(*(write(writer) for writer in range(8)))
    assert (await store.collection(name)).points_count == 320
    for writer in range(8):
        found = await store.retrieve(name, writer * 1000 + 39)
        assert found is not None
        assert found.metadata == {"writer": writer, "i": 39}


# --- searching --------------------------------------------------------------------------------------------------------

# for the query (1, 0): the ids in order, and their scores
NEAREST: dict[Distance, list[tuple[int, float]]] = {
    "cosine": [(3, 1.0), (1, 1.0), (2, math.sqrt(0.5)), (4, 0.0), (5, -1.0)],
    "dot": [(3, 3.0), (2, 2.0), (1, 1.0), (4, 0.0), (5, -1.0)],
    "euclid": [(1, 0.0), (4, math.sqrt(2)), (3, 2.0), (5, 2.0), (2, math.sqrt(5))],
    "manhattan": [(1, 0.0), (3, 2.0), (5, 2.0), (4, 2.0), (2, 3.0)],
}


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclid", "manhattan"])
async def test_the_best_come_first(store: VectorStore, distance: Distance) -> None:
    name = await collection(store, 2, distance)
    vectors = {1: [1.0, 0.0], 2: [2.0, 2.0], 3: [3.0, 0.0], 4: [0.0, 1.0], 5: [-1.0, 0.0]}
    await store.upsert(name, [point(id, vector) for id, vector in vectors.items()])
    hits = await store.search(name, [1.0, 0.0], limit=10)
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in NEAREST[distance]], abs=1e-6)
    assert {hit.id: round(hit.score, 4) for hit in hits} == {id: round(score, 4) for id, score in NEAREST[distance]}
    assert [hit.score for hit in await store.search(name, [1.0, 0.0], limit=2)] == [hit.score for hit in hits[:2]]


def test_a_threshold_that_is_reached_counts() -> None:
    def ids(distance: Distance, threshold: float | None, *scores: float) -> list[float]:
        return [p.score for p in best([ScoredPoint(1, score, {}) for score in scores], distance, threshold)]

    third = 0.8999999761581421  # 0.9 as the engine's 32 bits hold it
    assert ids("cosine", 0.9, 0.95, third, 0.89) == [0.95, third]
    assert ids("dot", 0.9, 7.0, third, 0.89) == [7.0, third]
    assert ids("euclid", 0.9, 0.0, third, 0.91) == [0.0, third]
    assert ids("manhattan", 0, 0.0, 0.1) == [0.0]
    assert ids("cosine", None, 1.0000001, -1.0000001) == [1.0, -1.0]
    assert ids("dot", 1e300, 7.0) == []
    assert ids("dot", -1e300, 7.0) == [7.0]


# --- filters ----------------------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "int 1": 1,
    "float 1": 1.0,
    "int 2": 2,
    "float 1.5": 1.5,
    "zero": 0,
    "minus zero": -0.0,
    "true": True,
    "false": False,
    "null": None,
    "text 1": "1",
    "text true": "true",
    "text a": "a",
    "text A": "A",
    "empty text": "",
    "long text": "z" * 5000,
    "odd text": 'a"b\\c\u0000\u00e9',
    "2**53": 2**53,
    "2**53 + 1": 2**53 + 1,
    "float 2**53": float(2**53),
    "2**60": 2**60,
    "2**60 + 1": 2**60 + 1,
    "float 2**60": float(2**60),
    "largest": 2**64 - 1,
    "beyond": 2**64,
    "float beyond": 2.0**64,
    "smallest": -(2**63),
    "long float": 0.1 + 0.2,
    "short float": 0.3,
    "tiny": 5e-324,
    "list": ["a", 1, True, None, 2.5],
    "nested list": [["a", 1, True]],
    "empty list": [],
    "object": {"b": "a", "c": {"d": 1.25}, "e": False},
    "list of objects": [{"b": "a"}],
    "time": "2026-01-31T12:00:00Z",
    "same time": "2026-01-31T14:00:00+02:00",
    "later": "2026-01-31T12:00:00.000001Z",
    "no time": "2026-13-99T12:00:00Z",
}
ZERO, ONE = {"zero", "minus zero"}, {"int 1", "float 1", "list"}
NUMBERS_ABOVE_1 = {
    "int 2", "float 1.5", "2**53", "2**53 + 1", "float 2**53", "2**60", "2**60 + 1", "float 2**60", "largest", "beyond",
    "float beyond", "list",
}  # fmt: skip
FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"k": "a"}, {"text a", "list"}),
    ({"k": "A"}, {"text A"}),
    ({"k": ""}, {"empty text"}),
    ({"k": "1"}, {"text 1"}),
    ({"k": "true"}, {"text true"}),
    ({"k": "z" * 5000}, {"long text"}),
    ({"k": 'a"b\\c\u0000\u00e9'}, {"odd text"}),
    ({"k": True}, {"true", "list"}),
    ({"k": False}, {"false"}),
    ({"k": None}, {"null", "list"}),
    ({"k": 1}, ONE),
    ({"k": 1.0}, ONE),
    ({"k": 0}, ZERO),
    ({"k": -0.0}, ZERO),
    ({"k": 1.5}, {"float 1.5"}),
    ({"k": 2.5}, {"list"}),
    ({"k": 2**53 + 1}, {"2**53 + 1"}),
    ({"k": 2**60}, {"2**60", "float 2**60"}),
    ({"k": float(2**60)}, {"2**60", "float 2**60"}),
    ({"k": 2**60 + 1}, {"2**60 + 1"}),
    ({"k": 2**64 - 1}, {"largest"}),
    ({"k": 2**64}, {"beyond", "float beyond"}),
    ({"k": -(2**63)}, {"smallest"}),
    ({"k": 0.1 + 0.2}, {"long float"}),
    ({"k": 5e-324}, {"tiny"}),
    ({"k": 3}, set()),
    ({"k": ["a", "A", "nothing"]}, {"text a", "text A", "list"}),
    ({"k": [1, 2]}, ONE | {"int 2"}),
    ({"k": [*range(1, 1000)]}, ONE | {"int 2"}),
    ({"k": [*range(10), 1.5, 2**60]}, ONE | ZERO | {"int 2", "float 1.5", "2**60", "float 2**60"}),
    ({"k": ["a", 2, True, None, 1.5]}, {"text a", "list", "int 2", "true", "null", "float 1.5"}),
    ({"k": [True, False]}, {"true", "false", "list"}),
    ({"k": {"gt": 1}}, NUMBERS_ABOVE_1),
    ({"k": {"gte": 1}}, NUMBERS_ABOVE_1 | ONE),
    ({"k": {"gte": 1, "lt": 1.5}}, ONE),
    ({"k": {"gt": 1, "lte": 1.5}}, {"float 1.5"}),
    ({"k": {"lt": 0}}, {"smallest"}),
    ({"k": {"gt": 2, "lt": 1}}, set()),
    ({"k": {"gte": "2026-01-31T12:00:00Z"}}, {"time", "same time", "later"}),
    ({"k": {"gt": "2026-01-31T12:00:00Z"}}, {"later"}),
    ({"k": {"lte": "2026-01-31T13:00:00+01:00"}}, {"time", "same time"}),
    ({"k": {"gte": "2026-01-31T12:00:00Z", "lt": "2026-01-31T12:00:00.000001Z"}}, {"time", "same time"}),
    ({"k.b": "a"}, {"object"}),
    ({"k.c.d": 1.25}, {"object"}),
    ({"k.c.d": {"gt": 1}}, {"object"}),
    ({"k.e": False}, {"object"}),
    ({"k.c": "a"}, set()),
    ({"missing": None}, set()),
    ({"k": "a", "n": 0}, set()),
    ({"k": "a", "name": "text a"}, {"text a"}),
    ({"k": 1, "name": ["float 1", "text a"]}, {"float 1"}),
]


async def test_filters_mean_the_same_everywhere(store: VectorStore) -> None:
    """Twice, because the first pass makes payload indexes, which must not change any answer."""
    name = await collection(store)
    names = list(VALUES)
    await store.upsert(name, [point(i, k=VALUES[key], name=key) for i, key in enumerate(names)])

    async def found(filter_metadata: dict[str, Any]) -> set[str]:
        conditions = parse_filter(filter_metadata)
        hits = await store.search(name, [1.0, 0.0, 0.0, 0.0], limit=1000, conditions=conditions)
        return {hit.metadata["name"] for hit in hits}

    for attempt in ("scanned", "indexed"):
        for filter_metadata, expected in FILTERS:
            assert await found(filter_metadata) == expected, (attempt, filter_metadata)


async def test_keys_with_syntax_are_just_keys(store: VectorStore) -> None:
    name = await collection(store)
    for key in ["a b", "a[0]", "a[]", "\u65e5\u672c", "$", "a'b", "*", "0", "a:b", "a\nb", "x" * 500]:
        await store.upsert(name, [point(1, **{key: {key: "v"}}), point(2, **{key: "v"}), point(3, a=["v"], b="v")])
        for path, expected in ((f"{key}.{key}", [1]), (key, [2])):
            conditions = parse_filter({path: "v"})
            for _ in range(2):
                hits = await store.search(name, [1.0, 0.0, 0.0, 0.0], limit=10, conditions=conditions)
                assert [hit.id for hit in hits] == expected, path


async def test_filters_are_applied_before_the_limit(store: VectorStore) -> None:
    name = await collection(store, 2)
    await store.upsert(name, [point(i, [1.0, i / 1000], odd=bool(i % 2), i=i) for i in range(200)])
    conditions = parse_filter({"odd": True, "i": {"gte": 100}})
    hits = await store.search(name, [1.0, 0.0], limit=3, conditions=conditions)
    assert [hit.id for hit in hits] == [101, 103, 105]


async def test_points_of_other_programs_are_found_by_their_plain_values(store: VectorStore) -> None:
    """A payload without the private key: what an existing collection holds."""
    name = await collection(store)
    payloads: dict[int, dict[str, Any]] = {
        1: {"k": 1, "f": 0.5, "t": "a", "_original_id": "old"},
        2: {"k": 2**60},
        3: {"_vision": "theirs"},
    }
    if isinstance(store, QdrantEdgeStore):
        points = [qdrant_edge.Point(id=i, vector=[1.0, 0.0, 0.0, 0.0], payload=p) for i, p in payloads.items()]
        store._shards[name]._shard.update(qdrant_edge.UpdateOperation.upsert_points(points))
    else:
        assert isinstance(store, QdrantServerStore)
        from qdrant_client import models

        structs = [models.PointStruct(id=i, vector=[1.0, 0.0, 0.0, 0.0], payload=p) for i, p in payloads.items()]
        await store._client.upsert(name, structs)
    for filter_metadata, expected in (({"k": 1}, 1), ({"f": 0.5}, 1), ({"t": "a"}, 1), ({"k": 2**60}, 2)):
        conditions = parse_filter(filter_metadata)
        hits = await store.search(name, [1.0, 0.0, 0.0, 0.0], limit=10, conditions=conditions)
        assert [hit.id for hit in hits] == [expected]
    assert await store.find_by_original_id(name, "old") == StoredPoint(1, payloads[1])
    assert await store.retrieve(name, 3) == StoredPoint(3, {})
