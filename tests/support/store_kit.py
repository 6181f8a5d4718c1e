"""What the tests of the vector stores share."""

import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.server_store import QdrantServerStore
from qdrant_service.store import CollectionConfig, NewPoint, VectorStore
from qdrant_wire import QdrantWire
from visionstack.schemas import Distance

TEST_SERVER, TEST_SERVER_KEY = os.environ.get("QDRANT_TEST_URL", ""), os.environ.get("QDRANT_TEST_API_KEY")
KINDS = ["edge", "wire", *(["server"] if TEST_SERVER else [])]
UUID = "550e8400-e29b-41d4-a716-446655440000"


@contextmanager
def fast_folder() -> Iterator[Path]:
    """An empty folder, in memory where the system has such a place: the engine waits for the disk many times a test."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    with tempfile.TemporaryDirectory(dir=place, prefix="vision-test-") as folder:
        yield Path(folder)


def make_store(kind: str, folder: Path) -> VectorStore:
    """One of `KINDS`: the embedded engine, the server adapter on `QdrantWire`, the server in `QDRANT_TEST_URL`."""
    if kind == "edge":
        return QdrantEdgeStore(folder / "store", timeout_s=30)
    if kind == "wire":
        return QdrantServerStore("http://qdrant:6333", timeout_s=30, transport=QdrantWire())
    return QdrantServerStore(TEST_SERVER, api_key=TEST_SERVER_KEY, timeout_s=30)


async def collection(store: VectorStore, dim: int = 4, distance: Distance = "cosine", model: str | None = None) -> str:
    """A new collection; on a shared server its name meets no other."""
    name = f"t-{uuid.uuid4().hex}"
    await store.create_collection(CollectionConfig(name, dim, distance, model))
    return name


def point(id: int | str, vector: list[float] | None = None, /, **metadata: Any) -> NewPoint:
    return NewPoint(id, vector or [1.0, 0.0, 0.0, 0.0], metadata)


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[VectorStore]:
    store = make_store(request.param, folder)
    await store.open()
    yield store
    if request.param == "server":
        for info in await store.collections():
            if info.config.name.startswith("t-"):
                await store.delete_collection(info.config.name)
    await store.close()
