"""The land of a scene as pixel-space polygons, from the horizon down to the lower border."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from world_shapes import Colour, Part, Point, jitter, mix, oval, rect

SNOW: Colour = (240, 244, 250)


class Ground:
    """What a land builder needs: the picture's size, the horizon and a random stream per layer."""

    def __init__(self, width: int, height: int, horizon: float, seed: int) -> None:
        self.width, self.height = float(width), float(height)
        self.unit = float(min(width, height))
        self.horizon = horizon * height
        self.seed = seed

    def rng(self, layer: int) -> Random:
        """A stream of its own per layer: how much one layer draws never shifts the next."""
        return Random(self.seed * 31 + layer)

    def hills(self, layer: int, base: float, swing: float, length: float, colour: Colour) -> tuple[Part, list[Point]]:
        """A smooth hilly polygon from `base` (pixels) to the bottom, and its upper edge."""
        rng = self.rng(layer)
        waves = [
            (
                swing * self.unit * share,
                rng.uniform(0.7, 1.3) * length * self.unit * share**0.5,
                rng.uniform(0, 6.28),
            )
            for share in (1.0, 0.35)
        ]
        count = 48
        edge = [
            (
                self.width * i / count,
                base + sum(a * math.sin(6.28 * self.width * i / count / b + c) for a, b, c in waves),
            )
            for i in range(count + 1)
        ]
        points = (*edge, (self.width, self.height + 2), (0.0, self.height + 2))
        return Part(points, colour), edge

    def steps(self, rng: Random, low: float, high: float) -> list[float]:
        """Places from left to right, `low` to `high` units apart."""
        places: list[float] = []
        x = -rng.uniform(0, high) * self.unit
        while x < self.width + high * self.unit:
            places.append(x)
            x += rng.uniform(low, high) * self.unit
        return places


def pine(x: float, base: float, size: float, colour: Colour, snowy: bool = False) -> list[Part]:
    """A fir of height `size` whose foot is at (x, base)."""
    parts = [Part(rect(x - size * 0.04, base - size * 0.15, x + size * 0.04, base), (70, 48, 34))]
    for low, high, half in ((0.1, 0.55, 0.27), (0.36, 0.8, 0.21), (0.6, 1.0, 0.14)):
        points = (
            (x - size * half, base - size * low),
            (x, base - size * high),
            (x + size * half, base - size * low),
        )
        parts.append(Part(points, colour))
        if snowy:
            top = base - size * high
            cap = (
                (x - size * half * 0.5, top + size * 0.2),
                (x, top),
                (x + size * half * 0.5, top + size * 0.2),
            )
            parts.append(Part(cap, SNOW))
    return parts


def _mountains(g: Ground) -> list[Part]:
    rock = jitter(g.rng(0).choice([(116, 104, 156), (96, 108, 164), (142, 108, 138)]), g.rng(0), 16)
    parts: list[Part] = []
    for layer in (1, 2):
        rng = g.rng(layer)
        colour = mix(rock, (190, 200, 220), 0.35) if layer == 1 else rock
        foot = g.horizon + (0.06 + 0.03 * layer) * g.unit
        for x in g.steps(rng, 0.24, 0.46):
            tall = rng.uniform(0.22, 0.4) * g.unit * (1.15 if layer == 1 else 0.85)
            half = tall * rng.uniform(0.75, 1.0)
            lean = rng.uniform(-0.2, 0.2) * half
            top = (x + lean, foot - tall)
            parts.append(Part(((x - half, foot), top, (x + half, foot)), colour))
            dark = (
                (x + half, foot),
                top,
                (x + lean + half * 0.15, foot - tall * 0.45),
                (x + half * 0.2, foot),
            )
            parts.append(Part(dark, mix(colour, (30, 30, 50), 0.25)))
            cap = rng.uniform(0.25, 0.4)
            left = (top[0] + (x - half - top[0]) * cap, top[1] + tall * cap)
            right = (top[0] + (x + half - top[0]) * cap, top[1] + tall * cap)
            middle = (top[0] + half * 0.04, top[1] + tall * cap * 0.6)
            parts.append(Part((left, top, right, middle), SNOW))
    soil = jitter(g.rng(3).choice([(126, 108, 146), (112, 104, 150), (138, 112, 136)]), g.rng(3))
    ground, _ = g.hills(4, g.horizon + 0.1 * g.unit, 0.012, 0.9, soil)
    parts.append(ground)
    rng = g.rng(5)
    for _ in range(7):
        x, y = rng.random() * g.width, g.horizon + rng.uniform(0.2, 0.5) * g.unit
        size = rng.uniform(0.015, 0.035) * g.unit
        parts.append(Part(oval(x, y, size * 1.6, size, start=180, stop=360), mix(soil, rock, 0.8)))
    return parts


