"""Points that tests tell apart by number: each has a direction of its own, and its number as id and metadata."""

import httpx2
import pytest


def vector(number: int) -> list[float]:
    """Different directions for all numbers below 512 * 512."""
    values = [0.0] * 512
    values[number % 512] += 1.0
    values[(number // 512 + number + 1) % 512] += 0.5
    return values


def upsert(api: httpx2.Client, collection: str, number: int) -> httpx2.Response:
    body = {"vector": vector(number), "id": number, "metadata": {"n": number}, "collection": collection}
    return api.post("/vectors/upsert/vector", json=body)


def assert_found(api: httpx2.Client, collection: str, number: int) -> None:
    body = {"vector": vector(number), "limit": 1, "collection": collection}
    answer = api.post("/vectors/search/vector", json=body)
    assert answer.status_code == 200, answer.text
    (hit,) = answer.json()
    assert (hit["id"], hit["metadata"]) == (number, {"n": number})
    assert hit["score"] == pytest.approx(1, abs=1e-3)
