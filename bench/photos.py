"""Pictures like photographs, of any size and as many as one wants: no two seeds give the same pixels.

A server that remembers results must compute each of them. They are cut out of the demo's drawings and grained, so that
their files are about as large as a camera's.
"""

import functools
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

_SOURCES = Path(__file__).resolve().parent.parent / "demo/pictures"
_NAMES = ("boat-at-sunset.webp", "castle-in-the-fog.jpg", "neon-city.webp", "tree-on-the-meadow.webp")
_GRAIN = 512


def photo(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    source = _source(int(rng.integers(len(_NAMES))))
    # as large a part as has this shape, less a little, somewhere
    scale = min(source.width / width, source.height / height) * rng.uniform(0.6, 0.98)
    left, top = rng.uniform(0, source.width - width * scale), rng.uniform(0, source.height - height * scale)
    box = (left, top, left + width * scale, top + height * scale)
    smooth = np.asarray(source.resize((width, height), Image.Resampling.BICUBIC, box=box))
    grained = smooth.astype(np.int16) + _grain(width, height, rng)[..., None]
    return Image.fromarray(grained.clip(0, 255).astype(np.uint8))


def photo_file(width: int, height: int, seed: int, format: str = "jpeg", quality: int = 90) -> bytes:
    """The file's bytes. `format` is jpeg or webp."""
    buffer = io.BytesIO()
    options = {"method": 2} if format == "webp" else {}
    photo(width, height, seed).save(buffer, format, quality=quality, **options)
    return buffer.getvalue()


@functools.cache
def _source(index: int) -> Image.Image:
    with Image.open(_SOURCES / _NAMES[index]) as image:
        return image.convert("RGB")


@functools.cache
def _grain_tile() -> npt.NDArray[np.int16]:
    return np.random.default_rng(0).normal(0, 5, (_GRAIN, _GRAIN)).astype(np.int16)


def _grain(width: int, height: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    shift = rng.integers(_GRAIN, size=2)
    tile = np.roll(_grain_tile(), tuple(shift), (0, 1))
    return np.tile(tile, (-(-height // _GRAIN), -(-width // _GRAIN)))[:height, :width]
