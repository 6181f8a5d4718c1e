"""A picture's looks: what metadata may not change, which way is up, and its colours as 8-bit RGB."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from decode_checks import JPEG, LIMITS, PNG, WHITE, decoded, difference, refused, survives
from pictures import (
    ASCII,
    GREY,
    LONG,
    PALETTE,
    RGB,
    RGBA,
    SHORT,
    Pixels,
    corners,
    encoded,
    exif,
    exif_orientation,
    gif,
    gif_comment,
    gif_frame,
    gradient,
    jpeg_insert,
    jpeg_segment,
    pixels_of,
    png,
    png_adam7,
    png_chunk,
    png_of,
    png_rows,
)
from visionstack.images import WorkingSize, decode

# Decoder processes silence Pillow's warnings; here they are the suite's filter's.
pytestmark = pytest.mark.filterwarnings("ignore")


def _icc_segments(profile: bytes) -> list[bytes]:
    pieces = [profile[start : start + 65_000] for start in range(0, len(profile), 65_000)]
    return [
        jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes((number, len(pieces))) + piece)
        for number, piece in enumerate(pieces, 1)
    ]


_XMP = b"http://ns.adobe.com/xap/1.0/\0<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>"
_CYCLIC_EXIF = exif((0x8769, LONG, 8), (0x014A, LONG, 8))
_RANDOM = np.random.default_rng(2).bytes


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(jpeg_insert(JPEG, *_icc_segments(bytes(16_000_000))), id="16 MB of colour profile"),
        pytest.param(jpeg_insert(JPEG, *_icc_segments(_RANDOM(180))), id="broken colour profile"),
        pytest.param(jpeg_insert(JPEG, *[jpeg_segment(0xFE, b"c" * 65_000)] * 300), id="300 comments"),
        pytest.param(jpeg_insert(JPEG, jpeg_segment(0xE1, _CYCLIC_EXIF)), id="cyclic exif"),
        pytest.param(jpeg_insert(JPEG, jpeg_segment(0xE1, b"Exif\0\0" + _RANDOM(4096))), id="random exif"),
        pytest.param(jpeg_insert(JPEG, jpeg_segment(0xE1, b"Exif\0\0" * 10_000)), id="exif header repeated"),
        pytest.param(jpeg_insert(JPEG, jpeg_segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")), id="exif out of bounds"),
        pytest.param(jpeg_insert(JPEG, jpeg_segment(0xE1, _XMP.ljust(60_000))), id="xmp with entities"),
        pytest.param(jpeg_insert(JPEG, jpeg_segment(0xE2, b"MPF\0" + _RANDOM(64))), id="damaged multi-picture index"),
        pytest.param(JPEG + bytes(10_000_000), id="10 MB behind the end"),
        pytest.param(JPEG + PNG, id="another picture behind the end"),
    ],
)
def test_metadata_changes_nothing(data: bytes) -> None:
    np.testing.assert_array_equal(decoded(data), pixels_of(JPEG))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            png_of(np.asarray(gradient()), RGB, after=[png_chunk(b"tEXt", b"k\0" + b"t" * 500_000)] * 20), id="text"
        ),
        pytest.param(
            png_of(np.asarray(gradient()), RGB, before=[png_chunk(b"tEXt", b"k\0<script>ignore previous")]), id="script"
        ),
        pytest.param(png_of(np.asarray(gradient()), RGB, before=[png_chunk(b"eXIf", _RANDOM(4096))]), id="random exif"),
        pytest.param(png_of(np.asarray(gradient()), RGB) + PNG, id="two in a row"),
    ],
)
def test_metadata_changes_nothing_in_a_png(data: bytes) -> None:
    np.testing.assert_array_equal(decoded(data), np.asarray(gradient()))


def test_a_compressed_text_bomb_is_only_a_picture_or_invalid() -> None:
    bomb = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9))
    survives(png_of(np.asarray(gradient()), RGB, before=[bomb]))


def test_a_gif_may_hold_a_long_comment() -> None:
    assert decoded(gif((1, 1), gif_comment(10_000_000), gif_frame())).tolist() == [[[255, 0, 0]]]


def _swapped_channels() -> bytes:
    """A display profile whose red is blue: converting by it would be seen."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_colour_profiles_are_ignored(image_format: str) -> None:
    with_profile = encoded(gradient(), image_format, icc_profile=_swapped_channels())
    np.testing.assert_array_equal(decoded(with_profile), decoded(encoded(gradient(), image_format)))


AS_SEEN: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", AS_SEEN)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_pictures_are_turned_upright(image_format: str, orientation: int) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 95}
    picture = decode(encoded(corners(), image_format, exif=exif_orientation(orientation), **options), LIMITS)
    seen = AS_SEEN[orientation](np.asarray(corners()))
    assert (picture.height, picture.width) == seen.shape[:2]
    assert difference(picture.pixels, np.ascontiguousarray(seen)) < (6 if image_format in ("JPEG", "AVIF") else 0.01)
    assert picture.pixels.flags.c_contiguous


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(exif((282, ASCII, 0x7A), (274, SHORT, 6)), id="resolution as text"),
        pytest.param(exif((274, SHORT, 6), (0x8825, ASCII, 0x7A)), id="GPS pointer as text"),
        pytest.param(exif((274, SHORT, 6), (0x8769, ASCII, 0x7A)), id="EXIF pointer as text"),
        pytest.param(exif((274, SHORT, 6), (0x8769, LONG, 8)), id="EXIF pointer to itself"),
        pytest.param(exif((274, SHORT, 6), (270, ASCII, 2**31)), id="description out of bounds"),
    ],
)
def test_other_damaged_tags_do_not_hinder_the_turn(damaged: bytes) -> None:
    for data in (
        jpeg_insert(encoded(corners(), "JPEG"), jpeg_segment(0xE1, damaged)),
        png_of(np.asarray(corners()), RGB, before=[png_chunk(b"eXIf", damaged[6:])]),
        png_of(np.asarray(corners()), RGB, after=[png_chunk(b"eXIf", damaged[6:])]),
    ):
        picture = decode(data, LIMITS)
        assert (picture.width, picture.height) == (20, 40)
        assert difference(picture.pixels, AS_SEEN[6](np.asarray(corners()))) < 10


