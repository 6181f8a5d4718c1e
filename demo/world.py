"""A small drawn world with ground truth: wallpapers of any size from a seed.

    scene = Scene.random(1_000_007)
    picture = scene.draw(1920, 1080)
    scene.sky, scene.land, scene.style, scene.main_object
    scene.boxes(1920, 1080)     # [("boat", x1, y1, x2, y2), ...] in pixels
    scene.captions()            # several phrasings of the same truth

Seeds below `FIRST_TEST_SEED` are for training; figures and tests use only seeds from it upwards.
The same seed gives the same scene at every size, and a scene keeps its layout when only the size
of the picture changes. Needs Pillow and NumPy, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from world_land import LANDS as _LANDS
from world_land import build_land
from world_paint import FINISHES, paint
from world_shapes import PAINTS, SHAPES, Part, build
from world_sky import SKIES as _SKIES

FIRST_TEST_SEED = 1_000_000

SKIES: tuple[str, ...] = tuple(_SKIES)
LANDS: tuple[str, ...] = tuple(_LANDS)
STYLES: tuple[str, ...] = tuple(FINISHES)
OBJECTS: tuple[str, ...] = tuple(SHAPES)
COLOURS: tuple[str, ...] = tuple(PAINTS)

Box = tuple[str, float, float, float, float]

PAINTED = frozenset({"house", "boat", "bird", "car", "balloon", "plane", "tent"})
"""Kinds that come in one of `COLOURS`, which captions then name."""
FLYING = frozenset({"sun", "moon", "bird", "balloon", "plane"})
BEHIND = frozenset({"sun", "moon"})
"""Kinds so far away that the land may hide them."""
NEVER_MAIN = frozenset({"sun", "moon", "bird", "plane"})
"""Kinds that a picture shows by the way, and no caption names."""

_HEIGHTS: dict[str, float] = {
    "sun": 1.05,
    "moon": 1.05,
    "tree": 1.1,
    "house": 0.95,
    "boat": 1.1,
    "bird": 1.2,
    "car": 0.82,
    "balloon": 1.2,
    "plane": 1.1,
    "windmill": 1.3,
    "lighthouse": 1.3,
    "tent": 0.92,
    "castle": 1.1,
}
"""Height of each kind relative to the others at one nominal size."""

_NEVER_ON: dict[str, frozenset[str]] = {
    "sea": frozenset({"tree", "house", "car", "windmill", "tent", "castle"}),
    "city": frozenset({"boat", "windmill", "lighthouse", "tent", "castle"}),
    "mountains": frozenset({"boat", "lighthouse"}),
    "desert": frozenset({"boat", "lighthouse"}),
    "forest": frozenset({"boat", "lighthouse", "windmill"}),
    "meadow": frozenset({"boat", "lighthouse"}),
    "snow": frozenset({"boat"}),
    "canyon": frozenset({"boat"}),
}
_WEIGHTS = {"boat": 6.0, "sun": 2.0, "moon": 2.5, "windmill": 1.6, "tent": 1.4, "lighthouse": 1.5}
"""Kinds that few places allow come more often there."""
_SUNNY = frozenset({"day", "sunset", "rainbow"})
_MOONLIT = frozenset({"night", "aurora"})

MIN_VISIBLE = 0.5
"""A thing less visible than this gets no box: nobody could be asked to find it."""


@dataclass(frozen=True)
class Thing:
    """One object: `x` and `y` place the middle of its foot (its middle, if it flies), in shares
    of the picture; `size` is its nominal height in shares of the picture's mean side."""

    kind: str
    colour: str | None
    x: float
    y: float
    size: float
    seed: int
    flip: bool

    @property
    def words(self) -> str:
        """What a caption calls it, without the article: "red balloon"."""
        return f"{self.colour} {self.kind}" if self.colour else self.kind


@dataclass(frozen=True)
class Placed:
    """A thing on a canvas: its parts and its unclipped box in pixels."""

    thing: Thing
    parts: tuple[Part, ...]
    box: tuple[float, float, float, float]

    @property
    def behind_land(self) -> bool:
        return self.thing.kind in BEHIND


def allowed(sky: str, land: str) -> list[str]:
    """The kinds of things that can be met under `sky` on `land`."""
    kinds = [k for k in OBJECTS if k not in _NEVER_ON[land]]
    return [k for k in kinds if not (k == "sun" and sky not in _SUNNY) and not (k == "moon" and sky not in _MOONLIT)]


def _thing(rng: Random, kind: str, horizon: float, size: float, x: float) -> Thing:
    if kind in BEHIND:
        # High enough that peaks and towers leave most of it in sight.
        y = horizon * rng.uniform(0.16, 0.4)
    elif kind in FLYING:
        y = horizon * rng.uniform(0.25, 0.72)
    else:
        y = horizon + (1 - horizon) * rng.uniform(0.42, 0.92)
    colour = rng.choice(COLOURS) if kind in PAINTED else None
    return Thing(kind, colour, x, y, size, rng.randrange(1 << 30), rng.random() < 0.5)


