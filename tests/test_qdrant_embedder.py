"""How the vector service asks the clip service."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from qdrant_service.embedder import ClipEmbedder, EmbeddingModel
from vector_service import PPM, PPM_TYPE
from visionstack.errors import UpstreamError
from visionstack.peers import Peer
from visionstack.routes import TIMEOUT_HEADER
from visionstack.schemas import Embedding

pytestmark = pytest.mark.anyio


def clip(respond: Callable[[httpx2.Request], httpx2.Response]) -> ClipEmbedder:
    return ClipEmbedder(Peer("clip", ["http://clip:8000"], timeout_s=5, transport=httpx2.MockTransport(respond)))


async def test_the_clip_service_is_asked_as_it_answers() -> None:
    seen: list[httpx2.Request] = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"vector": [0.6, 0.8], "model": "m", "dim": 2})

    embedder = clip(respond)
    expected = Embedding(vector=[0.6, 0.8], model="m", dim=2)
    assert await embedder.embed_image(PPM, PPM_TYPE) == expected
    assert await embedder.embed_text("red") == expected
    assert await embedder.describe() == EmbeddingModel("m", 2)
    assert [request.url.path for request in seen] == ["/embed", "/embed/text", "/embed/text"]
    assert (seen[0].content, seen[0].headers["content-type"]) == (PPM, PPM_TYPE)
    assert json.loads(seen[1].content) == {"text": "red"}
    assert 0 < int(seen[0].headers[TIMEOUT_HEADER]) <= 5000
    await embedder.aclose()


@pytest.mark.parametrize(
    "answer", [{}, [], {"vector": [1.0], "model": "m", "dim": 2}, {"vector": "x", "model": "m", "dim": 1}]
)
async def test_another_shape_is_the_clip_services_failure(answer: Any) -> None:
    embedder = clip(lambda _: httpx2.Response(200, json=answer))
    with pytest.raises(UpstreamError):
        await embedder.embed_text("a")
    await embedder.aclose()
