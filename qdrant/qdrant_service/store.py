"""What the service wants of a vector store, whichever engine is behind it.

Two adapters keep this protocol: `server_store.py` and `edge_store.py`. They raise nothing but errors of
`visionstack.errors`. What a point's id is, whether metadata is acceptable and which model embeds is decided before.
"""

import ctypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from visionstack.errors import DimensionMismatch
from visionstack.schemas import Distance

from .filters import Condition

COLLECTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# Indexes made on demand, so that clients who filter by ever new keys cannot grow them without end.
MAX_DEMANDED_INDEXES = 16


class StoreOpenError(Exception):
    """The store cannot be opened; the text is one line for the operator that says what to do."""


@dataclass(frozen=True, slots=True)
class CollectionConfig:
    """`embedding_model` is the model whose vectors the collection holds; None while no picture has been embedded."""

    name: str
    vector_dim: int
    distance: Distance
    embedding_model: str | None = None


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    config: CollectionConfig
    points_count: int
    status: str


@dataclass(frozen=True, slots=True)
class NewPoint:
    """`original_id` is kept in the metadata under `_original_id`."""

    id: int | str
    vector: Sequence[float]
    metadata: dict[str, Any]
    original_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """`vector` is None where it was not asked for; under cosine it has unit length."""

    id: int | str
    metadata: dict[str, Any]
    vector: list[float] | None = None


@dataclass(frozen=True, slots=True)
class ScoredPoint:
    """`score` is a similarity, or a distance for `euclid` and `manhattan`."""

    id: int | str
    score: float
    metadata: dict[str, Any]


class VectorStore(Protocol):
    """All methods but `open` and `close` raise `ServiceUnavailable` where the engine cannot be reached,
    `UpstreamTimeout` where it is too slow and `CollectionNotFound` for a collection that is not there."""

    engine: str

    async def open(self) -> None:
        """Raises `StoreOpenError`. A server that does not answer yet is no error."""

    async def close(self) -> None: ...

    async def ping(self) -> None:
        """Returns if the store can work."""

    async def collections(self) -> list[CollectionInfo]:
        """By name."""

    async def collection(self, name: str) -> CollectionInfo: ...

    async def create_collection(self, config: CollectionConfig) -> None:
        """Raises `CollectionExists`, whatever the config of the one that is there."""

    async def record_model(self, name: str, embedding_model: str) -> None:
        """Remember whose vectors the collection holds."""

    async def delete_collection(self, name: str) -> None: ...

    async def upsert(self, collection: str, points: Sequence[NewPoint]) -> None:
        """Returns once the points survive a kill. Raises `DimensionMismatch`."""

    async def search(
        self,
        collection: str,
        vector: Sequence[float],
        *,
        limit: int,
        conditions: Sequence[Condition] = (),
    ) -> list[ScoredPoint]:
        """Best first, with the engine's scores; see `best`. Raises `DimensionMismatch`."""

    async def retrieve(
        self, collection: str, point_id: int | str, *, with_vector: bool = False
    ) -> StoredPoint | None: ...

    async def find_by_original_id(
        self, collection: str, original_id: str, *, with_vector: bool = False
    ) -> StoredPoint | None: ...

    async def delete(self, collection: str, point_ids: Sequence[int | str]) -> int:
        """How many of the ids existed; one that is named twice counts once."""


def dimension_mismatch(collection: str, expected: int, got: int) -> DimensionMismatch:
    return DimensionMismatch(f"The collection {collection} holds vectors of {expected} numbers; this one has {got}.")


def best(points: Iterable[ScoredPoint], distance: Distance, threshold: float | None) -> list[ScoredPoint]:
    """The points that reach the threshold, in the order given.

    The engines leave out what equals the threshold, and compare 32-bit floats; a least similarity that is reached
    counts here. Rounding takes cosines past 1; here they end there.
    """
    if distance == "cosine":
        points = (ScoredPoint(p.id, min(1.0, max(-1.0, p.score)), p.metadata) for p in points)
    if threshold is None:
        return list(points)
    least = ctypes.c_float(threshold).value
    if distance in ("euclid", "manhattan"):
        return [point for point in points if point.score <= least]
    return [point for point in points if point.score >= least]
