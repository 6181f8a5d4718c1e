"""Pixels between the services, as PPM."""

import io

import numpy as np
import pytest
from PIL import Image

from pictures import gradient
from visionstack.errors import ImageTooLarge, InvalidImage
from visionstack.images import from_ppm, to_ppm


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
