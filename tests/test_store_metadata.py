"""Metadata comes back from every vector store exactly as it went in."""

import asyncio
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdrant_service.payload import check_metadata
from qdrant_service.store import NewPoint, VectorStore
from store_kit import KINDS, collection, make_store, point
from store_kit import folder as folder
from store_kit import store as store
from visionstack.errors import InvalidRequest

pytestmark = pytest.mark.anyio


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
KEYS = (TEXTS | st.sampled_from(["", "a.b", "a[0]", "match", "json", "_id", 'a"b'])).filter(
    lambda key: key not in ("_vision", "_original_id")
)
METADATA = st.dictionaries(
    KEYS,
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)),
    max_size=5,
)


def exact(value: object) -> str:
    """Tells 1 from 1.0 and 0.0 from -0.0, which `==` does not."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("original", [None, "img-001"])
def test_metadata_comes_back_exactly(kind: str, original: str | None, folder: Path) -> None:
    with asyncio.Runner() as runner:
        store = make_store(kind, folder)
        runner.run(store.open())
        name = runner.run(collection(store))

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(METADATA)
        def check(metadata: dict[str, Any]) -> None:
            check_metadata(metadata)
            sent = exact(metadata)
            runner.run(store.upsert(name, [NewPoint(1, [1.0, 0.0, 0.0, 0.0], metadata, original)]))
            assert exact(metadata) == sent  # the caller's object is not touched
            expected = exact(metadata | ({"_original_id": original} if original else {}))
            found = runner.run(store.retrieve(name, 1))
            assert found is not None
            assert exact(found.metadata) == expected
            (hit,) = runner.run(store.search(name, [1.0, 0.0, 0.0, 0.0], limit=1))
            assert exact(hit.metadata) == expected

        check()
        runner.run(store.delete_collection(name))
        runner.run(store.close())


async def test_floats_of_every_size_come_back_exactly(store: VectorStore) -> None:
    """The engine's own reader is off by a digit for a quarter of the long ones, and for a few of the short ones."""
    generator = random.Random(7)
    long = [generator.random() for _ in range(500)]
    long += [math.ldexp(generator.random(), generator.randint(-1070, 1020)) for _ in range(500)]
    short = [float(f"{generator.randrange(10**15)}e{generator.randint(-25, 22)}") for _ in range(1000)]
    name = await collection(store)
    metadata = {str(i): number for i, number in enumerate(long)}
    await store.upsert(name, [point(1, **metadata)])
    found = await store.retrieve(name, 1)
    assert found is not None
    assert found.metadata == metadata
    # each in a point of its own: one number that is altered makes the whole metadata kept as text
    await store.upsert(name, [point(i, k=number) for i, number in enumerate(short)])
    hits = await store.search(name, [1.0, 0.0, 0.0, 0.0], limit=1000)
    assert {hit.id: hit.metadata for hit in hits} == {i: {"k": number} for i, number in enumerate(short)}


async def test_metadata_at_its_limits_is_kept(store: VectorStore) -> None:
    name = await collection(store)
    large = {"k": "x" * (64 * 1024 - 8)}
    for metadata in ({"k": 1.5, "deep": _nested(63)}, large):
        check_metadata(metadata)
        await store.upsert(name, [point(1, **metadata)])
        found = await store.retrieve(name, 1)
        assert found is not None
        assert found.metadata == metadata


def _nested(levels: int) -> Any:
    value: Any = True
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"_vision": 1}, "the key _vision is reserved"),
        ({"k": "x" * (64 * 1024 - 7)}, "has 65537 bytes as JSON; at most 65536"),
        ({"k": "\u00e9" * 40_000}, "has 80008 bytes as JSON; at most 65536"),
        ({"k": _nested(64)}, "nests deeper than 64 levels"),
        ({"k": _nested(20_000)}, "nests deeper than 64 levels"),
        ({"k": float("nan")}, "holds a number that is not finite or too long"),
        ({"k": [-math.inf]}, "holds a number that is not finite or too long"),
        ({"k": 10**5000}, "holds a number that is not finite or too long"),
        ({"k": "\ud800"}, "is not valid Unicode: it holds half of a surrogate pair"),
        ({"\udfff": 1}, "is not valid Unicode: it holds half of a surrogate pair"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_metadata_that_cannot_be_kept_is_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_metadata(metadata)
    assert caught.value.errors == [{"field": "metadata", "message": message}]
