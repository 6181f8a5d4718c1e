"""How the vector service asks the clip service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from peer_server import Handler, served
from qdrant_service.embedder import ClipEmbedder, EmbeddingModel
from vector_service import PPM, PPM_TYPE
from visionstack.errors import UpstreamError
from visionstack.peers import Peer
from visionstack.routes import TIMEOUT_HEADER
from visionstack.schemas import Embedding

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def asking(respond: Handler) -> AsyncIterator[ClipEmbedder]:
    async with served(respond) as url:
        embedder = ClipEmbedder(Peer("clip", [url], timeout_s=5))
        yield embedder
        await embedder.aclose()


async def test_the_clip_service_is_asked_as_it_answers() -> None:
    paths: list[str] = []

    async def respond(request: web.BaseRequest) -> web.Response:
        paths.append(request.path)
        if request.path == "/embed":
            assert (await request.read(), request.content_type) == (PPM, PPM_TYPE)
            assert 0 < int(request.headers[TIMEOUT_HEADER]) <= 5000
        elif len(paths) == 2:
            assert await request.json() == {"text": "red"}
        return web.json_response({"vector": [0.6, 0.8], "model": "m", "dim": 2})

    async with asking(respond) as embedder:
        expected = Embedding(vector=[0.6, 0.8], model="m", dim=2)
        assert await embedder.embed_image(PPM, PPM_TYPE) == expected
        assert await embedder.embed_text("red") == expected
        assert await embedder.describe() == EmbeddingModel("m", 2)
    assert paths == ["/embed", "/embed/text", "/embed/text"]


@pytest.mark.parametrize(
    "answer", [{}, [], {"vector": [1.0], "model": "m", "dim": 2}, {"vector": "x", "model": "m", "dim": 1}]
)
async def test_another_shape_is_the_clip_services_failure(answer: Any) -> None:
    async def respond(_: web.BaseRequest) -> web.Response:
        return web.json_response(answer)

    async with asking(respond) as embedder:
        with pytest.raises(UpstreamError):
            await embedder.embed_text("a")
