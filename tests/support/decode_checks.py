"""What the tests of `images.decode` share: limits, ordinary files, and what a refusal must look like."""

import numpy as np
import pytest

from pictures import Pixels, encoded, gradient
from visionstack.errors import ImageTooLarge, InvalidImage, UnsupportedMediaType, VisionError
from visionstack.images import ImageLimits, Picture, decode

FORMATS = ("jpeg", "png", "webp", "gif", "avif")
LIMITS = ImageLimits(max_bytes=25 * 1024 * 1024, max_pixels=50_000_000, formats=FORMATS, decode_timeout_s=5.0)
SMALL = ImageLimits(max_bytes=1024 * 1024, max_pixels=1_000_000, formats=FORMATS, decode_timeout_s=5.0)
JPEG = encoded(gradient(), "JPEG", quality=90)
PROGRESSIVE = encoded(gradient(), "JPEG", quality=90, progressive=True)
PNG = encoded(gradient(), "PNG")
WHITE = np.full((240, 320, 3), 255, np.uint8)


def decoded(data: bytes, limits: ImageLimits = LIMITS) -> Pixels:
    return decode(data, limits).pixels


def difference(one: Pixels, other: Pixels) -> float:
    """Mean over all channels, in grey levels."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def refused(data: bytes, limits: ImageLimits = LIMITS) -> VisionError:
    """The error, after checking that it is one of the three and tells nothing of a library."""
    with pytest.raises(VisionError) as caught:
        decode(data, limits)
    error = caught.value
    assert type(error) in (ImageTooLarge, UnsupportedMediaType, InvalidImage)
    assert error.detail.endswith((".", *limits.formats)) or "send" in error.detail
    assert not any(word in error.detail for word in ("Error", "PIL", "0x", "libjpeg", "truncated"))
    return error


def survives(data: bytes, limits: ImageLimits = LIMITS) -> Picture | None:
    """A picture, or one of the three errors, and nothing else."""
    try:
        return decode(data, limits)
    except (ImageTooLarge, UnsupportedMediaType, InvalidImage):
        return None