def _sea(g: Ground) -> list[Part]:
    rng = g.rng(0)
    water = jitter(rng.choice([(28, 102, 158), (24, 128, 150), (40, 86, 140)]), rng)
    parts = [Part(rect(-2, g.horizon, g.width + 2, g.height + 2), water)]
    depth = g.height - g.horizon
    for row in range(1, 5):
        shade, _ = g.hills(row, g.horizon + depth * row / 5, 0.006, 0.22, mix(water, (0, 20, 50), 0.1 * row))
        parts.append(shade)
    rng = g.rng(9)
    for row in range(9):
        y = g.horizon + depth * (0.05 + 0.95 * (row / 9) ** 1.3)
        length = (0.05 + 0.012 * row) * g.unit
        for x in g.steps(rng, 0.14, 0.4):
            crest = (
                (x, y),
                (x + length * 0.25, y - length * 0.13),
                (x + length * 0.5, y),
                (x + length * 0.75, y - length * 0.13),
                (x + length, y),
            )
            parts.append(Part(crest, mix(water, (255, 255, 255), 0.5), max(1.0, 0.007 * g.unit)))
    return parts


def _desert(g: Ground) -> list[Part]:
    rng = g.rng(0)
    sand = jitter(rng.choice([(226, 184, 112), (216, 164, 98), (234, 202, 140)]), rng)
    parts: list[Part] = []
    depth = g.height - g.horizon
    for layer in range(4):
        rng = g.rng(layer + 1)
        base = g.horizon + depth * (0.02, 0.16, 0.4, 0.7)[layer]
        colour = mix(sand, (120, 66, 40), 0.09 * layer)
        dune, edge = g.hills(layer + 1, base, (0.05, 0.05, 0.04, 0.03)[layer], 0.75, colour)
        parts.append(dune)
        lower = [(x, y + 0.035 * g.unit) for x, y in edge]
        parts.append(Part((*edge, *reversed(lower)), mix(colour, (255, 240, 200), 0.4)))
        if layer in (1, 2):
            for x in g.steps(rng, 0.5, 1.1):
                parts += _cactus(x, base + 0.06 * g.unit, rng.uniform(0.08, 0.13) * g.unit)
    return parts


def _cactus(x: float, base: float, size: float) -> list[Part]:
    green = (62, 118, 70)
    wide = size * 0.09
    bars = [
        (x - wide, base - size, x + wide, base),
        (x - size * 0.34, base - size * 0.5, x, base - size * 0.36),
        (x - size * 0.34, base - size * 0.75, x - size * 0.2, base - size * 0.36),
        (x, base - size * 0.6, x + size * 0.3, base - size * 0.46),
        (x + size * 0.17, base - size * 0.85, x + size * 0.31, base - size * 0.46),
    ]
    return [Part(rect(*bar), green) for bar in bars]


