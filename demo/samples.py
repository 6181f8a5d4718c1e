"""Draws the sample pictures of demo/pictures, in several sizes and formats."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from world import FIRST_TEST_SEED, Scene


class Sample(NamedTuple):
    name: str
    size: tuple[int, int]
    sky: str
    land: str
    style: str
    main: str


SAMPLES = (
    Sample("boat-at-sunset.webp", (3840, 2160), "sunset", "sea", "flat", "boat"),
    Sample("neon-city.webp", (3840, 2160), "night", "city", "neon", "car"),
    Sample("aurora-over-snow.webp", (3840, 1646), "aurora", "snow", "flat", "house"),
    Sample("balloon-over-mountains.jpg", (1920, 1080), "day", "mountains", "flat", "balloon"),
    Sample("lighthouse-in-a-storm.webp", (1920, 1080), "storm", "sea", "watercolor", "lighthouse"),
    Sample("castle-in-the-fog.jpg", (1280, 800), "fog", "forest", "grainy", "castle"),
    Sample("windmill-under-a-rainbow.webp", (1600, 1200), "rainbow", "meadow", "watercolor", "windmill"),
    Sample("tent-in-the-canyon.png", (1280, 720), "day", "canyon", "pixel art", "tent"),
    Sample("tent-under-the-stars.webp", (1080, 1920), "night", "desert", "line art", "tent"),
    Sample("balloon-over-the-city.png", (1280, 800), "sunset", "city", "pixel art", "balloon"),
    Sample("tree-on-the-meadow.webp", (1440, 1440), "day", "meadow", "line art", "tree"),
    Sample("house-in-the-forest.webp", (2560, 1080), "sunset", "forest", "watercolor", "house"),
)


def scene_of(index: int) -> Scene:
    """The scene of the sample at `index`."""
    sample = SAMPLES[index]
    return Scene.random(
        FIRST_TEST_SEED + 900_000 + index,
        sky=sample.sky,
        land=sample.land,
        style=sample.style,
        main=sample.main,
    )


def write_samples(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(SAMPLES):
        picture = scene_of(index).draw(*sample.size)
        options = {"optimize": True} if sample.name.endswith(".png") else {"quality": 80}
        picture.save(folder / sample.name, **options)


if __name__ == "__main__":
    write_samples(Path(__file__).resolve().parent / "pictures")
