"""The sky of a scene: its colours, its light on the land, and what hangs in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from world_shapes import Colour, Part, Point, jitter, mix, oval

Light = tuple[float, float, float]


@dataclass(frozen=True)
class Sky:
    """Gradient stops from top to horizon (one set is drawn by lot) and the light on the land."""

    gradients: tuple[tuple[Colour, Colour, Colour], ...]
    light: Light
    dark: bool = False
    clouds: tuple[int, int] = (0, 0)
    cloud: Colour = (255, 255, 255)
    stars: int = 0


SKIES: dict[str, Sky] = {
    "day": Sky(
        (
            ((58, 128, 220), (116, 178, 240), (190, 224, 250)),
            ((90, 170, 235), (140, 200, 245), (205, 235, 252)),
        ),
        (1.0, 1.0, 1.0),
        clouds=(1, 5),
        cloud=(252, 253, 255),
    ),
    "sunset": Sky(
        (
            ((88, 52, 128), (226, 98, 96), (255, 190, 96)),
            ((214, 84, 60), (246, 140, 66), (255, 216, 130)),
            ((56, 66, 140), (236, 122, 130), (255, 204, 150)),
        ),
        (1.0, 0.76, 0.66),
        clouds=(0, 4),
        cloud=(255, 168, 140),
    ),
    "night": Sky(
        (((6, 8, 30), (16, 20, 58), (36, 42, 92)), ((4, 6, 18), (12, 14, 40), (28, 26, 66))),
        (0.4, 0.44, 0.64),
        dark=True,
        clouds=(0, 2),
        cloud=(46, 50, 88),
        stars=70,
    ),
    "storm": Sky(
        (
            ((40, 44, 54), (74, 80, 90), (122, 128, 132)),
            ((48, 54, 52), (84, 92, 88), (130, 138, 128)),
        ),
        (0.56, 0.58, 0.62),
        dark=True,
        clouds=(7, 11),
        cloud=(58, 62, 72),
    ),
    "fog": Sky(
        (
            ((186, 192, 198), (204, 208, 212), (222, 224, 226)),
            ((200, 196, 188), (214, 210, 204), (228, 226, 220)),
        ),
        (0.86, 0.87, 0.88),
    ),
    "aurora": Sky(
        (((6, 12, 40), (12, 30, 62), (18, 60, 76)), ((10, 6, 44), (22, 26, 70), (24, 62, 84))),
        (0.38, 0.52, 0.54),
        dark=True,
        stars=45,
    ),
    "rainbow": Sky(
        (
            ((120, 166, 214), (164, 198, 226), (214, 228, 236)),
            ((104, 150, 196), (158, 186, 210), (220, 226, 226)),
        ),
        (0.96, 1.0, 0.94),
        clouds=(0, 3),
        cloud=(240, 242, 246),
    ),
}

BOW: tuple[Colour, ...] = (
    (226, 54, 54),
    (246, 146, 48),
    (250, 222, 70),
    (84, 188, 88),
    (62, 120, 224),
    (140, 74, 196),
)


def lit(colour: Colour, light: Light, share: float = 1.0) -> Colour:
    """`colour` under `light`; a `share` below 1 weakens the light's tint."""
    red, green, blue = (
        round(channel * (1 + (factor - 1) * share)) for channel, factor in zip(colour, light, strict=True)
    )
    return (red, green, blue)


def gradient(sky: str, width: int, height: int, seed: int) -> Image.Image:
    """The bare sky over the whole picture; its lower stop is reached at the lower border."""
    rng = Random(seed)
    stops = [jitter(stop, rng, 12) for stop in rng.choice(SKIES[sky].gradients)]
    middle = rng.uniform(0.3, 0.45)
    column = Image.new("RGB", (1, 64))
    for row in range(64):
        at = min(1.0, row / 63 / 0.75)
        colour = (
            mix(stops[0], stops[1], at / middle)
            if at < middle
            else mix(stops[1], stops[2], (at - middle) / (1 - middle))
        )
        column.putpixel((0, row), colour)
    return column.resize((width, height), Image.Resampling.BICUBIC)


def _cloud(x: float, y: float, size: float, colour: Colour, rng: Random) -> list[Part]:
    parts = []
    for i in range(4):
        rx = size * rng.uniform(0.28, 0.45)
        parts.append(
            Part(
                oval(x + size * (i - 1.5) * 0.42, y - size * rng.uniform(0, 0.14), rx, rx * 0.55),
                colour,
            )
        )
    parts.append(Part(oval(x, y + size * 0.06, size * 0.95, size * 0.17), colour))
    return parts


