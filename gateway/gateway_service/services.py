"""The services behind the gateway as typed calls; how a call travels is `visionstack.peers`' business."""

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from visionstack.errors import UpstreamError
from visionstack.model_service import PPM_TYPE
from visionstack.peers import Peer
from visionstack.schemas import BlipOptions, Caption, ClipOptions, Detection, Embedding, TagScore, YoloOptions

from .intake import Received
from .settings import GatewaySettings

T = TypeVar("T")

_TAGS = TypeAdapter(list[TagScore])
_CAPTIONS = TypeAdapter(list[Caption])
_DETECTIONS = TypeAdapter(list[Detection])
_EMBEDDING = TypeAdapter(Embedding)


def checked(adapter: TypeAdapter[T], answer: Any, name: str) -> T:
    """The answer as its schema; an answer of another shape is the service's failure."""
    try:
        return adapter.validate_python(answer)
    except ValidationError as exc:
        raise UpstreamError(log_detail=f"{name} answered another shape: {exc.error_count()} errors") from exc


@dataclass(frozen=True, slots=True)
class Services:
    clip: Peer
    blip: Peer
    yolo: Peer
    qdrant: Peer

    @classmethod
    def from_settings(cls, settings: GatewaySettings) -> "Services":
        return cls(
            clip=Peer("clip", settings.clip_url, timeout_s=settings.clip_timeout_s),
            blip=Peer("blip", settings.blip_url, timeout_s=settings.blip_timeout_s),
            yolo=Peer("yolo", settings.yolo_url, timeout_s=settings.yolo_timeout_s),
            qdrant=Peer("qdrant", settings.qdrant_svc_url, timeout_s=settings.qdrant_timeout_s),
        )

    async def aclose(self) -> None:
        for peer in (self.clip, self.blip, self.yolo, self.qdrant):
            await peer.aclose()

    async def tags(self, picture: Received, options: ClipOptions) -> list[TagScore]:
        if options.tags is None:
            answer = await self._analyze(self.clip, picture, {"limit": options.limit})
        else:
            answer = await self.clip.post(
                "/analyze/tags",
                files={"file": ("picture.ppm", picture.ppm, PPM_TYPE)},
                data={"limit": str(options.limit), "tags": options.tags},
            )
        return checked(_TAGS, answer, "clip")

    async def captions(self, picture: Received, options: BlipOptions) -> list[Caption]:
        params = {"variants": options.variants, "max_length": options.max_length}
        return checked(_CAPTIONS, await self._analyze(self.blip, picture, params), "blip")

    async def detections(self, picture: Received, options: YoloOptions) -> list[Detection]:
        found = checked(_DETECTIONS, await self._analyze(self.yolo, picture, {"conf": options.conf}), "yolo")
        return [picture.in_original_pixels(detection) for detection in found]

    async def embed(self, picture: Received) -> Embedding:
        answer = await self.clip.post("/embed", content=picture.ppm, content_type=PPM_TYPE)
        return checked(_EMBEDDING, answer, "clip")

    async def embed_text(self, text: str) -> Embedding:
        return checked(_EMBEDDING, await self.clip.post("/embed/text", json={"text": text}), "clip")

    @staticmethod
    async def _analyze(peer: Peer, picture: Received, params: dict[str, Any]) -> Any:
        return await peer.post("/analyze", params=params, content=picture.ppm, content_type=PPM_TYPE)
