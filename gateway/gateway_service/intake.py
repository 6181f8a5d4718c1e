"""From a URL or an upload to the one working picture that every service gets: fetched once, decoded at most once."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import UploadFile

from visionstack.decoder import Decoder
from visionstack.fetch import Fetcher
from visionstack.images import WorkingSize
from visionstack.inflight import hold
from visionstack.model_service import PPM_TYPE
from visionstack.peers import File
from visionstack.schemas import Detection, ImageInfo

_WORKING_SIZE = WorkingSize()
# Hashing more than this would hold up the event loop for a millisecond or two.
_HASHED_AT_ONCE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the caller is told of a picture, and its pixels as the services get them."""

    info: ImageInfo
    ppm: bytes = field(repr=False)
    width: int
    height: int

    @property
    def file(self) -> File:
        """The pixels as a form's part."""
        return File("picture.ppm", self.ppm, PPM_TYPE)

    def in_original_pixels(self, detection: Detection) -> Detection:
        """The same box on the picture as it was sent, upright and inside its borders."""
        x_scale, y_scale = self.info.width / self.width, self.info.height / self.height
        x1, y1, x2, y2 = detection.bbox
        bbox = (
            round(min(max(x1 * x_scale, 0.0), self.info.width), 2),
            round(min(max(y1 * y_scale, 0.0), self.info.height), 2),
            round(min(max(x2 * x_scale, 0.0), self.info.width), 2),
            round(min(max(y2 * y_scale, 0.0), self.info.height), 2),
        )
        return detection.model_copy(update={"bbox": bbox})


class Received:
    """A picture as it came in. It is decoded when somebody first needs its pixels: a kept answer needs none."""

    def __init__(
        self, data: bytes, decode: Callable[[bytes], Coroutine[Any, Any, Decoded]], timings_ms: dict[str, float]
    ) -> None:
        self.timings_ms = timings_ms
        self._data = data
        self._decode = decode
        self._hashing = asyncio.Lock()
        self._digest: bytes | None = None
        self._decoding: asyncio.Task[Decoded] | None = None
        self._waiting = 0
        self._held = False

    async def digest(self) -> bytes:
        """SHA-256 of the bytes as they came; whoever wants it asks before anybody asks for the pixels."""
        async with self._hashing:
            if self._digest is None:
                hashing = hashlib.sha256
                large = len(self._data) > _HASHED_AT_ONCE
                self._digest = (await asyncio.to_thread(hashing, self._data) if large else hashing(self._data)).digest()
        return self._digest

    async def decoded(self) -> Decoded:
        """Raises what `Decoder.decode` raises, and `Overloaded` where the server can hold no more pixels."""
        if self._decoding is None:
            self._decoding = asyncio.create_task(self._timed_decode())
        decoding = self._decoding
        self._waiting += 1
        try:
            decoded = await asyncio.shield(decoding)  # one who leaves does not take it from the others
        finally:
            self._waiting -= 1
            if not self._waiting and not decoding.done():
                decoding.cancel()
                self._decoding = None
        if not self._held:  # here and not in the task, which may end after the request
            hold(len(decoded.ppm))
            self._held = True
        return decoded

    async def _timed_decode(self) -> Decoded:
        with self.timed("decode"):
            decoded = await self._decode(self._data)
        self._data = b""  # nobody needs them any more
        return decoded

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[name] = _ms_since(started)


class Intake:
    """Both ways into the stack end here."""

    def __init__(self, fetcher: Fetcher, decoder: Decoder, max_image_bytes: int) -> None:
        self._fetcher = fetcher
        self._decoder = decoder
        self._max_image_bytes = max_image_bytes

    async def from_url(self, url: str) -> Received:
        started = time.perf_counter()
        data = await self._fetcher.fetch(url)
        return Received(data, self._decode, {"fetch": _ms_since(started)})

    async def from_upload(self, file: UploadFile) -> Received:
        # one byte more than allowed is enough for the decoder to refuse it by name of the limit
        return Received(await file.read(self._max_image_bytes + 1), self._decode, {})

    async def _decode(self, data: bytes) -> Decoded:
        picture = await self._decoder.decode(data, working_size=_WORKING_SIZE)
        height, width, _ = picture.pixels.shape
        return Decoded(
            info=ImageInfo(width=picture.width, height=picture.height, format=picture.format),
            ppm=picture.to_ppm(),
            width=width,
            height=height,
        )


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