def ornaments(sky: str, width: int, height: int, horizon: float, seed: int) -> list[Part]:
    """Stars, clouds, bow and lightning behind everything else, in pixels."""
    kind, unit, top = SKIES[sky], min(width, height), horizon * height
    rng = Random(seed + 1)
    parts: list[Part] = []
    for _ in range(kind.stars):
        x, y, size = rng.random() * width, rng.random() * top, rng.uniform(0.002, 0.007) * unit
        points = ((x - size, y), (x, y - size), (x + size, y), (x, y + size))
        parts.append(Part(points, jitter((236, 238, 250), rng, 12)))
    rng = Random(seed + 2)
    if sky == "rainbow":
        cx, radius = rng.uniform(0.25, 0.75) * width, rng.uniform(0.5, 0.68) * unit
        radius = max(radius, top * 0.75)
        band = rng.uniform(0.02, 0.03) * unit
        for i, colour in enumerate(BOW):
            outer, inner = radius - band * i, radius - band * (i + 1)
            arc = oval(cx, top + 0.06 * unit, outer, outer, start=180, stop=360)
            back = oval(cx, top + 0.06 * unit, inner, inner, start=360, stop=180)
            parts.append(Part(arc + back, mix(colour, (235, 240, 245), 0.25)))
    for _ in range(rng.randint(*kind.clouds)):
        x, y, size = (
            rng.random() * width,
            rng.uniform(0.05, 0.6) * top,
            rng.uniform(0.1, 0.22) * unit,
        )
        if sky == "storm":
            y, size = rng.uniform(0.0, 0.35) * top, size * 1.6
        parts += _cloud(x, y, size, jitter(kind.cloud, rng, 10), rng)
    if sky == "storm":
        for _ in range(rng.randint(1, 2)):
            parts.append(_lightning(rng, width, top, unit))
    return parts


def _lightning(rng: Random, width: int, top: float, unit: float) -> Part:
    x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.12, 0.25) * top
    left: list[Point] = [(x, y)]
    while y < top * 0.95:
        x, y = x + rng.uniform(-0.06, 0.06) * unit, y + rng.uniform(0.05, 0.1) * unit
        left.append((x, y))
    right = [(px + 0.022 * unit * (1 - i / len(left)), py) for i, (px, py) in enumerate(left)]
    return Part((*left, *reversed(right)), (255, 246, 190))


def rain(width: int, height: int, seed: int) -> list[Part]:
    """Slanting strokes over the whole picture."""
    rng, unit = Random(seed + 3), min(width, height)
    lean = rng.uniform(-0.35, 0.35)
    parts = []
    for _ in range(int(90 * width * height / unit**2 / 1.6)):
        x, y, length = rng.random() * width, rng.random() * height, rng.uniform(0.03, 0.07) * unit
        points = ((x, y), (x + lean * length, y + length))
        parts.append(Part(points, (168, 180, 192), max(1.0, 0.0035 * unit)))
    return parts


def curtains(width: int, height: int, horizon: float, seed: int) -> Image.Image:
    """The aurora's light on black, to be added to the picture."""
    rng = Random(seed + 4)
    scale = 160 / min(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.new("RGB", (wide, high))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 3)):
        colour = rng.choice([(40, 220, 130), (60, 230, 170), (150, 80, 220), (70, 200, 90)])
        foot = rng.uniform(0.4, 0.75) * horizon * high
        tall = rng.uniform(0.3, 0.5) * horizon * high
        swing, length, phase = rng.uniform(5, 14), rng.uniform(50, 120), rng.uniform(0, 6.28)
        for x in range(0, wide, 2):
            y = foot + swing * math.sin(6.28 * x / length + phase) + swing * 0.5 * math.sin(x / 9 + phase)
            for step in range(4):
                share = (1 - step / 4) ** 1.5 * (0.7 + 0.3 * math.sin(x / 3.1))
                shade = mix((0, 0, 0), colour, share)
                low = y - tall * step / 4
                draw.rectangle((x, low - tall / 4, x + 1, low), fill=shade)
    return image.filter(ImageFilter.GaussianBlur(1.6)).resize((width, height), Image.Resampling.BICUBIC)