def _forest(g: Ground) -> list[Part]:
    rng = g.rng(0)
    leaf = jitter(rng.choice([(30, 84, 52), (44, 96, 50), (26, 74, 66)]), rng)
    depth = g.height - g.horizon
    parts = [Part(rect(-2, g.horizon, g.width + 2, g.height + 2), mix(leaf, (10, 30, 24), 0.3))]
    for layer in range(3):
        rng = g.rng(layer + 1)
        base = g.horizon + depth * (0.08, 0.16, 0.26)[layer]
        colour = mix(mix(leaf, (190, 210, 200), 0.3), leaf, layer / 2)
        for x in g.steps(rng, 0.075, 0.15):
            parts += pine(x, base, rng.uniform(0.22, 0.36) * g.unit, jitter(colour, rng, 8))
    floor, _ = g.hills(5, g.horizon + depth * 0.25, 0.012, 0.8, mix(leaf, (120, 110, 60), 0.35))
    parts.append(floor)
    rng = g.rng(6)
    for _ in range(8):
        x, y = rng.random() * g.width, g.horizon + depth * rng.uniform(0.4, 0.98)
        size = rng.uniform(0.03, 0.06) * g.unit
        parts.append(Part(oval(x, y, size, size * 0.7, start=180, stop=360), mix(leaf, (90, 140, 60), 0.4)))
    return parts


def _city(g: Ground) -> list[Part]:
    rng = g.rng(0)
    wall = jitter(rng.choice([(98, 104, 124), (124, 108, 112), (84, 92, 108)]), rng)
    depth = g.height - g.horizon
    street = g.horizon + depth * 0.2
    parts: list[Part] = []
    for layer in (1, 2):
        rng = g.rng(layer)
        colour = mix(wall, (180, 190, 210), 0.4) if layer == 1 else wall
        for x in g.steps(rng, 0.1, 0.19):
            wide = rng.uniform(0.1, 0.17) * g.unit
            top = street - rng.uniform(0.18, 0.42) * g.unit * (1.1 if layer == 1 else 0.8)
            tone = jitter(colour, rng, 12)
            parts.append(Part(rect(x, top, x + wide, street), tone))
            if rng.random() < 0.3:
                mast = ((x + wide / 2, top), (x + wide / 2, top - 0.06 * g.unit))
                parts.append(Part(mast, tone, max(1.0, 0.008 * g.unit)))
            if layer == 1:
                continue
            lit = rng.choice([(255, 224, 130), (210, 232, 245), (255, 240, 190)])
            columns, gap = 3, wide / 3
            rows = int((street - top) / (gap * 1.25))
            for row in range(rows):
                for column in range(columns):
                    if rng.random() < 0.75:
                        left, up = x + gap * (column + 0.28), top + gap * (1.25 * row + 0.4)
                        parts.append(Part(rect(left, up, left + gap * 0.45, up + gap * 0.6), lit))
    asphalt = jitter((88, 88, 94), g.rng(4), 10)
    parts.append(Part(rect(-2, street, g.width + 2, g.height + 2), asphalt))
    parts.append(
        Part(
            rect(-2, street, g.width + 2, street + 0.03 * g.unit),
            mix(asphalt, (255, 255, 255), 0.4),
        )
    )
    middle = street + (g.height - street) * 0.6
    for x in g.steps(g.rng(5), 0.22, 0.23):
        parts.append(Part(rect(x, middle, x + 0.11 * g.unit, middle + 0.018 * g.unit), (230, 228, 210)))
    return parts


def _meadow(g: Ground) -> list[Part]:
    rng = g.rng(0)
    grass = jitter(rng.choice([(106, 176, 72), (130, 188, 84), (88, 162, 84)]), rng)
    depth = g.height - g.horizon
    parts: list[Part] = []
    for layer in range(3):
        colour = mix(mix(grass, (200, 225, 190), 0.35), grass, layer / 2)
        base = g.horizon + depth * (0.04, 0.17, 0.4)[layer]
        parts.append(g.hills(layer + 1, base, (0.045, 0.035, 0.02)[layer], 0.9, colour)[0])
    rng = g.rng(6)
    petals = [(240, 90, 120), (250, 220, 70), (245, 245, 250), (190, 110, 220), (235, 70, 60)]
    for _ in range(70):
        near = rng.uniform(0.28, 1.0)
        x, y = rng.random() * g.width, g.horizon + depth * near
        size = (0.005 + 0.012 * near) * g.unit
        stem = ((x, y), (x, y + size * 2.2))
        parts.append(Part(stem, mix(grass, (20, 60, 20), 0.4), max(1.0, size * 0.35)))
        parts.append(Part(oval(x, y, size, size), rng.choice(petals)))
    return parts