@dataclass(frozen=True)
class Scene:
    """One wallpaper's whole truth; `things` are in drawing order and the last is the main one."""

    seed: int
    sky: str
    land: str
    style: str
    horizon: float
    things: tuple[Thing, ...]

    @staticmethod
    def random(
        seed: int,
        *,
        sky: str | None = None,
        land: str | None = None,
        style: str | None = None,
        main: str | None = None,
    ) -> Scene:
        """The scene of `seed`. Fixing a facet keeps the rest of the lot; a `main` object that
        cannot be met under that sky or on that land is placed all the same."""
        rng = Random(seed)
        lots = rng.choice(SKIES), rng.choice(LANDS), rng.choice(STYLES)
        sky, land, style = sky or lots[0], land or lots[1], style or lots[2]
        kinds = allowed(sky, land)
        mains = [k for k in kinds if k not in NEVER_MAIN]
        lot = rng.choices(mains, [_WEIGHTS.get(k, 1.0) for k in mains])[0]
        kind = main or lot
        horizon = rng.uniform(0.46, 0.62)
        x = rng.uniform(0.3, 0.7)
        first = _thing(rng, kind, horizon, rng.uniform(0.52, 0.62), x)
        others: list[Thing] = []
        for _ in range(rng.choice([0, 1, 1, 1, 2, 2])):
            # A second sun or moon would be a lie, and a second main kind would blur the caption.
            taken = {first.kind} | ({t.kind for t in others} & BEHIND)
            left = [k for k in kinds if k not in taken]
            kind = rng.choices(left, [_WEIGHTS.get(k, 1.0) for k in left])[0]
            away = rng.uniform(0.25, 0.75)
            other = _thing(rng, kind, horizon, rng.uniform(0.16, 0.21), (x + away) % 1.0)
            others.append(other)
        others.sort(key=lambda t: (t.kind not in BEHIND, t.kind not in FLYING, t.y))
        return Scene(seed, sky, land, style, horizon, (*others, first))

    @property
    def main(self) -> Thing:
        return self.things[-1]

    @property
    def main_object(self) -> str:
        return self.main.kind

    def place(self, width: int, height: int) -> list[Placed]:
        """Where everything stands on a canvas of this size, in drawing order."""
        short = min(width, height)
        # Between the short side and the area, so that things stay easy to see on narrow pictures.
        unit = 0.85 * (width * height) ** 0.5
        placed: list[Placed] = []
        for thing in self.things:
            shape = build(thing.kind, thing.colour, thing.seed, flip=thing.flip)
            high = thing.size * _HEIGHTS[thing.kind] * unit
            wide = high * shape.aspect
            if wide > 0.7 * width:
                high, wide = high * 0.7 * width / wide, 0.7 * width
            x, y = thing.x * width - wide / 2, thing.y * height - high
            if thing.kind in FLYING:
                y += high / 2
            if thing is self.main:
                x, y = min(max(x, 0.02 * short), width - wide - 0.02 * short), max(y, 0.02 * short)
            parts = tuple(
                Part(
                    tuple((x + px * wide, y + py * high) for px, py in p.points),
                    p.colour,
                    p.stroke * high,
                )
                for p in shape.parts
            )
            xs = [px for part in parts for px, _ in part.points]
            ys = [py for part in parts for _, py in part.points]
            placed.append(Placed(thing, parts, (min(xs), min(ys), max(xs), max(ys))))
        return placed

    def draw(self, width: int, height: int) -> Image.Image:
        """The picture, RGB."""
        return paint(self, width, height)

    def boxes(self, width: int, height: int) -> list[Box]:
        """Boxes of the things at least half visible, main object first, clipped to the picture."""
        # Which thing owns which pixel is found on a small canvas of the same shape.
        scale = 200 / min(width, height)
        small = (round(width * scale), round(height * scale))
        owners = Image.new("L", small)
        draw = ImageDraw.Draw(owners)
        placed = self.place(*small)
        land = build_land(self.land, *small, self.horizon, self.seed)
        whole: list[int] = []
        land_drawn = False
        for index, item in enumerate(placed, start=1):
            if not item.behind_land and not land_drawn:
                _fill(draw, land, 0)
                land_drawn = True
            alone = Image.new("L", (small[0] * 3, small[1] * 3))
            _fill(ImageDraw.Draw(alone), item.parts, 1, small)
            whole.append(int(np.asarray(alone).sum()))
            _fill(draw, item.parts, index)
        if not land_drawn:
            _fill(draw, land, 0)
        seen = np.bincount(np.asarray(owners).ravel(), minlength=len(placed) + 1)
        boxes: list[Box] = []
        for index, item in enumerate(self.place(width, height), start=1):
            if seen[index] >= MIN_VISIBLE * whole[index - 1]:
                x1, y1, x2, y2 = item.box
                clipped = (
                    max(x1, 0.0),
                    max(y1, 0.0),
                    min(x2, float(width)),
                    min(y2, float(height)),
                )
                boxes.append((item.thing.kind, *clipped))
        return boxes[::-1]

    def captions(self) -> list[str]:
        """The scene in several phrasings; each names sky, land and main object."""
        from world_words import captions

        return captions(self)


def _fill(
    draw: ImageDraw.ImageDraw,
    parts: list[Part] | tuple[Part, ...],
    value: int,
    offset: tuple[int, int] = (0, 0),
) -> None:
    for part in parts:
        points = [(x + offset[0], y + offset[1]) for x, y in part.points]
        if part.stroke:
            draw.line(points, fill=value, width=max(1, round(part.stroke)))
        else:
            draw.polygon(points, fill=value)
