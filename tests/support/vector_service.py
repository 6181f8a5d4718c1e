"""The vector service as an app, with an embedder that needs no model and the adapter for a server that needs none."""

import hashlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from problems import assert_problem
from qdrant_service.app import create_app
from qdrant_service.embedder import EmbeddingModel
from qdrant_service.server_store import QdrantServerStore
from qdrant_service.settings import QdrantServiceSettings
from qdrant_service.store import VectorStore
from qdrant_wire import QdrantWire
from visionstack.errors import VisionError
from visionstack.inflight import time_left
from visionstack.schemas import Embedding

DIM = 4
PPM = b"P6 1 1 255\n\x00\r\n"
PPM_TYPE = "image/x-portable-pixmap"


class FakeEmbedder:
    """Equal bytes, equal unit vectors. `error` is raised instead; `asked` lists what came."""

    def __init__(self) -> None:
        self.model = EmbeddingModel("model-a", DIM)
        self.error: VisionError | None = None
        self.asked: list[tuple[Any, ...]] = []

    async def aclose(self) -> None:
        pass

    async def embed_image(self, data: bytes, content_type: str) -> Embedding:
        self.asked.append(("image", data, content_type))
        return self._embedding(data)

    async def embed_text(self, text: str) -> Embedding:
        self.asked.append(("text", text, time_left(30.0)))
        return self._embedding(text.encode())

    async def describe(self) -> EmbeddingModel:
        self.asked.append(("describe",))
        if self.error is not None:
            raise self.error
        return self.model

    def _embedding(self, data: bytes) -> Embedding:
        if self.error is not None:
            raise self.error
        numbers = [byte - 127.5 for byte in hashlib.sha256(data).digest()[: self.model.dim]]
        length = math.hypot(*numbers)
        return Embedding(vector=[number / length for number in numbers], model=self.model.name, dim=self.model.dim)


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def store() -> VectorStore:
    return QdrantServerStore("http://qdrant:6333", timeout_s=30, transport=QdrantWire())


@asynccontextmanager
async def client_of(store: VectorStore, embedder: FakeEmbedder) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app(QdrantServiceSettings(), store, embedder)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://qdrant-svc") as client,
    ):
        yield client


@pytest.fixture
async def client(store: VectorStore, embedder: FakeEmbedder) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(store, embedder) as client:
        yield client


def ok(response: httpx2.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


async def create(client: httpx2.AsyncClient, name: str, **config: Any) -> Any:
    return ok(await client.post("/collections", json={"name": name, **config}), 201)


async def upsert_file(client: httpx2.AsyncClient, data: bytes = PPM, **form: str) -> httpx2.Response:
    return await client.post("/upsert/file", files={"file": ("picture.ppm", data, PPM_TYPE)}, data=form)


async def upsert_vector(client: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    return await client.post("/upsert/vector", json={"vector": [1, 0, 0, 0]} | body)


def field_of(response: httpx2.Response) -> str:
    problem = assert_problem(response, 422, "invalid_request")
    (error,) = problem["errors"]
    return str(error["field"])
