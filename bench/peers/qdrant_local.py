"""qdrant-client's own local mode, the engine without a server that its documentation offers."""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qdrant_client import QdrantClient, models

from calls import answer
from fill_store import DIM, vectors

_CHUNK = 1000


def run(points: int, points_seed: int, count: int, seed: int) -> dict[str, Any]:
    """Milliseconds of each search for ten neighbours in memory."""
    client = QdrantClient(":memory:")
    client.create_collection("images", models.VectorParams(size=DIM, distance=models.Distance.COSINE))
    rows = vectors(points, points_seed)
    for start in range(0, points, _CHUNK):
        part = rows[start : start + _CHUNK]
        client.upsert(
            "images",
            models.Batch(
                ids=list(range(start, start + len(part))),
                vectors=part.tolist(),
                payloads=[{"n": start + index} for index in range(len(part))],
            ),
        )
    took = []
    for query in vectors(count + 1, seed).tolist():
        began = time.perf_counter()
        client.query_points("images", query=query, limit=10)
        took.append((time.perf_counter() - began) * 1000)
    return {"per_s": 1000 * count / sum(took[1:]), "ms": took[1:]}


if __name__ == "__main__":
    answer({"run": run})