def _snow(g: Ground) -> list[Part]:
    depth = g.height - g.horizon
    parts: list[Part] = []
    for layer in range(3):
        rng = g.rng(layer + 1)
        base = g.horizon + depth * (0.03, 0.17, 0.42)[layer]
        colour = mix((206, 220, 238), jitter(SNOW, rng, 6), layer / 2)
        hill, edge = g.hills(layer + 1, base, (0.04, 0.04, 0.02)[layer], 0.85, colour)
        parts.append(hill)
        lower = [(x, y + 0.02 * g.unit) for x, y in edge]
        parts.append(Part((*edge, *reversed(lower)), mix(colour, (150, 180, 220), 0.35)))
        if layer < 2:
            for x in g.steps(rng, 0.25, 0.7):
                size = rng.uniform(0.1, 0.17) * g.unit
                parts += pine(x, base + 0.05 * g.unit, size, (58, 98, 92), snowy=True)
    rng = g.rng(7)
    for _ in range(6):
        x, y = rng.random() * g.width, g.horizon + depth * rng.uniform(0.55, 0.98)
        size = rng.uniform(0.03, 0.07) * g.unit
        parts.append(Part(oval(x, y, size * 1.5, size * 0.5, start=180, stop=360), (196, 214, 236)))
    return parts


def _canyon(g: Ground) -> list[Part]:
    rng = g.rng(0)
    clay = jitter(rng.choice([(188, 92, 58), (172, 78, 56), (200, 108, 66)]), rng)
    depth = g.height - g.horizon
    back = mix(clay, (235, 190, 160), 0.5)
    parts = [Part(rect(-2, g.horizon + depth * 0.06, g.width + 2, g.height + 2), back)]
    for layer in (1, 2):
        rng = g.rng(layer)
        colour = mix(clay, (235, 190, 160), 0.35) if layer == 1 else clay
        foot = g.horizon + depth * (0.12 if layer == 1 else 0.22)
        for x in g.steps(rng, 0.34, 0.62):
            tall = rng.uniform(0.2, 0.36) * g.unit * (1.1 if layer == 1 else 0.9)
            top, low = rng.uniform(0.09, 0.16) * g.unit, rng.uniform(0.19, 0.26) * g.unit
            count = 5
            for band in range(count):
                up, down = band / count, (band + 1) / count
                wide_up, wide_down = top + (low - top) * up**2, top + (low - top) * down**2
                points = (
                    (x - wide_up, foot - tall * (1 - up)),
                    (x + wide_up, foot - tall * (1 - up)),
                    (x + wide_down, foot - tall * (1 - down)),
                    (x - wide_down, foot - tall * (1 - down)),
                )
                tone = mix(colour, (250, 206, 160), 0.35) if band % 2 else colour
                parts.append(Part(points, tone))
    floor = mix(clay, (110, 50, 40), 0.25)
    parts.append(g.hills(4, g.horizon + depth * 0.2, 0.012, 1.0, floor)[0])
    rng = g.rng(5)
    for _ in range(9):
        x, y = rng.random() * g.width, g.horizon + depth * rng.uniform(0.35, 0.98)
        size = rng.uniform(0.012, 0.03) * g.unit
        parts.append(Part(oval(x, y, size * 1.5, size, start=180, stop=360), mix(floor, (60, 30, 30), 0.5)))
    return parts


LANDS: dict[str, Callable[[Ground], list[Part]]] = {
    "mountains": _mountains,
    "sea": _sea,
    "desert": _desert,
    "forest": _forest,
    "city": _city,
    "meadow": _meadow,
    "snow": _snow,
    "canyon": _canyon,
}


def build_land(land: str, width: int, height: int, horizon: float, seed: int) -> list[Part]:
    """The land's polygons from back to front, in pixels."""
    return LANDS[land](Ground(width, height, horizon, seed))
