"""A collection of many points in the embedded store's folder, and what exact search finds in it.

The vectors are like those of pictures: few directions carry most of what differs. Evenly random ones have no
neighbours worth the name, and an index that fails on them says nothing.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calls import answer

Matrix = npt.NDArray[np.float32]

DIM = 512
_INNER_DIM = 32
_NOISE = 0.15
_CHUNK = 1000


def vectors(count: int, seed: int) -> Matrix:
    """Unit vectors, float32, (count, 512)."""
    mixing = np.random.default_rng(7).normal(size=(_INNER_DIM, DIM)).astype(np.float32) / _INNER_DIM**0.5
    rng = np.random.default_rng(seed)
    inner = rng.normal(size=(count, _INNER_DIM)).astype(np.float32)
    rows: Matrix = inner @ mixing + _NOISE * rng.normal(size=(count, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def fill(folder: str, count: int, seed: int) -> float:
    """Writes the points 0 to `count` - 1; returns points a second."""
    return asyncio.run(_fill(Path(folder), count, seed))


async def _fill(folder: Path, count: int, seed: int) -> float:
    from qdrant_service.edge_store import QdrantEdgeStore
    from qdrant_service.store import CollectionConfig, NewPoint

    rows = vectors(count, seed)
    store = QdrantEdgeStore(folder, timeout_s=600)
    await store.open()
    try:
        await store.create_collection(CollectionConfig("images", DIM, "cosine"))
        began = time.perf_counter()
        for start in range(0, count, _CHUNK):
            chunk = rows[start : start + _CHUNK]
            points = [NewPoint(start + index, row.tolist(), {"n": start + index}) for index, row in enumerate(chunk)]
            await store.upsert("images", points)
        return count / (time.perf_counter() - began)
    finally:
        await store.close()


def queries(count: int, seed: int, points: int, points_seed: int, limit: int) -> dict[str, Any]:
    """Vectors to search for, and the ids of the nearest points of each, by brute force."""
    rows, wanted = vectors(points, points_seed), vectors(count, seed)
    nearest = np.argsort(-(wanted @ rows.T), axis=1)[:, :limit]
    return {"vectors": wanted.tolist(), "ids": nearest.tolist()}


if __name__ == "__main__":
    answer({"fill": fill, "queries": queries})