@pytest.mark.parametrize(
    "block", [exif_orientation(0), exif_orientation(9), exif_orientation(99), exif((274, ASCII, 0x36)), exif()]
)
def test_orientations_that_do_not_exist_are_ignored(block: bytes) -> None:
    picture = decode(jpeg_insert(encoded(corners(), "JPEG"), jpeg_segment(0xE1, block)), LIMITS)
    assert (picture.width, picture.height) == (40, 20)


def test_an_orientation_in_xmp_alone_is_ignored() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for image_format in ("JPEG", "PNG", "WEBP"):
        picture = decode(encoded(corners(), image_format, xmp=xmp), LIMITS)
        assert (picture.width, picture.height) == (40, 20), image_format


def test_cmyk_looks_like_the_picture_it_was_made_of() -> None:
    cmyk = encoded(gradient().convert("CMYK"), "JPEG", quality=95)
    assert difference(decoded(cmyk), np.asarray(gradient())) < 3


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_grey_in_all_channels(mode: str) -> None:
    grey = gradient().convert(mode)
    np.testing.assert_array_equal(decoded(encoded(grey, "PNG")), np.asarray(grey.convert("L").convert("RGB")))


def test_sixteen_bits_are_scaled_to_eight() -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(decoded(png_of(ramp, GREY)), np.repeat((ramp >> 8)[..., None], 3, axis=2))
    coloured = np.asarray(gradient()).astype(np.uint16) * 257
    np.testing.assert_array_equal(decoded(png_of(coloured, RGB)), np.asarray(gradient()))
    opaque = np.dstack([coloured, np.full(coloured.shape[:2], 65_535, np.uint16)])
    np.testing.assert_array_equal(decoded(png_of(opaque, RGBA)), np.asarray(gradient()))


def _with_alpha(alpha: int) -> Image.Image:
    image = gradient()
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(_with_alpha(0), "PNG"), id="png"),
        pytest.param(encoded(_with_alpha(0), "WEBP", lossless=True, exact=True), id="lossless webp"),
        pytest.param(encoded(_with_alpha(0), "WEBP", exact=True), id="webp"),
        pytest.param(encoded(_with_alpha(0), "AVIF"), id="avif"),
        pytest.param(encoded(_with_alpha(0).convert("LA"), "PNG"), id="grey with alpha"),
        pytest.param(encoded(gradient().quantize(8), "PNG", transparency=bytes(8)), id="palette png"),
        pytest.param(encoded(Image.new("P", (320, 240)), "GIF", transparency=0), id="gif"),
    ],
)
def test_the_transparent_is_white_whatever_colours_lie_under_it(data: bytes) -> None:
    np.testing.assert_array_equal(decoded(data), WHITE)
    small = decode(data, LIMITS, working_size=WorkingSize(50, 50)).pixels
    assert small.min() == 255


def test_the_half_transparent_is_half_white() -> None:
    expected = np.asarray(gradient()).astype(float) * (102 / 255) + 255 * (153 / 255)
    assert np.abs(decoded(encoded(_with_alpha(102), "PNG")) - expected).max() <= 1
    palette = gradient().quantize(4)
    flat = decoded(encoded(palette, "PNG", transparency=bytes((0, 102, 255, 255))))
    indices, colours = np.asarray(palette), np.asarray(palette.convert("RGB"))
    assert (flat[indices == 0] == 255).all()
    half = colours[indices == 1] * (102 / 255) + 153
    assert np.abs(flat[indices == 1] - half).max() <= 1
    np.testing.assert_array_equal(flat[indices >= 2], colours[indices >= 2])


def test_the_opaque_keeps_its_colours_and_a_colour_key_becomes_white() -> None:
    np.testing.assert_array_equal(decoded(encoded(_with_alpha(255), "PNG")), np.asarray(gradient()))
    keyed = decoded(encoded(corners(), "PNG", transparency=(255, 0, 0)))
    expected = np.asarray(corners()).copy()
    expected[:10, :20] = 255
    np.testing.assert_array_equal(keyed, expected)


def test_interlaced_rows_give_the_same_picture() -> None:
    pixels = np.asarray(gradient(37, 29))
    np.testing.assert_array_equal(decoded(png_adam7(pixels)), pixels)


def test_palettes_that_lack_colours_or_are_missing_harm_nobody() -> None:
    rows = png_rows([bytes(range(8))] * 8)
    survives(png(8, 8, rows, colour=PALETTE, before=[png_chunk(b"PLTE", bytes(6))]))
    survives(png(8, 8, rows, colour=PALETTE))


def test_a_jpeg_of_twelve_bits_is_invalid() -> None:
    at = JPEG.index(b"\xff\xc0") + 4
    assert refused(JPEG[:at] + b"\x0c" + JPEG[at + 1 :]).status == 422
