"""From an image file's bytes to an upright RGB picture. Pure and synchronous; `decoder` runs it where it can be killed.

Formats are recognised by content against an allow-list, size limits are read from the header before anything is
decoded, and whatever a decoder raises becomes one of three errors: too large, not an accepted format, damaged. Only the
first frame of an animation is ever looked at, and of the metadata only the EXIF orientation. Colour profiles are
ignored, as the reference libraries of the models ignore them.
"""

import io
import re
import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import ImageTooLarge, InvalidImage, UnsupportedMediaType, VisionError
from .settings import ImageSettings

Pixels = npt.NDArray[np.uint8]

# Pillow's plugins by our names; only the one that the bytes call for is ever tried.
_PLUGINS = {"jpeg": ("JPEG", "MPO"), "png": ("PNG",), "webp": ("WEBP",), "gif": ("GIF",), "avif": ("AVIF",)}
_AVIF_BRANDS = (b"avif", b"avis")

_MAX_SIDE = 32_767
# A progressive JPEG repeats its last scan for 100 bytes a time and half a second of CPU; real files have about ten.
_MAX_SCANS = 100
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may cost: bytes of the file, pixels of the picture, CPU seconds of its decoding."""

    max_bytes: int
    max_pixels: int
    formats: tuple[str, ...]
    decode_timeout_s: float

    @classmethod
    def from_settings(cls, settings: ImageSettings) -> Self:
        return cls(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            formats=settings.image_formats,
            decode_timeout_s=settings.decode_timeout_s,
        )


@dataclass(frozen=True, slots=True)
class WorkingSize:
    """A picture is scaled down to this short or long side, whichever leaves more: no model wants more of it."""

    short: int = 576
    long: int = 1024

    def scale(self, width: int, height: int) -> float:
        """At most 1: pictures are never scaled up."""
        return min(1.0, max(self.short / min(width, height), self.long / max(width, height)))


@dataclass(frozen=True, slots=True)
class Picture:
    """`pixels` is uint8 RGB of shape (height, width, 3); `width` and `height` are the upright original's."""

    pixels: Pixels
    width: int
    height: int
    format: str


def sniff(data: bytes) -> str | None:
    """The format that the first bytes announce, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[4:8] == b"ftyp" and _has_avif_brand(data):
        return "avif"
    return None


def _has_avif_brand(data: bytes) -> bool:
    size = int.from_bytes(data[:4], "big")
    brands = data[8 : min(size, 256)]
    return any(brands[start : start + 4] in _AVIF_BRANDS for start in range(0, len(brands), 4))


def decode(data: bytes, limits: ImageLimits, *, working_size: WorkingSize | None = None) -> Picture:
    """The upright picture, scaled down to `working_size` if one is given.

    Raises `ImageTooLarge`, `UnsupportedMediaType` or `InvalidImage`.
    """
    if not data:
        raise InvalidImage("The image is empty; send the file's bytes.")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"The image may hold at most {limits.max_bytes} bytes; send a smaller file.")
    image_format = sniff(data)
    if image_format is None or image_format not in limits.formats:
        raise UnsupportedMediaType(f"This is not an image of an accepted format; send one of {', '.join(limits.formats)}.")
    if image_format == "jpeg":
        _refuse_many_scans(data)
    try:
        with warnings.catch_warnings():
            # the pixel limit below is ours; Pillow's warning has another one
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_PLUGINS[image_format]) as image:
                return _decode_opened(image, image_format, limits, working_size)
    except VisionError:
        raise
    except Image.DecompressionBombError as exc:
        raise _too_many_pixels(limits) from exc
    except Exception as exc:  # a damaged file can raise anything: OSError, ValueError, struct.error, TypeError …
        raise InvalidImage(log_detail=f"{image_format}: {type(exc).__name__}") from exc


def _decode_opened(
    image: Image.Image, image_format: str, limits: ImageLimits, working_size: WorkingSize | None
) -> Picture:
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > _MAX_SIDE:
        raise _too_many_pixels(limits)
    orientation = _orientation(image)
    scale = working_size.scale(width, height) if working_size else 1.0
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    if scale < 1.0 and image_format == "jpeg":
        # The DCT scales by 1/2, 1/4 or 1/8 nearly for free; some more than the target leaves the filtering to the resize.
        image.draft(None, (target[0] * 3 // 2, target[1] * 3 // 2))
    image.load()
    rgb = _to_rgb(image, target if scale < 1.0 else None)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    if orientation in _SWAPS_SIDES:
        width, height = height, width
    return Picture(np.asarray(rgb), width, height, image_format)


def _too_many_pixels(limits: ImageLimits) -> ImageTooLarge:
    return ImageTooLarge(
        f"The image may have at most {limits.max_pixels} pixels and {_MAX_SIDE} a side; send a smaller one."
    )


def _orientation(image: Image.Image) -> int:
    """Tag 274 alone: turning by `exif_transpose` writes the other tags back, which fails on damaged ones."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, target: tuple[int, int] | None) -> Image.Image:
    """Eight bits a channel, transparency flattened on white, scaled to `target` (width, height)."""
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it to white
        image = Image.fromarray((np.asarray(image).astype(np.uint32).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        # scaled with the alpha premultiplied, or hidden colours would bleed over the edges
        image = _resized(image.convert("RGBA"), target)
        flat = Image.new("RGBA", image.size, "white")
        flat.alpha_composite(image)
        return flat.convert("RGB")
    return _resized(image.convert("RGB"), target)


def _resized(image: Image.Image, target: tuple[int, int] | None) -> Image.Image:
    if target is None or image.size == target:
        return image
    # reducing_gap first averages whole pixels, then filters the rest: cheaper, and within half a grey level
    return image.resize(target, Image.Resampling.BICUBIC, reducing_gap=1.5)


def _refuse_many_scans(data: bytes) -> None:
    # Entropy-coded bytes never hold FF DA (an FF there is followed by 00 or a restart marker). Metadata may; the few of
    # a thumbnail do not matter against the limit.
    if data.count(b"\xff\xda") > _MAX_SCANS:
        raise InvalidImage(f"The JPEG has more than {_MAX_SCANS} scans; save it again as an ordinary JPEG.")


# --- raw pixels between the services --------------------------------------------------------------------------------


def to_ppm(pixels: Pixels) -> bytes:
    """Binary PPM (P6): a short header, then the rows as they are."""
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


_PPM_HEADER = re.compile(rb"P6\n([1-9][0-9]{0,5}) ([1-9][0-9]{0,5})\n255\n")


def from_ppm(data: bytes, *, max_pixels: int | None = None) -> Pixels:
    """The pixels that `to_ppm` wrote, without a copy (read-only)."""
    header = _PPM_HEADER.match(data)
    if header is None:
        raise InvalidImage("The raw picture's header cannot be read; send binary PPM with 255 levels.")
    width, height = int(header[1]), int(header[2])
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLarge(f"The image may have at most {max_pixels} pixels; send a smaller one.")
    if len(data) - header.end() != width * height * 3:
        raise InvalidImage("The raw picture has fewer or more pixels than its header says.")
    return np.frombuffer(data, np.uint8, offset=header.end()).reshape(height, width, 3)
