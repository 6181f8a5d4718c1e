"""Who turns pictures and texts into vectors: the CLIP service, as this service sees it."""

from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from visionstack.errors import UpstreamError
from visionstack.peers import Peer
from visionstack.schemas import Embedding


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """`name` tells models apart whose vectors must not meet in one collection."""

    name: str
    dim: int


class Embedder(Protocol):
    """All methods raise the embedding service's own `VisionError`, that it cannot be reached, or that time is up."""

    async def embed_image(self, data: bytes, content_type: str) -> Embedding: ...

    async def embed_text(self, text: str) -> Embedding: ...

    async def describe(self) -> EmbeddingModel: ...

    async def aclose(self) -> None: ...


class ClipEmbedder:
    """The CLIP service behind a `Peer`. Pictures go there byte for byte; nothing is decoded here."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def aclose(self) -> None:
        await self._peer.aclose()

    async def embed_image(self, data: bytes, content_type: str) -> Embedding:
        return _checked(await self._peer.post("/embed", content=data, content_type=content_type))

    async def embed_text(self, text: str) -> Embedding:
        return _checked(await self._peer.post("/embed/text", json={"text": text}))

    async def describe(self) -> EmbeddingModel:
        # asked anew each time, because the service may have come back with another model
        embedding = await self.embed_text("a")
        return EmbeddingModel(embedding.model, embedding.dim)


def _checked(answer: Any) -> Embedding:
    try:
        embedding = Embedding.model_validate(answer)
    except ValidationError as exc:
        raise UpstreamError(log_detail=f"clip answered another shape: {exc.error_count()} errors") from exc
    if len(embedding.vector) != embedding.dim:
        raise UpstreamError(log_detail=f"clip answered {len(embedding.vector)} numbers and says {embedding.dim}")
    return embedding
