"""From bytes to an upright RGB picture: hostile and odd files, each made here, each with the answer it must get."""

import gzip
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from decode_checks import FORMATS, JPEG, LIMITS, PNG, PROGRESSIVE, SMALL, decoded, difference, refused, survives
from pictures import (
    PNG_MAGIC,
    RGB,
    corners,
    cuts,
    encoded,
    flips,
    gif,
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
    png_chunk,
    png_of,
    png_rows,
    png_zeros,
    small_files,
    webp_animated,
    webp_flat,
)
from visionstack.images import ImageLimits, WorkingSize, decode, sniff
from visionstack.settings import ImageSettings

# Decoder processes silence Pillow's warnings; here they are the suite's filter's.
pytestmark = pytest.mark.filterwarnings("ignore")

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
