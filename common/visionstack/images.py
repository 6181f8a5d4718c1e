"""From an image file's bytes to an upright RGB picture. Synchronous and without state; `decoder` runs it where it can
be killed, which is what bounds its time and memory.

Formats are recognised by content against an allow-list, size limits are read from the header before anything is
decoded, and whatever a decoder raises becomes one of three errors: too large, not an accepted format, damaged. Only the
first frame of an animation is ever looked at, and of the metadata only the EXIF orientation (one that stands in XMP
alone is ignored, as browsers do). Colour profiles are ignored, as the reference libraries of the models ignore them.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .errors import ImageTooLarge, InvalidImage, UnsupportedMediaType, VisionError

if TYPE_CHECKING:  # pydantic would double the start of a decoder process
    from .settings import ImageSettings

Pixels = npt.NDArray[np.uint8]

# One format each, so that no other decoder can be reached: Image.open() would load all of Pillow's forty to find WebP.
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "avif": AvifImageFile,
}
_AVIF_BRANDS = (b"avif", b"avis")

_MAX_SIDE = 32_767
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
    def from_settings(cls, settings: "ImageSettings") -> Self:
        return cls(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            formats=settings.image_formats,
            decode_timeout_s=settings.decode_timeout_s,
        )


@dataclass(frozen=True, slots=True)
class WorkingSize:
    """What a picture keeps at least of its short or its long side, whichever leaves more: no model wants more of it.

    It is scaled down by whole numbers only, since averaging whole pixels costs little, and filtering to a given size as
    much as decoding; the models scale once more to what each of them wants. Half and a quarter of the usual screens are
    exactly this size.
    """

    short: int = 540
    long: int = 960

    def factor(self, width: int, height: int) -> int:
        """At least 1: pictures are never scaled up."""
        return max(1, min(min(width, height) // self.short, max(width, height) // self.long))


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """`pixels` is uint8 RGB of shape (height, width, 3), C-contiguous and read-only; `width` and `height` are those of
    the upright original, however far `pixels` were scaled down. `ppm` are the pixels' own bytes behind a header, where
    they came that way."""

    pixels: Pixels
    width: int
    height: int
    format: str
    ppm: bytes | None = None

    def to_ppm(self) -> bytes:
        """As `to_ppm`, without a copy where that can be."""
        return to_ppm(self.pixels) if self.ppm is None else self.ppm


def prepare_process(limits: ImageLimits) -> None:
    """Set what Pillow keeps for the whole process; for a process that does nothing but decode.

    Without it, a `max_pixels` above Pillow's own 179 million is not reached by WebP and GIF.
    """
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    warnings.simplefilter("ignore")  # Pillow's, about damage that it can do without
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # otherwise one per core, each with its own address space


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


Permit = Callable[[int], None]
"""Gets a picture's pixels when they are known and not yet decoded; may wait, or raise a `VisionError`."""


def decode(
    data: bytes, limits: ImageLimits, *, working_size: WorkingSize | None = None, permit: Permit | None = None
) -> Picture:
    """The upright picture, scaled down to `working_size` if one is given.

    Transparency is flattened on white, more than eight bits a channel are scaled to eight. A file whose end is missing
    is refused, except a JPEG that lacks nothing but its end marker. Raises `ImageTooLarge`, `UnsupportedMediaType` or
    `InvalidImage`.
    """
    if not data:
        raise InvalidImage("The image is empty; send the file's bytes.")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"The image may hold at most {limits.max_bytes} bytes; send a smaller file.")
    image_format = sniff(data)
    if image_format is None or image_format not in limits.formats:
        raise UnsupportedMediaType(
            f"This is not an image of an accepted format; send one of {', '.join(limits.formats)}."
        )
    try:
        if image_format == "jpeg" and not _has_jpeg_end(data):
            return _decode_unended_jpeg(data, limits, working_size, permit)
        return _decode(data, image_format, limits, working_size, permit)
    except VisionError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _too_many_pixels(limits) from exc
    except MemoryError as exc:
        raise InvalidImage("The image needs more memory than one picture may have; save it in a simpler form.") from exc
    except Exception as exc:  # a damaged file can raise anything: OSError, ValueError, struct.error, TypeError …
        raise InvalidImage(log_detail=f"{image_format}: {type(exc).__name__}") from exc


