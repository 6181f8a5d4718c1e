"""What pictures cost without care: each of three services decodes the original in full and scales it for its model."""

import io
import time
from typing import Any

import numpy as np
from PIL import Image

from calls import answer
from photos import photo_file

_BICUBIC = Image.Resampling.BICUBIC


def naive(picture: dict[str, Any], count: int, first_seed: int) -> float:
    """CPU milliseconds a picture for three full decodings and the three models' inputs: 224, 384 and 640 pixels."""
    files = [photo_file(**picture, seed=first_seed + index) for index in range(count)]
    began = time.process_time()
    for file in files:
        for resize in (_short_side_224, _square_384, _long_side_640):
            resize(Image.open(io.BytesIO(file)).convert("RGB"))
    return (time.process_time() - began) * 1000 / count


def model_inputs(width: int, height: int, count: int, first_seed: int) -> float:
    """CPU milliseconds to make the same three inputs from a working picture of this size."""
    pixels = [
        np.random.default_rng(first_seed + i).integers(0, 255, (height, width, 3), np.uint8) for i in range(count)
    ]
    began = time.process_time()
    for array in pixels:
        for resize in (_short_side_224, _square_384, _long_side_640):
            resize(Image.fromarray(array))
    return (time.process_time() - began) * 1000 / count


def _short_side_224(image: Image.Image) -> Image.Image:
    scale = 224 / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), _BICUBIC)


def _square_384(image: Image.Image) -> Image.Image:
    return image.resize((384, 384), _BICUBIC)


def _long_side_640(image: Image.Image) -> Image.Image:
    scale = 640 / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)


if __name__ == "__main__":
    answer({"naive": naive, "model_inputs": model_inputs})
