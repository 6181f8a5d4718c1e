"""Builds pictures that no camera makes: damaged, lying, oversized, oddly coloured. Everything is small and seeded.

Valid parts come from Pillow's encoders, the rest is written by hand from the formats' specifications.
"""

import io
import itertools
import random
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def gradient(width: int = 320, height: int = 240) -> Image.Image:
    """Red rises to the right, green downwards, blue along the diagonal."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Detail of a few pixels' size over large forms with hard edges, as photographs have it."""
    rng = np.random.default_rng(seed)
    detail = Image.fromarray(rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8))
    forms = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    detail, forms = detail.resize((width, height)), forms.resize((width, height), Image.Resampling.NEAREST)
    return Image.blend(Image.blend(forms, gradient(width, height), 0.5), detail, 0.12)


def corners(width: int = 40, height: int = 20) -> Image.Image:
    """Red, green, blue and white quarters, so that every turn and mirroring shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> Pixels:
    """What Pillow makes of a file by itself."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


# --- PNG ------------------------------------------------------------------------------------------------------------

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
_CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    idat: bytes,
    *,
    depth: int = 8,
    colour: int = RGB,
    interlaced: bool = False,
    before: Iterable[bytes] = (),
    after: Iterable[bytes] = (),
) -> bytes:
    """A PNG around compressed rows, with whole chunks `before` and `after` them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    chunks = [png_chunk(b"IHDR", header), *before, png_chunk(b"IDAT", idat), *after, png_chunk(b"IEND")]
    return PNG_MAGIC + b"".join(chunks)


def png_rows(rows: Iterable[bytes]) -> bytes:
    """Unfiltered rows, compressed."""
    return zlib.compress(b"".join(b"\0" + row for row in rows), 9)


def png_of(
    values: npt.NDArray[np.unsignedinteger], colour: int, *, before: Iterable[bytes] = (), after: Iterable[bytes] = ()
) -> bytes:
    """A PNG of 8 or 16 bits from an array of shape (height, width) or (height, width, channels)."""
    big_endian = values.astype(values.dtype.newbyteorder(">"))
    idat = png_rows(row.tobytes() for row in big_endian)
    return png(
        values.shape[1],
        values.shape[0],
        idat,
        depth=values.dtype.itemsize * 8,
        colour=colour,
        before=before,
        after=after,
    )


# Where each pass of an interlaced PNG begins, and its steps to the right and down.
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png_zeros(width: int, height: int, *, depth: int = 1, colour: int = GREY, interlaced: bool = False) -> bytes:
    """All zero: a thousandfold smaller as a file than as a picture."""
    packer = zlib.compressobj(9)
    idat = b""
    for x, y, right, down in _ADAM7 if interlaced else [(0, 0, 1, 1)]:
        row = b"\0" * (1 + (len(range(x, width, right)) * depth * _CHANNELS[colour] + 7) // 8)
        idat += b"".join(packer.compress(row) for _ in range(y, height, down))
    return png(width, height, idat + packer.flush(), depth=depth, colour=colour, interlaced=interlaced)


def png_adam7(pixels: Pixels) -> bytes:
    height, width, _ = pixels.shape
    rows = (row.tobytes() for x, y, right, down in _ADAM7 for row in pixels[y::down, x::right])
    return png(width, height, png_rows(rows), interlaced=True)


# --- JPEG -----------------------------------------------------------------------------------------------------------

_SOS = 0xDA


def jpeg_segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and offset of each segment, of scans too, up to the end marker."""
    position = 2
    while position < len(data) - 1:
        if data[position] != 0xFF or data[position + 1] in (0, 0xFF, *range(0xD0, 0xD8)):
            position += 1
            continue
        marker = data[position + 1]
        yield marker, position
        position += 2 if marker == 0xD9 else 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def jpeg_insert(data: bytes, *segments: bytes) -> bytes:
    """Segments put right behind the start marker."""
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_with_size(data: bytes, width: int, height: int) -> bytes:
    """The same file with another size in its header."""
    frame = next(start for marker, start in _jpeg_markers(data) if marker in (0xC0, 0xC1, 0xC2))
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def jpeg_scans(data: bytes) -> int:
    return sum(marker == _SOS for marker, _ in _jpeg_markers(data))


def jpeg_with_repeated_scan(data: bytes, times: int, between: bytes = b"") -> bytes:
    """The last scan `times` more, each after the segments `between`."""
    last = max(start for marker, start in _jpeg_markers(data) if marker == _SOS)
    return data[:-2] + (between + data[last:-2]) * times + data[-2:]


