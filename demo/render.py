"""Draws the training pictures once: square thumbnails for CLIP and BLIP, files for YOLO."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from world import OBJECTS, Box, Scene

THUMB = 124
"""Side of the square thumbnails: the models' input plus room for the random crops."""
LONG_SIDE = 384
"""Of the pictures that the detector gets too."""
THUMB_LONG_SIDE = 288
"""Of those that only become thumbnails."""
YOLO_SIDE = 320
"""The long side of the detector's files, and what it sees pictures at."""
TRAIN_PICTURES = 12_000
YOLO_PICTURES = 4000
"""The first of the training pictures are written as files for the detector too."""
ASPECTS = ((16, 9), (16, 9), (16, 10), (16, 10), (3, 2), (4, 3), (21, 9), (1, 1), (3, 4), (9, 16))


@dataclass(frozen=True)
class Rendered:
    """Thumbnails `[n, THUMB, THUMB, 3]` and, per picture, boxes in shares of the picture."""

    scenes: list[Scene]
    thumbs: NDArray[np.uint8]
    boxes: list[list[Box]]


def size_of(seed: int, long_side: int = LONG_SIDE) -> tuple[int, int]:
    """The picture size that goes with a seed; all common aspect ratios occur."""
    wide, high = Random(seed ^ 0x5EED).choice(ASPECTS)
    scale = long_side / max(wide, high)
    return round(wide * scale), round(high * scale)


def thumb(picture: Image.Image) -> NDArray[np.uint8]:
    """The whole picture squashed into a square, as the models' own preprocessing does it."""
    return np.asarray(picture.resize((THUMB, THUMB), Image.Resampling.BICUBIC))


def _draw(seed: int, folder: Path | None) -> tuple[NDArray[np.uint8], list[Box]]:
    scene = Scene.random(seed)
    width, height = size_of(seed, LONG_SIDE if folder else THUMB_LONG_SIDE)
    picture = scene.draw(width, height)
    boxes: list[Box] = [
        (kind, x1 / width, y1 / height, x2 / width, y2 / height) for kind, x1, y1, x2, y2 in scene.boxes(width, height)
    ]
    if folder is not None:
        save_yolo(folder, seed, picture, boxes)
    return thumb(picture), boxes


def save_yolo(folder: Path, seed: int, picture: Image.Image, boxes: list[Box]) -> None:
    """One picture and its label file in the layout ultralytics reads."""
    scale = YOLO_SIDE / max(picture.size)
    small = picture.resize(
        (round(picture.width * scale), round(picture.height * scale)),
        Image.Resampling.BICUBIC,
    )
    small.save(folder / "images" / f"{seed}.jpg", quality=92)
    lines = [
        f"{OBJECTS.index(kind)} {(x1 + x2) / 2:.5f} {(y1 + y2) / 2:.5f} {x2 - x1:.5f} {y2 - y1:.5f}"
        for kind, x1, y1, x2, y2 in boxes
    ]
    (folder / "labels" / f"{seed}.txt").write_text("\n".join(lines) + "\n")


def render(work: Path, name: str, first_seed: int, count: int, *, yolo_files: int = 0, workers: int = 2) -> Rendered:
    """Draw `count` scenes, or read them back if `work` holds them already."""
    cache, truth = work / f"{name}.npy", work / f"{name}.json"
    seeds = range(first_seed, first_seed + count)
    if not truth.exists():
        folder = work / f"{name}-yolo"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "labels").mkdir(parents=True, exist_ok=True)
        thumbs = np.lib.format.open_memmap(cache, mode="w+", dtype=np.uint8, shape=(count, THUMB, THUMB, 3))
        boxes: list[list[Box]] = []
        with ProcessPoolExecutor(workers) as pool:
            with_files = pool.map(partial(_draw, folder=folder), seeds[:yolo_files], chunksize=32)
            without = pool.map(partial(_draw, folder=None), seeds[yolo_files:], chunksize=32)
            for results in (with_files, without):
                for image, found in results:
                    thumbs[len(boxes)] = image
                    boxes.append(found)
        thumbs.flush()
        truth.write_text(json.dumps(boxes))
    stored: list[list[list[Any]]] = json.loads(truth.read_text())
    return Rendered(
        [Scene.random(seed) for seed in seeds],
        np.load(cache),
        [[(str(b[0]), *map(float, b[1:])) for b in row] for row in stored],  # type: ignore[misc]
    )
