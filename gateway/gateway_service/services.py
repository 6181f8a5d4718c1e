"""The services behind the gateway as typed calls; how a call travels is `visionstack.peers`' business."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter, ValidationError

from visionstack.errors import UpstreamError
from visionstack.model_service import PPM_TYPE
from visionstack.peers import Peer, Reply
from visionstack.schemas import (
    BlipOptions,
    Caption,
    ClipOptions,
    Detection,
    Embedding,
    ImageInfo,
    TagScore,
    YoloOptions,
)

from .intake import Decoded, Received
from .results import Kept, Key, ResultCache
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
    results: ResultCache

    @classmethod
    def from_settings(cls, settings: GatewaySettings, registry: CollectorRegistry) -> "Services":
        return cls(
            clip=Peer("clip", settings.clip_url, timeout_s=settings.clip_timeout_s),
            blip=Peer("blip", settings.blip_url, timeout_s=settings.blip_timeout_s),
            yolo=Peer("yolo", settings.yolo_url, timeout_s=settings.yolo_timeout_s),
            qdrant=Peer("qdrant", settings.qdrant_svc_url, timeout_s=settings.qdrant_timeout_s),
            results=ResultCache(settings.result_cache_bytes, registry),
        )

    async def aclose(self) -> None:
        for peer in (self.clip, self.blip, self.yolo, self.qdrant):
            await peer.aclose()

    async def tags(self, picture: Received, options: ClipOptions) -> list[TagScore]:
        async def ask(decoded: Decoded) -> Reply:
            if options.tags is None:
                return await _analyze(self.clip, decoded, {"limit": options.limit})
            return await self.clip.call(
                "POST",
                "/analyze/tags",
                form={"file": decoded.file, "limit": str(options.limit), "tags": options.tags},
            )

        parameters = options.limit, None if options.tags is None else tuple(options.tags)
        return await self._answer(self.clip, picture, parameters, _TAGS, ask)

    async def captions(self, picture: Received, options: BlipOptions) -> list[Caption]:
        async def ask(decoded: Decoded) -> Reply:
            return await _analyze(self.blip, decoded, {"variants": options.variants, "max_length": options.max_length})

        return await self._answer(self.blip, picture, (options.variants, options.max_length), _CAPTIONS, ask)

    async def detections(self, picture: Received, options: YoloOptions) -> list[Detection]:
        async def ask(decoded: Decoded) -> Reply:
            return await _analyze(self.yolo, decoded, {"conf": options.conf})

        def in_original_pixels(found: list[Detection], decoded: Decoded) -> list[Detection]:
            return [decoded.in_original_pixels(detection) for detection in found]

        return await self._answer(self.yolo, picture, options.conf, _DETECTIONS, ask, in_original_pixels)

    async def embed(self, picture: Received) -> Embedding:
        async def ask(decoded: Decoded) -> Reply:
            return await self.clip.call("POST", "/embed", content=decoded.ppm, content_type=PPM_TYPE)

        return await self._answer(self.clip, picture, "embed", _EMBEDDING, ask)

    async def embed_text(self, text: str) -> Embedding:
        return checked(_EMBEDDING, await self.clip.post("/embed/text", json={"text": text}), "clip")

    async def info(self, picture: Received) -> ImageInfo:
        """Size and format of the picture; kept like an answer, so that a picture need not be decoded for it again."""
        if not self.results.enabled:
            return (await picture.decoded()).info
        key = Key("image", await picture.digest(), None)
        if kept := self.results.get(key):
            return ImageInfo.model_validate_json(kept.value)
        info = (await picture.decoded()).info
        self.results.put(key, Kept(info.model_dump_json().encode(), None))
        return info

    async def _answer(
        self,
        peer: Peer,
        picture: Received,
        parameters: Hashable,
        adapter: TypeAdapter[T],
        ask: Callable[[Decoded], Awaitable[Reply]],
        finish: Callable[[T, Decoded], T] = lambda answer, _: answer,
    ) -> T:
        """The service's answer for a picture: a kept one, or what `ask` gets, after `finish`.

        A kept answer counts only while the very process that gave it still works, which a service that is down is
        taken to do for a second at most: so never after it came back with another model. Errors are not kept.
        """
        key = None
        if self.results.enabled:
            key = Key(peer.name, await picture.digest(), parameters)
            kept = self.results.get(key)
            hit = kept is not None and kept.instance in await peer.instances()
            self.results.count(peer.name, hit=hit)
            if kept is not None and hit:
                with picture.timed(peer.name):
                    return adapter.validate_json(kept.value)
        decoded = await picture.decoded()
        with picture.timed(peer.name):
            reply = await ask(decoded)
        answer = finish(checked(adapter, reply.body, peer.name), decoded)
        if key is not None and reply.instance is not None:
            self.results.put(key, Kept(adapter.dump_json(answer), reply.instance))
        return answer


async def _analyze(peer: Peer, picture: Decoded, params: dict[str, Any]) -> Reply:
    return await peer.call("POST", "/analyze", params=params, content=picture.ppm, content_type=PPM_TYPE)