def slow_jpeg(side: int, scans: int) -> bytes:
    """A few kB that keep a decoder busy: an empty progressive picture of `side` * `side` pixels in `scans` scans."""
    small = encoded(gradient(64, 64), "JPEG", progressive=True)
    return jpeg_with_repeated_scan(jpeg_with_size(small, side, side), scans - jpeg_scans(small))


# --- GIF ------------------------------------------------------------------------------------------------------------


def gif_frame(x: int = 0, y: int = 0, width: int = 1, height: int = 1, *, codes: bytes = b"\x44\x01") -> bytes:
    """One frame of two colours; the codes are those of a single pixel of colour 0."""
    blocks = [codes[start : start + 255] for start in range(0, len(codes), 255)]
    data = b"".join(bytes([len(block)]) + block for block in blocks)
    return b"," + struct.pack("<HHHHB", x, y, width, height, 0) + b"\x02" + data + b"\0"


def gif(screen: tuple[int, int], *blocks: bytes, palette: bytes = b"\xff\0\0\0\0\xff") -> bytes:
    """A GIF of two colours, red and blue, around frames and extensions."""
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 1, 0) + palette + b"".join(blocks) + b";"


def gif_comment(size: int) -> bytes:
    return b"!\xfe" + (b"\xff" + b"c" * 255) * (size // 255) + b"\0"


# --- WebP -----------------------------------------------------------------------------------------------------------


def _riff_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _vp8l(width: int, height: int) -> bytes:
    """A lossless picture of one colour: it takes no bits a pixel, so its size is free."""
    data = encoded(Image.new("RGB", (8, 8), "teal"), "WEBP", lossless=True)
    stream = data[20 : 20 + int.from_bytes(data[16:20], "little")]
    flags = int.from_bytes(stream[1:5], "little") >> 28
    return _riff_chunk(b"VP8L", stream[:1] + struct.pack("<I", width - 1 | height - 1 << 14 | flags << 28) + stream[5:])


def webp_flat(width: int, height: int) -> bytes:
    """Forty bytes for a picture of any size."""
    return webp(_vp8l(width, height))


def webp_animated(width: int, height: int) -> bytes:
    """A canvas of any size with a single frame of 2 x 2."""
    frame = _u24(0) + _u24(0) + _u24(1) + _u24(1) + _u24(100) + b"\0" + _vp8l(2, 2)
    return webp(
        _riff_chunk(b"VP8X", b"\x02\0\0\0" + _u24(width - 1) + _u24(height - 1)),
        _riff_chunk(b"ANIM", b"\0\0\0\0\0\0"),
        _riff_chunk(b"ANMF", frame),
    )


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")


# --- metadata -------------------------------------------------------------------------------------------------------

SHORT, ASCII, LONG = 3, 2, 4


def exif(*entries: tuple[int, int, int]) -> bytes:
    """An EXIF block of entries (tag, type, value), each with a count of one, in the order given."""
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHI", tag, kind, 1) + value.to_bytes(4, "little")
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + b"\0\0\0\0"


def exif_orientation(value: int, *others: tuple[int, int, int]) -> bytes:
    return exif((274, SHORT, value), *others)


# --- damage ---------------------------------------------------------------------------------------------------------


def small_files() -> dict[str, bytes]:
    """Valid files of a few hundred bytes, metadata included, to cut and to flip."""
    picture, turned = gradient(24, 16), exif_orientation(6)
    frames = [gradient(12, 8), gradient(12, 8).rotate(180)]
    return {
        "jpeg": encoded(picture, "JPEG", quality=50, exif=turned),
        "progressive jpeg": encoded(picture, "JPEG", quality=50, progressive=True, exif=turned),
        "png": encoded(picture, "PNG", exif=turned),
        "palette png": encoded(picture.quantize(8), "PNG", transparency=bytes(range(8))),
        "lossy webp": encoded(picture, "WEBP", quality=50, exif=turned),
        "lossless webp": encoded(corners(24, 16).convert("RGBA"), "WEBP", lossless=True),
        "animated webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=30),
        "gif": encoded(frames[0].quantize(8), "GIF", save_all=True, append_images=[frames[1].quantize(8)]),
        "avif": encoded(picture, "AVIF", quality=50, speed=10),
    }


def cuts(data: bytes) -> Iterator[bytes]:
    """The file cut at every length."""
    return (data[:length] for length in range(len(data)))


def flips(data: bytes, seed: int) -> Iterator[bytes]:
    """The file with each byte in turn replaced: by its inverse, by one with a single bit flipped."""
    rng = random.Random(seed)
    for position, change in itertools.product(range(len(data)), (0xFF, None)):
        flipped = bytearray(data)
        flipped[position] ^= change or 1 << rng.randrange(8)
        yield bytes(flipped)
