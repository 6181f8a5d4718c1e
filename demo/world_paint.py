"""Puts a scene on a canvas in one of the styles. Owns the pixels; decides nothing about content."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from world_land import build_land
from world_shapes import Colour, Part, mix
from world_sky import SKIES, Light, curtains, gradient, lit, ornaments, rain

if TYPE_CHECKING:
    from world import Scene

REFERENCE = 400
"""Noise is made for a short side of this many cells, so a picture looks alike at every size."""

Finish = Callable[[Image.Image, Random, bool], Image.Image]


def vivid(colour: Colour) -> Colour:
    """The same hue at full brightness, for glowing outlines."""
    low, high = min(colour), max(colour)
    spread = max(high - low, 1)
    lift = 0.25 if high - low > 40 else 0.85
    red, green, blue = (round(255 * (lift + (1 - lift) * (c - low) / spread)) for c in colour)
    return (red, green, blue)


class Canvas:
    """Draws parts in a style's way; with the neon style a second layer gathers the glow."""

    def __init__(self, base: Image.Image, style: str, dark: bool) -> None:
        self.image, self.style = base, style
        self.unit = min(base.size)
        self.draw = ImageDraw.Draw(base)
        self.glow = Image.new("RGB", base.size) if style == "neon" else None
        self.glow_draw = ImageDraw.Draw(self.glow) if self.glow else None
        self.paper: Colour = (30, 36, 62) if dark else (250, 246, 236)
        self.ink: Colour = (226, 230, 240) if dark else (52, 48, 56)

    def put(self, parts: Iterable[Part], light: Light = (1.0, 1.0, 1.0), share: float = 1.0) -> None:
        for part in parts:
            self._one(part.points, lit(part.colour, light, share), part)

    def _one(self, points: tuple[tuple[float, float], ...], colour: Colour, part: Part) -> None:
        line = max(1, round(self.unit * 0.006))
        if part.stroke:
            width = max(1, round(part.stroke))
            if self.glow_draw:
                self.glow_draw.line(points, fill=vivid(part.colour), width=width)
            elif self.style == "line art":
                colour = mix(colour, self.ink, 0.6)
            self.draw.line(points, fill=colour, width=width)
        elif self.style == "line art":
            self.draw.polygon(points, fill=mix(colour, self.paper, 0.28))
            self.draw.line((*points, points[0]), fill=self.ink, width=line)
        elif self.glow_draw:
            self.draw.polygon(points, fill=mix((6, 4, 16), colour, 0.6))
            self.glow_draw.polygon(points, fill=(0, 0, 0))
            self.glow_draw.line((*points, points[0]), fill=vivid(part.colour), width=line)
        else:
            self.draw.polygon(points, fill=colour)


def noise(size: tuple[int, int], cells: float, seed: int) -> np.ndarray:
    """Smooth noise in [-1, 1] with `cells` cells on the short side, alike at every size."""
    unit = min(size)
    shape = (max(2, round(size[1] / unit * cells)), max(2, round(size[0] / unit * cells)))
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32) / 127.5 - 1.0


def _shift(image: Image.Image, amount: np.ndarray) -> Image.Image:
    values = np.asarray(image, dtype=np.float32) + amount[..., None]
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _flat(image: Image.Image, rng: Random, _dark: bool) -> Image.Image:
    return image


def _grainy(image: Image.Image, rng: Random, _dark: bool) -> Image.Image:
    strength = rng.uniform(20, 32)
    grain = noise(image.size, REFERENCE / 3, rng.randrange(1 << 30)) * strength
    faded = Image.blend(image, image.convert("L").convert("RGB"), 0.22)
    return _shift(faded, grain)


def _watercolor(image: Image.Image, rng: Random, _dark: bool) -> Image.Image:
    unit = min(image.size)
    soft = image.filter(ImageFilter.GaussianBlur(unit * 0.006))
    edges = ImageChops.difference(soft, image.filter(ImageFilter.GaussianBlur(unit * 0.016)))
    image = ImageChops.subtract(soft, edges)
    image = Image.blend(image, Image.new("RGB", image.size, (252, 246, 234)), 0.24)
    wash = noise(image.size, 7, rng.randrange(1 << 30)) * 16
    paper = noise(image.size, 130, rng.randrange(1 << 30)) * 6
    return _shift(image, wash + paper)


