"""Pictures of the demo world for tests: drawn from seeds that no bundled model was trained on."""

import io

from PIL import Image

from world import Scene

FIRST_TEST_SEED = 5_000_000


def scene(number: int) -> Scene:
    return Scene.random(FIRST_TEST_SEED + number)


def picture(number: int, size: tuple[int, int] = (640, 400)) -> Image.Image:
    return scene(number).draw(*size)


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def webp(number: int, size: tuple[int, int] = (640, 400)) -> bytes:
    return encoded(picture(number, size), "WEBP", quality=85)