def _decode(
    data: bytes, image_format: str, limits: ImageLimits, working_size: WorkingSize | None, permit: Permit | None
) -> Picture:
    with _OPENERS[image_format](io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > limits.max_pixels or max(width, height) > _MAX_SIDE:
            raise _too_many_pixels(limits)
        if permit is not None:
            permit(width * height)
        factor = 1 if working_size is None else working_size.factor(width, height)
        if factor > 1 and isinstance(image, JpegImageFile):
            # the DCT scales by 1/2, 1/4 or 1/8 nearly for free
            image.draft(None, (width // factor, height // factor))
            factor //= round(width / image.size[0])
        image.load()
        orientation = _orientation(image)  # after load(): a PNG may bring its EXIF after the pixels
        rgb = _to_rgb(image)
    del image  # WebP's keeps two whole canvases
    if factor > 1:
        rgb = rgb.reduce(factor)
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
    """Tag 274 alone: `exif_transpose` turns too, but writes all the other tags back and fails on damaged ones."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        value = exif.get(_ORIENTATION)
    except Exception:  # damaged in one of many ways; viewers show the picture as it is
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # 16-bit grey: convert() would clip it, nearly all to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image)
    return flat


# --- what libjpeg does not look after -------------------------------------------------------------------------------

# Each scan of a progressive JPEG costs a pass over the whole picture, and repeating one costs the sender a hundred
# bytes. Real files have about ten.
_MAX_SCANS = 100
# An FF that is followed by 00 is data, by D0 to D7 a restart within it, by another FF padding.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA


def _has_jpeg_end(data: bytes) -> bool:
    """Walks the segments as libjpeg does, refuses too many scans, and tells if the end marker follows the last one."""
    scans = 0
    position = 2
    while match := _NEXT_MARKER.search(data, position):
        position = match.end()
        marker = data[position - 1]
        if marker == _EOI:
            return True
        if marker == _SOS:
            scans += 1
            if scans > _MAX_SCANS:
                raise InvalidImage(f"The JPEG has more than {_MAX_SCANS} scans; save it again as an ordinary JPEG.")
        if marker != _SOI:
            position += int.from_bytes(data[position : position + 2], "big")
    return False


def _decode_unended_jpeg(
    data: bytes, limits: ImageLimits, working_size: WorkingSize | None, permit: Permit | None
) -> Picture:
    """Browsers show a JPEG without its end marker. libjpeg would, given one, fill whatever else is missing with grey;
    nothing else is missing if what follows the last byte changes nothing."""
    one, other = (
        _decode(data.rstrip(b"\xff") + filler + b"\xff\xd9", "jpeg", limits, working_size, permit)
        for filler in (b"\x00" * 8, b"\xaa" * 8)
    )
    if not np.array_equal(one.pixels, other.pixels):
        raise InvalidImage("The image ends too early; send the whole file.")
    return one


# --- raw pixels between the services --------------------------------------------------------------------------------


def to_ppm(pixels: Pixels) -> bytes:
    """Binary PPM (P6): a short header, then the rows as they are. `pixels` is uint8 of shape (height, width, 3)."""
    height, width, _ = pixels.shape
    return b"".join((ppm_header(width, height), np.ascontiguousarray(pixels).data))


def ppm_header(width: int, height: int) -> bytes:
    return b"P6\n%d %d\n255\n" % (width, height)


_PPM_HEADER = re.compile(rb"P6\n([1-9][0-9]{0,5}) ([1-9][0-9]{0,5})\n255\n")


def from_ppm(data: bytes, *, max_pixels: int | None = None) -> Pixels:
    """The pixels that `to_ppm` wrote, without a copy (read-only). Raises `InvalidImage`, `ImageTooLarge`."""
    header = _PPM_HEADER.match(data)
    if header is None:
        raise InvalidImage("The raw picture's header cannot be read; send binary PPM with 255 levels.")
    width, height = int(header[1]), int(header[2])
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLarge(f"The image may have at most {max_pixels} pixels; send a smaller one.")
    if len(data) - header.end() != width * height * 3:
        raise InvalidImage("The raw picture has fewer or more pixels than its header says.")
    return np.frombuffer(data, np.uint8, offset=header.end()).reshape(height, width, 3)