def _texture(image: Image.Image, rng: Random, _dark: bool) -> Image.Image:
    return _shift(image, noise(image.size, 5, rng.randrange(1 << 30)) * 4)


FINISHES: dict[str, Finish] = {
    "flat": _flat,
    "grainy": _grainy,
    "line art": _texture,
    "pixel art": _flat,
    "neon": _flat,
    "watercolor": _watercolor,
}


def _sky(scene: Scene, width: int, height: int, dark: bool) -> Canvas:
    base = gradient(scene.sky, width, height, scene.seed)
    if scene.style == "line art":
        paper: Colour = (30, 36, 62) if dark else (250, 246, 236)
        base = Image.blend(base, Image.new("RGB", base.size, paper), 0.32)
    elif scene.style == "neon":
        base = Image.blend(base, Image.new("RGB", base.size, (6, 4, 16)), 0.55)
    if scene.sky == "aurora":
        light = curtains(width, height, scene.horizon, scene.seed)
        base = ImageChops.screen(base, light)
    return Canvas(base, scene.style, dark)


def _fog(canvas: Canvas, scene: Scene, strength: float, salt: int) -> None:
    """Pale drifting bands over what is already on the canvas."""
    size = canvas.image.size
    small = (max(2, size[0] // 16), max(2, size[1] // 16))
    drift = noise(size, 3, scene.seed + salt)
    rows = noise((4, small[1]), 7, scene.seed + salt + 1)[:, :1]
    bands = np.asarray(Image.fromarray(rows).resize(size, Image.Resampling.BICUBIC))
    mask = (strength + 0.2 * bands + 0.12 * drift).clip(0, 1) * 255
    pale: Colour = (206, 212, 220) if canvas.style != "neon" else (96, 104, 124)
    veil = Image.new("RGB", size, pale)
    layers = [canvas.image] if canvas.glow is None else [canvas.image, canvas.glow]
    for layer in layers:
        top = veil if layer is canvas.image else Image.new("RGB", size)
        layer.paste(top, (0, 0), Image.fromarray(mask.astype(np.uint8)))


def _compose(scene: Scene, width: int, height: int) -> Image.Image:
    sky = SKIES[scene.sky]
    canvas = _sky(scene, width, height, sky.dark)
    canvas.put(ornaments(scene.sky, width, height, scene.horizon, scene.seed))
    placed = scene.place(width, height)
    for item in placed:
        if item.behind_land:
            canvas.put(item.parts)
    canvas.put(build_land(scene.land, width, height, scene.horizon, scene.seed), sky.light)
    if scene.sky == "fog":
        _fog(canvas, scene, 0.42, 11)
    for item in placed:
        if not item.behind_land:
            canvas.put(item.parts, sky.light, 0.32)
    if scene.sky == "storm":
        canvas.put(rain(width, height, scene.seed))
    if scene.sky == "fog":
        _fog(canvas, scene, 0.12, 17)
    if canvas.glow is None:
        return canvas.image
    halo = canvas.glow.filter(ImageFilter.GaussianBlur(canvas.unit * 0.012))
    return ImageChops.screen(ImageChops.screen(canvas.image, halo), canvas.glow)


def paint(scene: Scene, width: int, height: int) -> Image.Image:
    """The finished RGB picture."""
    rng = Random(scene.seed + 5)
    dark = SKIES[scene.sky].dark
    if scene.style == "pixel art":
        scale = min(rng.choice([56, 64, 72, 80]) / min(width, height), 1.0)
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = _compose(scene, small[0] * 2, small[1] * 2).resize(small, Image.Resampling.NEAREST)
        image = image.quantize(24, dither=Image.Dither.NONE).convert("RGB")
        return image.resize((width, height), Image.Resampling.NEAREST)
    double = width * height < 1_500_000
    image = _compose(scene, width * 2, height * 2) if double else _compose(scene, width, height)
    if double:
        image = image.reduce(2)
    return FINISHES[scene.style](image, rng, dark)
