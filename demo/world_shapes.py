"""The things of the drawn world as plain polygons.

Every thing is a list of `Part`s in its own unit box: x runs right, y runs down, both from 0 to 1.
Nothing here knows about pictures, styles or pixels; `world_paint` puts the parts on a canvas and
`world` derives boxes from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """One filled polygon, or an open stroke of `stroke` units when that is above zero."""

    points: tuple[Point, ...]
    colour: Colour
    stroke: float = 0.0


@dataclass(frozen=True)
class Shape:
    """Parts in drawing order; `aspect` is the width of the unit box over its height."""

    parts: tuple[Part, ...]
    aspect: float


PAINTS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "yellow": (250, 205, 35),
    "green": (50, 165, 70),
    "blue": (40, 95, 215),
    "purple": (140, 55, 185),
    "white": (242, 242, 238),
}
"""The colours a caption may name, far enough apart to survive every style."""

DARK: Colour = (45, 40, 48)
GLASS: Colour = (190, 225, 240)
WOOD: Colour = (112, 74, 44)


def mix(one: Colour, two: Colour, share: float) -> Colour:
    """The colour `share` of the way from `one` to `two`."""
    return (
        round(one[0] + (two[0] - one[0]) * share),
        round(one[1] + (two[1] - one[1]) * share),
        round(one[2] + (two[2] - one[2]) * share),
    )


def jitter(colour: Colour, rng: Random, amount: int = 14) -> Colour:
    """`colour` with each channel moved by at most `amount`."""
    red, green, blue = (min(255, max(0, c + rng.randint(-amount, amount))) for c in colour)
    return (red, green, blue)


def oval(cx: float, cy: float, rx: float, ry: float, *, start: float = 0.0, stop: float = 360.0) -> tuple[Point, ...]:
    """An ellipse, or the arc of one from `start` to `stop` degrees, as a polygon."""
    steps = max(6, int(abs(stop - start) / 12))
    angles = [math.radians(start + (stop - start) * i / steps) for i in range(steps + 1)]
    return tuple((cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles)


def rect(x1: float, y1: float, x2: float, y2: float) -> tuple[Point, ...]:
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _sun(rng: Random, _paint: Colour) -> Shape:
    colour = jitter(rng.choice([(255, 214, 64), (255, 186, 52), (255, 232, 120)]), rng)
    parts: list[Part] = []
    radius = 0.5
    if rng.random() < 0.75:
        radius = rng.uniform(0.27, 0.34)
        count = rng.choice([8, 10, 12])
        turn = rng.uniform(0, 360 / count)
        for i in range(count):
            angle = math.radians(turn + i * 360 / count)
            side = math.radians(rng.uniform(7, 10))
            inner = radius + 0.05
            parts.append(
                Part(
                    (
                        (
                            0.5 + inner * math.cos(angle - side),
                            0.5 + inner * math.sin(angle - side),
                        ),
                        (0.5 + 0.5 * math.cos(angle), 0.5 + 0.5 * math.sin(angle)),
                        (
                            0.5 + inner * math.cos(angle + side),
                            0.5 + inner * math.sin(angle + side),
                        ),
                    ),
                    colour,
                )
            )
    parts.append(Part(oval(0.5, 0.5, radius, radius), colour))
    parts.append(Part(oval(0.5, 0.5, radius * 0.7, radius * 0.7), mix(colour, (255, 255, 255), 0.3)))
    return Shape(tuple(parts), 1.0)


def _moon(rng: Random, _paint: Colour) -> Shape:
    colour = jitter((232, 234, 240), rng, 10)
    if rng.random() < 0.6:
        bite = rng.uniform(0.12, 0.2)
        outer = oval(0.5, 0.5, 0.5, 0.5, start=70, stop=290)
        inner = oval(0.5 + bite * 0.6, 0.5, 0.32, 0.47, start=290, stop=70)
        points = outer + inner
        left = min(p[0] for p in points)
        right = max(p[0] for p in points)
        stretched = tuple(((x - left) / (right - left), y) for x, y in points)
        if rng.random() < 0.5:
            stretched = tuple((1 - x, y) for x, y in stretched)
        return Shape((Part(stretched, colour),), right - left)
    parts = [Part(oval(0.5, 0.5, 0.5, 0.5), colour)]
    for _ in range(rng.randint(3, 5)):
        size = rng.uniform(0.05, 0.11)
        angle, far = rng.uniform(0, 6.28), rng.uniform(0.05, 0.33)
        place = (0.5 + far * math.cos(angle), 0.5 + far * math.sin(angle))
        parts.append(Part(oval(*place, size, size), mix(colour, (120, 125, 140), 0.45)))
    return Shape(tuple(parts), 1.0)


def _tree(rng: Random, _paint: Colour) -> Shape:
    leaf = jitter(rng.choice([(64, 150, 58), (98, 172, 60), (44, 120, 62), (220, 128, 40)]), rng)
    light = mix(leaf, (255, 255, 210), 0.22)
    trunk = Part(((0.43, 0.5), (0.57, 0.5), (0.62, 1.0), (0.38, 1.0)), jitter(WOOD, rng))
    if rng.random() < 0.5:
        crown = [
            Part(oval(0.28, 0.42, 0.28, 0.22), leaf),
            Part(oval(0.72, 0.42, 0.28, 0.22), leaf),
            Part(oval(0.5, 0.26, 0.33, 0.26), leaf),
            Part(oval(0.42, 0.22, 0.14, 0.11), light),
        ]
        return Shape((trunk, *crown), rng.uniform(0.72, 0.9))
    crown = [Part(oval(0.5, 0.36, 0.5, 0.36), leaf), Part(oval(0.38, 0.26, 0.18, 0.13), light)]
    return Shape((trunk, *crown), rng.uniform(0.6, 0.85))


def _house(rng: Random, paint: Colour) -> Shape:
    wall = jitter(rng.choice([(236, 222, 196), (214, 196, 172), (226, 226, 220)]), rng)
    roof = jitter(paint, rng)
    eaves = rng.uniform(0.4, 0.48)
    lit = (255, 226, 130) if rng.random() < 0.5 else GLASS
    parts = [
        Part(rect(0.72, 0.08, 0.82, 0.4), mix(wall, DARK, 0.5)),
        Part(rect(0.08, eaves, 0.92, 1.0), wall),
        Part(((0.0, eaves + 0.03), (0.5, 0.0), (1.0, eaves + 0.03)), roof),
        Part(rect(0.42, 0.68, 0.58, 1.0), WOOD),
        Part(rect(0.16, 0.6, 0.34, 0.8), lit),
        Part(rect(0.66, 0.6, 0.84, 0.8), lit),
    ]
    return Shape(tuple(parts), rng.uniform(0.95, 1.3))


def _boat(rng: Random, paint: Colour) -> Shape:
    sail = jitter(paint, rng)
    hull = jitter(rng.choice([WOOD, (90, 60, 52), (60, 66, 84)]), rng)
    parts = [
        Part(rect(0.475, 0.0, 0.51, 0.82), WOOD),
        Part(((0.53, 0.04), (0.96, 0.7), (0.53, 0.7)), sail),
        Part(((0.45, 0.14), (0.45, 0.7), (0.1, 0.7)), mix(sail, (255, 255, 255), 0.18)),
        Part(((0.0, 0.76), (1.0, 0.76), (0.84, 1.0), (0.16, 1.0)), hull),
        Part(((0.02, 0.76), (0.98, 0.76), (0.95, 0.81), (0.05, 0.81)), (240, 236, 226)),
    ]
    return Shape(tuple(parts), rng.uniform(0.8, 1.1))


def _bird(rng: Random, paint: Colour) -> Shape:
    body = jitter(paint, rng)
    wing = mix(body, DARK, 0.28)
    lift = rng.uniform(0.0, 0.12)
    parts = [
        Part(((0.44, 0.6), (0.3, lift), (0.02, 0.06 + lift), (0.22, 0.36), (0.3, 0.66)), wing),
        Part(((0.0, 0.62), (0.22, 0.66), (0.1, 0.92)), wing),
        Part(oval(0.46, 0.72, 0.3, 0.2), body),
        Part(oval(0.76, 0.58, 0.14, 0.15), body),
        Part(((0.88, 0.52), (1.0, 0.6), (0.87, 0.66)), (246, 150, 30)),
        Part(oval(0.79, 0.55, 0.03, 0.035), (20, 20, 24)),
        Part(((0.4, 0.68), (0.5, lift * 0.5), (0.84, 0.0), (0.76, 0.3), (0.6, 0.68)), wing),
        Part(oval(0.44, 0.8, 0.2, 0.1), mix(body, (255, 255, 255), 0.35)),
    ]
    return Shape(tuple(parts), rng.uniform(1.1, 1.45))


def _car(rng: Random, paint: Colour) -> Shape:
    body = jitter(paint, rng)
    parts = [
        Part(((0.2, 0.42), (0.32, 0.02), (0.68, 0.0), (0.84, 0.42)), mix(body, DARK, 0.12)),
        Part(((0.27, 0.4), (0.35, 0.1), (0.49, 0.1), (0.49, 0.4)), GLASS),
        Part(((0.53, 0.4), (0.53, 0.1), (0.66, 0.1), (0.77, 0.4)), GLASS),
        Part(((0.0, 0.46), (0.06, 0.38), (0.94, 0.4), (1.0, 0.52), (1.0, 0.82), (0.0, 0.82)), body),
        Part(oval(0.23, 0.8, 0.115, 0.2), (28, 28, 32)),
        Part(oval(0.77, 0.8, 0.115, 0.2), (28, 28, 32)),
        Part(oval(0.23, 0.8, 0.05, 0.09), (196, 196, 200)),
        Part(oval(0.77, 0.8, 0.05, 0.09), (196, 196, 200)),
        Part(rect(0.93, 0.5, 1.0, 0.62), (255, 240, 160)),
    ]
    return Shape(tuple(parts), rng.uniform(1.75, 2.15))


def _balloon(rng: Random, paint: Colour) -> Shape:
    skin = jitter(paint, rng)
    stripe = mix(skin, (255, 255, 255), 0.5) if sum(paint) < 600 else mix(skin, DARK, 0.3)
    parts = [
        Part(((0.2, 0.55), (0.42, 0.88), (0.58, 0.88), (0.8, 0.55)), skin),
        Part(oval(0.5, 0.37, 0.5, 0.37), skin),
        Part(oval(0.5, 0.37, 0.27, 0.37), stripe),
        Part(oval(0.5, 0.37, 0.11, 0.37), skin),
        Part(((0.42, 0.74), (0.45, 0.9)), DARK, 0.02),
        Part(((0.58, 0.74), (0.55, 0.9)), DARK, 0.02),
        Part(rect(0.4, 0.88, 0.6, 1.0), WOOD),
    ]
    return Shape(tuple(parts), rng.uniform(0.68, 0.78))


def _plane(rng: Random, paint: Colour) -> Shape:
    colour = jitter(paint, rng)
    dark = mix(colour, DARK, 0.15)
    # The body is pale whatever the colour, or small planes and birds would look too much alike.
    body = jitter((226, 230, 236), rng, 8)
    parts = [
        Part(((0.34, 0.44), (0.52, 0.44), (0.36, 0.0), (0.26, 0.0)), dark),
        Part(((0.0, 0.06), (0.12, 0.06), (0.26, 0.46), (0.06, 0.52)), colour),
        Part(((0.02, 0.44), (0.2, 0.34), (0.86, 0.34), (1.0, 0.54), (0.9, 0.68), (0.2, 0.68)), body),
        Part(((0.1, 0.53), (0.99, 0.53), (0.96, 0.6), (0.16, 0.61)), colour),
        Part(((0.84, 0.38), (0.94, 0.47), (0.82, 0.49)), GLASS),
        *(Part(oval(x, 0.44, 0.025, 0.055), DARK) for x in (0.3, 0.42, 0.54, 0.66)),
        Part(((0.34, 0.58), (0.62, 0.58), (0.34, 1.0), (0.2, 1.0)), colour),
    ]
    return Shape(tuple(parts), rng.uniform(1.8, 2.2))


def _windmill(rng: Random, _paint: Colour) -> Shape:
    wall = jitter(rng.choice([(232, 220, 200), (206, 176, 140), (222, 222, 226)]), rng)
    sails = jitter(rng.choice([(176, 74, 54), (126, 82, 50)]), rng)
    hub = (0.5, 0.36)
    turn = rng.uniform(0, 90)
    parts = [
        Part(((0.4, 0.36), (0.6, 0.36), (0.7, 1.0), (0.3, 1.0)), wall),
        Part(((0.37, 0.37), (0.5, 0.24), (0.63, 0.37)), (140, 60, 48)),
        Part(rect(0.45, 0.84, 0.55, 1.0), WOOD),
        Part(oval(0.5, 0.64, 0.035, 0.035), DARK),
    ]
    aspect = 0.74
    for i in range(4):
        angle = math.radians(turn + 90 * i)
        along = (math.cos(angle), math.sin(angle))
        across = (-along[1], along[0])

        def spot(far: float, side: float, a: Point = along, b: Point = across) -> Point:
            x, y = a[0] * far + b[0] * side, a[1] * far + b[1] * side
            return (hub[0] + x / aspect, hub[1] + y)

        parts.append(Part((spot(0.06, 0.0), spot(0.36, 0.0), spot(0.36, 0.13), spot(0.1, 0.12)), sails))
        parts.append(Part((hub, spot(0.36, 0.0)), WOOD, 0.025))
    parts.append(Part(oval(*hub, 0.045 / aspect, 0.045), DARK))
    return Shape(tuple(parts), aspect)


def _lighthouse(rng: Random, _paint: Colour) -> Shape:
    band = jitter((208, 44, 44), rng)
    white = jitter((244, 242, 236), rng, 8)
    count = rng.choice([5, 7])
    parts = [Part(((0.0, 1.0), (0.14, 0.9), (0.86, 0.9), (1.0, 1.0)), (104, 98, 96))]
    for i in range(count):
        top, low = 0.26 + 0.66 * i / count, 0.26 + 0.66 * (i + 1) / count
        half_top, half_low = 0.2 + 0.14 * i / count, 0.2 + 0.14 * (i + 1) / count
        points = (
            (0.5 - half_top, top),
            (0.5 + half_top, top),
            (0.5 + half_low, low),
            (0.5 - half_low, low),
        )
        parts.append(Part(points, band if i % 2 == 0 else white))
    parts += [
        Part(rect(0.2, 0.22, 0.8, 0.27), DARK),
        Part(rect(0.32, 0.1, 0.68, 0.22), (255, 236, 120)),
        Part(((0.26, 0.11), (0.5, 0.0), (0.74, 0.11)), band),
    ]
    return Shape(tuple(parts), rng.uniform(0.4, 0.5))


def _tent(rng: Random, paint: Colour) -> Shape:
    cloth = jitter(paint, rng)
    parts = [
        Part(((0.32, 0.06), (0.78, 0.0), (1.0, 0.94), (0.66, 1.0)), mix(cloth, DARK, 0.25)),
        Part(((0.0, 1.0), (0.32, 0.06), (0.66, 1.0)), cloth),
        Part(((0.2, 1.0), (0.32, 0.4), (0.46, 1.0)), DARK),
        Part(((0.32, 0.4), (0.46, 1.0), (0.53, 1.0)), mix(cloth, (255, 255, 255), 0.4)),
    ]
    return Shape(tuple(parts), rng.uniform(1.35, 1.7))


def _castle(rng: Random, _paint: Colour) -> Shape:
    stone = jitter(rng.choice([(168, 164, 166), (190, 172, 150), (140, 140, 156)]), rng)
    cap = jitter(rng.choice([(60, 70, 130), (150, 52, 52), (70, 70, 80)]), rng)
    shade = mix(stone, DARK, 0.25)
    parts = [Part(rect(0.14, 0.52, 0.86, 1.0), stone)]
    parts += [Part(rect(x, 0.46, x + 0.07, 0.53), stone) for x in (0.3, 0.42, 0.54, 0.66)]
    parts += [
        Part(rect(0.4, 0.26, 0.6, 0.54), shade),
        Part(((0.36, 0.27), (0.5, 0.0), (0.64, 0.27)), cap),
    ]
    for x in (0.02, 0.76):
        parts.append(Part(rect(x, 0.38, x + 0.22, 1.0), shade))
        parts.append(Part(((x - 0.02, 0.39), (x + 0.11, 0.14), (x + 0.24, 0.39)), cap))
        parts.append(Part(rect(x + 0.08, 0.5, x + 0.14, 0.62), DARK))
    parts.append(
        Part(
            (
                (0.41, 1.0),
                (0.41, 0.78),
                *oval(0.5, 0.78, 0.09, 0.1, start=180, stop=360),
                (0.59, 1.0),
            ),
            DARK,
        )
    )
    parts.append(Part(rect(0.47, 0.34, 0.53, 0.44), DARK))
    return Shape(tuple(parts), rng.uniform(0.95, 1.2))


SHAPES: dict[str, Callable[[Random, Colour], Shape]] = {
    "sun": _sun,
    "moon": _moon,
    "tree": _tree,
    "house": _house,
    "boat": _boat,
    "bird": _bird,
    "car": _car,
    "balloon": _balloon,
    "plane": _plane,
    "windmill": _windmill,
    "lighthouse": _lighthouse,
    "tent": _tent,
    "castle": _castle,
}
"""How to draw each kind of thing; the order is the order of the detector's classes."""


def build(kind: str, paint: str | None, seed: int, *, flip: bool) -> Shape:
    """The shape of one thing; the same arguments give the same shape."""
    shape = SHAPES[kind](Random(seed), PAINTS[paint] if paint else (128, 128, 128))
    if not flip:
        return shape
    mirrored = (Part(tuple((1 - x, y) for x, y in part.points), part.colour, part.stroke) for part in shape.parts)
    return Shape(tuple(mirrored), shape.aspect)
