"""A large picture is decoded to a smaller one, in which the models see the same."""

import numpy as np
import pytest
from PIL import Image

from decode_checks import LIMITS, difference
from pictures import corners, encoded, exif_orientation, photo, pixels_of, png_zeros
from visionstack.images import WorkingSize, decode

# Decoder processes silence Pillow's warnings; here they are the suite's filter's.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("size", "working"),
    [
        ((3840, 2160), (960, 540)),
        ((2160, 3840), (540, 960)),
        ((2000, 2000), (1000, 1000)),
        ((4000, 1000), (4000, 1000)),
        ((8000, 1100), (4000, 550)),
        ((1919, 1080), (1919, 1080)),
        ((1920, 1080), (960, 540)),
        ((2881, 1621), (961, 541)),
        ((640, 480), (640, 480)),
        ((30_000, 100), (30_000, 100)),
    ],
)
def test_the_working_size_leaves_what_models_want_and_no_more(size: tuple[int, int], working: tuple[int, int]) -> None:
    picture = decode(png_zeros(*size), LIMITS, working_size=WorkingSize())
    assert picture.pixels.shape == (working[1], working[0], 3)
    assert (picture.width, picture.height) == size


@pytest.mark.parametrize("size", [(2050, 1200), (1920, 1080), (2000, 3000)])
@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "PNG"])
def test_models_see_the_same_in_the_scaled_picture_as_in_the_whole(image_format: str, size: tuple[int, int]) -> None:
    """As ViT-B-32, BLIP and YOLO scale it, within a grey level of 255."""
    fast = {"method": 0} if image_format == "WEBP" else {"compress_level": 1}
    data = encoded(photo(*size), image_format, quality=90, **fast)
    picture = decode(data, LIMITS, working_size=WorkingSize())
    height, width, _ = picture.pixels.shape
    assert width * height < size[0] * size[1] / 3
    assert (picture.width, picture.height) == size
    full, scaled = Image.fromarray(pixels_of(data)), Image.fromarray(picture.pixels)
    shortest, longest = 224 / min(size), 640 / max(size)
    for seen in (
        (round(size[0] * shortest), round(size[1] * shortest)),
        (384, 384),
        (round(size[0] * longest), round(size[1] * longest)),
    ):
        one, other = (np.asarray(image.resize(seen, Image.Resampling.BICUBIC)) for image in (scaled, full))
        assert difference(one, other) < 1


def test_a_scaled_picture_is_turned_too() -> None:
    data = encoded(corners(1600, 1200), "JPEG", exif=exif_orientation(6))
    picture = decode(data, LIMITS, working_size=WorkingSize(short=600, long=800))
    assert (picture.width, picture.height) == (1200, 1600)
    assert picture.pixels.shape == (800, 600, 3)
    assert picture.pixels[10, 10].tolist() == pytest.approx([0, 0, 255], abs=5)


def test_colours_under_transparency_do_not_bleed_when_scaled() -> None:
    image = Image.new("RGBA", (2000, 2000), (0, 0, 255, 0))
    image.paste((255, 0, 0, 255), (0, 0, 999, 2000))
    picture = decode(encoded(image, "PNG", compress_level=1), LIMITS, working_size=WorkingSize())
    assert (picture.pixels[..., 2] >= picture.pixels[..., 1]).all()
    assert np.abs(picture.pixels[..., 2].astype(int) - picture.pixels[..., 1]).max() <= 1  # red and white, no blue
