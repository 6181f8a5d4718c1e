"""From a URL or an upload to the one working picture that every service gets: fetched once, decoded once."""

import time
from dataclasses import dataclass, field

from fastapi import UploadFile

from visionstack.decoder import Decoder
from visionstack.fetch import Fetcher
from visionstack.images import WorkingSize, to_ppm
from visionstack.inflight import hold
from visionstack.schemas import Detection, ImageInfo

_WORKING_SIZE = WorkingSize()


@dataclass(frozen=True, slots=True)
class Received:
    """A decoded picture: what the caller is told of it, and the pixels as the services get them."""

    info: ImageInfo
    ppm: bytes = field(repr=False)
    width: int
    height: int
    timings_ms: dict[str, float]

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


class Intake:
    """Both ways into the stack end here."""

    def __init__(self, fetcher: Fetcher, decoder: Decoder, max_image_bytes: int) -> None:
        self._fetcher = fetcher
        self._decoder = decoder
        self._max_image_bytes = max_image_bytes

    async def from_url(self, url: str) -> Received:
        started = time.perf_counter()
        data = await self._fetcher.fetch(url)
        return await self._decode(data, {"fetch": _ms_since(started)})

    async def from_upload(self, file: UploadFile) -> Received:
        # one byte more than allowed is enough for the decoder to refuse it by name of the limit
        return await self._decode(await file.read(self._max_image_bytes + 1), {})

    async def _decode(self, data: bytes, timings_ms: dict[str, float]) -> Received:
        started = time.perf_counter()
        picture = await self._decoder.decode(data, working_size=_WORKING_SIZE)
        height, width, _ = picture.pixels.shape
        hold(picture.pixels.nbytes)
        return Received(
            info=ImageInfo(width=picture.width, height=picture.height, format=picture.format),
            ppm=to_ppm(picture.pixels),
            width=width,
            height=height,
            timings_ms=timings_ms | {"decode": _ms_since(started)},
        )


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
