"""From bytes to an upright RGB picture: hostile and odd files, each made here, each with the answer it must get."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from pictures import (
    ASCII,
    GREY,
    LONG,
    PALETTE,
    PNG_MAGIC,
    RGB,
    RGBA,
    SHORT,
    Pixels,
    corners,
    cuts,
    encoded,
    exif,
    exif_orientation,
    flips,
    gif,
    gif_comment,
    gif_frame,
    gradient,
    jpeg_insert,
    jpeg_scans,
    jpeg_segment,
    jpeg_with_repeated_scan,
    jpeg_with_size,
    photo,
    pixels_of,
    png,
    png_adam7,
    png_chunk,
    png_of,
    png_rows,
    png_zeros,
    small_files,
    webp_animated,
    webp_flat,
)
from visionstack.errors import ImageTooLarge, InvalidImage, UnsupportedMediaType, VisionError
from visionstack.images import ImageLimits, Picture, WorkingSize, decode, from_ppm, sniff, to_ppm
from visionstack.settings import ImageSettings

# Decoder processes silence Pillow's warnings; here they are the suite's filter's.
pytestmark = pytest.mark.filterwarnings("ignore")

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


# --- the same picture as everybody else's -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG, id="jpeg"),
        pytest.param(PROGRESSIVE, id="progressive jpeg"),
        pytest.param(encoded(photo(321, 203), "JPEG", quality=95, subsampling=0), id="jpeg 4:4:4, odd size"),
        pytest.param(encoded(gradient().convert("L"), "JPEG"), id="grey jpeg"),
        pytest.param(encoded(gradient().convert("CMYK"), "JPEG"), id="cmyk jpeg"),
        pytest.param(PNG, id="png"),
        pytest.param(encoded(gradient().quantize(64), "PNG"), id="palette png"),
        pytest.param(encoded(gradient().convert("L"), "PNG"), id="grey png"),
        pytest.param(encoded(gradient().convert("1"), "PNG"), id="1-bit png"),
        pytest.param(encoded(gradient(), "WEBP", quality=80), id="webp"),
        pytest.param(encoded(gradient(), "WEBP", lossless=True), id="lossless webp"),
        pytest.param(encoded(gradient().quantize(64), "GIF"), id="gif"),
        pytest.param(encoded(gradient(), "AVIF", quality=80, speed=10), id="avif"),
    ],
)
def test_ordinary_pictures_equal_those_of_pillow_exactly(data: bytes) -> None:
    picture = decode(data, LIMITS)
    np.testing.assert_array_equal(picture.pixels, pixels_of(data))
    assert (picture.height, picture.width) == picture.pixels.shape[:2]
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert picture.format == sniff(data)


def test_limits_come_from_the_settings() -> None:
    limits = ImageLimits.from_settings(ImageSettings(max_image_pixels=2048, image_formats=("png",), decode_timeout_s=1))
    assert limits == ImageLimits(max_bytes=25 * 1024 * 1024, max_pixels=2048, formats=("png",), decode_timeout_s=1)


# --- formats by content -----------------------------------------------------------------------------------------------


def _ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + b"\0\0\0\0" + b"".join(compatible)
    return struct.pack(">I", len(body) + 4) + body


NOT_ACCEPTED = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch /tmp/x) (w) file\n",
    "xbm": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {\n0xff\n};\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "bmp": encoded(corners(), "BMP"),
    "tiff": encoded(corners(), "TIFF"),
    "tiff with NaN": encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
    "tiff with a cyclic directory": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "tga": encoded(corners(), "TGA"),
    "pcx": encoded(corners(), "PCX"),
    "ppm": b"P6\n100000 100000\n255\n",
    "jp2": encoded(corners(), "JPEG2000"),
    "ico": encoded(corners(32, 32), "ICO"),
    "icns": encoded(corners(32, 32), "ICNS"),
    "dds": encoded(corners(), "DDS"),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(96),
    "heic": _ftyp(b"heic", b"mif1", b"heic"),
    "jxl": b"\xff\x0a" + bytes(64),
    "jxl in a container": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64),
    "mp4": _ftyp(b"isom", b"iso2", b"mp41"),
    "zip": b"PK\x03\x04" + bytes(64),
    "gzip of a png": gzip.compress(PNG),
    "elf": b"\x7fELF" + bytes(64),
    "html": b"<!doctype html><img src=x>",
    "one byte": b"\xff",
    "half of a jpeg's magic": b"\xff\xd8",
    "riff, but a sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(24),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in NOT_ACCEPTED.items()])
def test_anything_else_is_no_accepted_format_and_the_answer_names_those_that_are(data: bytes) -> None:
    error = refused(data)
    assert error.status == 415
    assert all(name in error.detail for name in FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_is_switched_off_is_not_accepted(name: str) -> None:
    data = encoded(gradient(), name.upper())
    assert decode(data, LIMITS).format == name
    others = tuple(other for other in FORMATS if other != name)
    limits = ImageLimits(LIMITS.max_bytes, LIMITS.max_pixels, others, LIMITS.decode_timeout_s)
    error = refused(data, limits)
    assert error.status == 415
    assert name not in error.detail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PNG_MAGIC,
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\x0c\0\0\0WEBPVP8 ",
        _ftyp(b"avif", b"mif1") + bytes(32),
        _ftyp(b"mif1", b"avif"),
        gif((1, 1)),
        PNG_MAGIC + png_chunk(b"IHDR", bytes(13)),
    ],
)
def test_an_accepted_magic_without_a_picture_is_an_invalid_image(data: bytes) -> None:
    assert refused(data).status == 422


# --- size -------------------------------------------------------------------------------------------------------------


def test_bytes_are_limited_to_the_byte() -> None:
    padded = JPEG.ljust(SMALL.max_bytes, b"\0")
    np.testing.assert_array_equal(decoded(padded, SMALL), pixels_of(JPEG))
    error = refused(padded + b"\0", SMALL)
    assert error.status == 413
    assert str(SMALL.max_bytes) in error.detail


def test_pixels_are_limited_to_the_row() -> None:
    assert decoded(png_zeros(1000, 1000), SMALL).shape == (1000, 1000, 3)
    error = refused(png_zeros(1000, 1001), SMALL)
    assert error.status == 413
    assert str(SMALL.max_pixels) in error.detail


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(7072, 7072, b"not zlib"), id="png"),
        pytest.param(png(40_000, 10, b"not zlib"), id="png, one side"),
        pytest.param(png(2**31 - 1, 2**31 - 1, b"not zlib"), id="png, largest"),
        pytest.param(jpeg_with_size(JPEG, 65_500, 65_500), id="jpeg"),
        pytest.param(jpeg_with_size(PROGRESSIVE, 7072, 7072), id="progressive jpeg"),
        pytest.param(gif((65_535, 65_535), gif_frame()), id="gif screen"),
        # 43 bytes whose screen of 1 x 1 is not what opens
        *(pytest.param(gif((1, 1), gif_frame(at, at)), id=f"gif frame at {at}") for at in (7072, 13_000, 65_000)),
        pytest.param(webp_flat(7072, 7072), id="webp of 36 bytes"),
        pytest.param(webp_flat(16_383, 16_383), id="webp, largest"),
        pytest.param(webp_animated(9000, 9000), id="animated webp"),
        pytest.param(webp_animated(65_535, 65_535), id="animated webp, largest"),
    ],
)
def test_a_picture_over_the_limit_is_refused_from_its_header(data: bytes) -> None:
    error = refused(data)
    assert error.status == 413
    assert str(LIMITS.max_pixels) in error.detail


def test_pillows_own_limits_decide_nothing() -> None:
    at_its_warning = png(9500, 9500, b"not zlib")
    limits = ImageLimits(LIMITS.max_bytes, 100_000_000, FORMATS, 5.0)
    assert refused(at_its_warning).status == 413
    assert refused(at_its_warning, limits).status == 422
    twice_that = png(14_000, 14_000, b"not zlib")
    limits = ImageLimits(LIMITS.max_bytes, 200_000_000, FORMATS, 5.0)
    assert refused(twice_that, limits).status == 422


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_a_huge_gif_is_still_too_large() -> None:
    assert refused(gif((1, 1), gif_frame(10_000, 10_000))).status == 413


def test_a_jpeg_that_holds_less_than_it_says_harms_nobody() -> None:
    survives(jpeg_with_size(JPEG, 1000, 1000), SMALL)


def test_a_single_pixel_is_a_picture() -> None:
    picture = decode(png(1, 1, png_rows([b"\x01\x02\x03"])), LIMITS, working_size=WorkingSize())
    assert picture.pixels.tolist() == [[[1, 2, 3]]]


# --- frames -----------------------------------------------------------------------------------------------------------


def test_twenty_thousand_frames_cost_no_more_than_the_first() -> None:
    assert decoded(gif((1, 1), gif_frame() * 20_000)).tolist() == [[[255, 0, 0]]]


def test_the_second_frame_is_never_touched() -> None:
    assert decoded(gif((1, 1), gif_frame(), gif_frame(65_000, 65_000, 60_000, 60_000))).shape == (1, 1, 3)
    first, second = gradient(64, 48), gradient(64, 48).rotate(180)
    for image_format in ("PNG", "WEBP", "GIF", "AVIF"):
        alone = encoded(first, image_format)
        both = encoded(first, image_format, save_all=True, append_images=[second], duration=100)
        assert difference(decoded(both), decoded(alone)) < 3, image_format


def test_an_apng_may_claim_any_number_of_frames() -> None:
    control = png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    np.testing.assert_array_equal(
        decoded(png_of(np.asarray(gradient()), RGB, before=[control])), np.asarray(gradient())
    )


def test_a_first_frame_smaller_than_its_screen_is_shown_on_the_screen() -> None:
    picture = decode(gif((10, 12), gif_frame(3, 4)), LIMITS)
    assert (picture.width, picture.height) == (10, 12)
    assert picture.pixels[4, 3].tolist() == [255, 0, 0]


# --- CPU --------------------------------------------------------------------------------------------------------------


def test_a_jpeg_may_not_repeat_its_scans_without_end() -> None:
    assert refused(jpeg_with_repeated_scan(PROGRESSIVE, 1000)).status == 422
    hundred = jpeg_with_repeated_scan(PROGRESSIVE, 100 - jpeg_scans(PROGRESSIVE))
    np.testing.assert_array_equal(decoded(hundred), pixels_of(hundred))
    assert "100 scans" in refused(jpeg_with_repeated_scan(PROGRESSIVE, 101 - jpeg_scans(PROGRESSIVE))).detail


def test_scans_cannot_be_hidden_behind_a_false_end() -> None:
    false_end = jpeg_segment(0xFE, b"\xff\xd9")
    assert "100 scans" in refused(jpeg_with_repeated_scan(PROGRESSIVE, 200, between=false_end)).detail


def test_what_only_looks_like_scans_is_not_counted() -> None:
    thumbnails = jpeg_insert(JPEG, jpeg_segment(0xE1, b"Exif\0\0" + b"\xff\xda" * 1000))
    np.testing.assert_array_equal(decoded(thumbnails), pixels_of(JPEG))
    film = JPEG + b"\xff\xda\0\x02" * 1000  # phones put a short film behind a picture
    np.testing.assert_array_equal(decoded(film), pixels_of(JPEG))


def test_a_png_of_a_hundred_thousand_chunks_is_only_a_picture() -> None:
    survives(png_of(np.asarray(gradient(8, 8)), RGB, before=[png_chunk(b"prVt")] * 100_000))


def test_a_png_that_inflates_to_far_more_than_its_picture_is_only_a_picture() -> None:
    survives(png(8, 8, zlib.compress(bytes(100_000_000), 9)))


def test_random_gif_codes_end() -> None:
    codes = np.random.default_rng(1).bytes(1_000_000)
    survives(gif((2000, 2000), gif_frame(0, 0, 2000, 2000, codes=codes)))


# --- metadata ---------------------------------------------------------------------------------------------------------


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


# --- orientation ------------------------------------------------------------------------------------------------------

# What a viewer makes of the stored rows, by the EXIF specification.
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


# --- colour -----------------------------------------------------------------------------------------------------------


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


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_half_a_file_is_invalid(name: str) -> None:
    data = encoded(photo(200, 150), name)
    for end in (len(data) // 2, len(data) * 3 // 4, len(data) * 9 // 10):
        assert refused(data[:end]).status == 422
    if name == "JPEG":
        progressive = encoded(photo(200, 150), "JPEG", progressive=True)
        assert refused(progressive[: len(progressive) * 99 // 100]).status == 422


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, small_files()["jpeg"]], ids=["jpeg", "progressive", "small"])
def test_a_jpeg_may_lack_its_end_marker_and_nothing_else(data: bytes) -> None:
    whole = decoded(data)
    for missing in (1, 2):
        np.testing.assert_array_equal(decoded(data[:-missing]), whole)
    for missing in (4, 5, 6, 10, 50):
        assert refused(data[:-missing]).status == 422, missing


def test_files_cut_anywhere_are_refused_or_shown() -> None:
    whole = {name: decoded(data, SMALL).shape for name, data in small_files().items()}
    for name, data in small_files().items():
        for cut in cuts(data):
            picture = survives(cut, SMALL)
            assert picture is None or picture.pixels.shape == whole[name], (name, len(cut))


def test_files_with_any_byte_flipped_are_refused_or_shown() -> None:
    shown = 0
    for seed, data in enumerate(small_files().values()):
        for flipped in flips(data, seed):
            shown += survives(flipped, SMALL) is not None
    assert shown > 1000


# --- the working size -------------------------------------------------------------------------------------------------


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


# --- raw pixels -------------------------------------------------------------------------------------------------------


def test_raw_pixels_come_back_without_a_copy() -> None:
    pixels = np.asarray(gradient(33, 21))
    data = to_ppm(pixels)
    assert data.startswith(b"P6\n33 21\n255\n")
    back = from_ppm(data, max_pixels=33 * 21)
    np.testing.assert_array_equal(back, pixels)
    assert not back.flags.owndata
    assert to_ppm(pixels[:, ::-1]) == to_ppm(np.ascontiguousarray(pixels[:, ::-1]))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P6",
        b"P6\n1 1\n255\n",
        b"P6\n1 1\n255\n12",
        b"P6\n1 1\n255\n1234",
        b"P5\n1 1\n255\n1",
        b"P6\n1 1\n65535\n123456",
        b"P6\n0 1\n255\n",
        b"P6\n-1 1\n255\n123",
        b"P6\n01 1\n255\n123",
        b"P6 1 1 255 123",
        b"P6\n# c\n1 1\n255\n123",
        b"P6\n9999999 1\n255\n123",
        b"P6\n100000 100000\n255\n",
    ],
)
def test_malformed_raw_pixels_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        from_ppm(data)


def test_raw_pixels_are_limited_too() -> None:
    data = to_ppm(np.zeros((10, 10, 3), np.uint8))
    assert from_ppm(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(ImageTooLarge, match="99"):
        from_ppm(data, max_pixels=99)
