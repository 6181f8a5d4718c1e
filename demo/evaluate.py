"""Measures the demo models on pictures from seeds they never saw.

The models are loaded just as the services load any model: by the values of CLIP_MODEL, BLIP_MODEL
and YOLO_MODEL.
"""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from render import YOLO_SIDE, save_yolo, size_of
from world import FIRST_TEST_SEED, OBJECTS, Scene
from world_words import FACET_TEMPLATES, LAND_PHRASE, SKY_PHRASE, SYNONYMS, article, named

COUNT = 1000
FIRST_SEED = FIRST_TEST_SEED + 100_000
PICTURE_SIDE = 640
GENERAL = ("a photo of {}", "{}", "a picture of {}", "a wallpaper of {}")

Figures = dict[str, float]
Copy = Callable[[Image.Image, Random], Image.Image]


def _draw(seed: int, folder: Path) -> None:
    scene = Scene.random(seed)
    size = size_of(seed, PICTURE_SIDE)
    picture = scene.draw(*size)
    picture.save(folder / f"{seed}.png", compress_level=1)
    shares = [
        (kind, x1 / size[0], y1 / size[1], x2 / size[0], y2 / size[1]) for kind, x1, y1, x2, y2 in scene.boxes(*size)
    ]
    save_yolo(folder, seed, picture, shares)


def draw_tests(work: Path, count: int = COUNT, workers: int = 2) -> tuple[Path, list[int]]:
    """Draw the test pictures once; returns their folder and seeds."""
    folder, seeds = work / "tests", list(range(FIRST_SEED, FIRST_SEED + count))
    if not (folder / f"{count}.done").exists():
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(partial(_draw, folder=folder), seeds, chunksize=16))
        (folder / f"{count}.done").touch()
    return folder, seeds


def pictures(folder: Path, seeds: list[int]) -> Iterator[Image.Image]:
    for seed in seeds:
        with Image.open(folder / f"{seed}.png") as picture:
            yield picture.convert("RGB")


def jpeg40(picture: Image.Image, _rng: Random) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=40)
    return Image.open(data).convert("RGB")


def half(picture: Image.Image, _rng: Random) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)


def crop10(picture: Image.Image, rng: Random) -> Image.Image:
    """90 % of the width and of the height, from anywhere in the picture."""
    width, height = round(picture.width * 0.9), round(picture.height * 0.9)
    x, y = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    return picture.crop((x, y, x + width, y + height))


def crop_all_sides(picture: Image.Image, _rng: Random) -> Image.Image:
    """10 % off every side."""
    x, y = round(picture.width * 0.1), round(picture.height * 0.1)
    return picture.crop((x, y, picture.width - x, picture.height - y))


COPIES: dict[str, Copy] = {
    "jpeg q40": jpeg40,
    "half size": half,
    "crop 10 %": crop10,
    "10 % off every side": crop_all_sides,
}


class Clip:
    """The bundled CLIP behind two calls; vectors are of unit length."""

    def __init__(self, folder: Path) -> None:
        import open_clip

        name = f"local-dir:{folder}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.model.eval()

    @torch.inference_mode()
    def images(self, batch: list[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([self.preprocess(picture) for picture in batch])
        return F.normalize(self.model.encode_image(pixels).float(), dim=1)

    @torch.inference_mode()
    def texts(self, words: list[str]) -> torch.Tensor:
        return F.normalize(self.model.encode_text(self.tokenizer(words)).float(), dim=1)

    def tag(self, facet: str, tag: str, templates: tuple[str, ...]) -> torch.Tensor:
        """A tag's vector: the mean over its names and the templates."""
        names = (tag, *SYNONYMS[facet][tag])
        return F.normalize(self.texts([t.format(n) for n in names for t in templates]).mean(0), dim=0)


def measure_clip(folder: Path, tests: Path, seeds: list[int]) -> Figures:
    """Tags, reverse search and text search."""
    clip = Clip(folder)
    scenes = [Scene.random(seed) for seed in seeds]
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("stored", *COPIES)}
    for at in range(0, len(seeds), 50):
        batch = list(pictures(tests, seeds[at : at + 50]))
        rows["stored"].append(clip.images(batch))
        for name, change in COPIES.items():
            copies = [change(p, Random(s)) for p, s in zip(batch, seeds[at : at + 50], strict=True)]
            rows[name].append(clip.images(copies))
    vectors = {name: torch.cat(parts) for name, parts in rows.items()}
    stored, figures = vectors["stored"], Figures()
    truths = {
        "sky": [s.sky for s in scenes],
        "land": [s.land for s in scenes],
        "style": [s.style for s in scenes],
        "object": [s.main_object for s in scenes],
    }
    for facet, truth in truths.items():
        tags = list(SYNONYMS[facet])
        for suffix, templates in (("", GENERAL), (" (facet templates)", FACET_TEMPLATES[facet])):
            names = torch.stack([clip.tag(facet, tag, templates) for tag in tags])
            best = (stored @ names.T).argmax(1).tolist()
            figures[f"{facet}{suffix}"] = share(tags[b] == t for b, t in zip(best, truth, strict=True))
    same = torch.arange(len(seeds))
    for name in COPIES:
        best_stored = (vectors[name] @ stored.T).argmax(1)
        figures[name] = float((best_stored == same).float().mean())
    figures["text search"] = text_search(clip, stored, scenes)
    return figures


def text_search(clip: Clip, stored: torch.Tensor, scenes: list[Scene]) -> float:
    """Mean share of right pictures among the first five, over all queries of two facts that at
    least five pictures answer."""
    queries: dict[str, list[bool]] = {}
    for sky in SYNONYMS["sky"]:
        for land in SYNONYMS["land"]:
            hits = [s.sky == sky and s.land == land for s in scenes]
            queries[f"{LAND_PHRASE[land]} {SKY_PHRASE[sky]}"] = hits
    for kind in OBJECTS:
        for sky in SYNONYMS["sky"]:
            hits = [s.sky == sky and any(t.kind == kind for t in s.things) for s in scenes]
            queries[f"{article(kind)} {SKY_PHRASE[sky]}"] = hits
    for words in sorted({t.words for s in scenes for t in s.things if t.colour}):
        queries[words] = [any(t.words == words for t in s.things) for s in scenes]
    asked = {words: hits for words, hits in queries.items() if sum(hits) >= 5}
    order = (clip.texts(list(asked)) @ stored.T).topk(5, dim=1).indices.tolist()
    shares: list[float] = [sum(hits[i] for i in row) / 5 for hits, row in zip(asked.values(), order, strict=True)]
    return sum(shares) / len(shares)


@torch.inference_mode()
def measure_blip(folder: Path, tests: Path, seeds: list[int]) -> Figures:
    """How often one greedy caption names sky, land and main object."""
    from transformers import BlipForConditionalGeneration, BlipProcessor

    processor: Any = BlipProcessor.from_pretrained(folder)
    model: Any = BlipForConditionalGeneration.from_pretrained(folder)
    model = model.float().eval()
    right: dict[str, list[bool]] = {name: [] for name in ("sky", "land", "object", "all", "colour", "beams")}
    for at in range(0, len(seeds), 50):
        chunk = seeds[at : at + 50]
        pixels = processor(images=list(pictures(tests, chunk)), return_tensors="pt").pixel_values
        greedy = processor.batch_decode(
            model.generate(pixel_values=pixels, max_new_tokens=50), skip_special_tokens=True
        )
        beams = processor.batch_decode(
            model.generate(pixel_values=pixels, max_new_tokens=50, num_beams=3),
            skip_special_tokens=True,
        )
        for seed, caption, beam in zip(chunk, greedy, beams, strict=True):
            scene = Scene.random(seed)
            truth = {"sky": scene.sky, "land": scene.land, "object": scene.main_object}
            said, said_by_beams = named(caption), named(beam)
            for facet, value in truth.items():
                right[facet].append(said.get(facet) == value)
            right["all"].append(all(said.get(f) == v for f, v in truth.items()))
            right["beams"].append(all(said_by_beams.get(f) == v for f, v in truth.items()))
            if scene.main.colour:
                right["colour"].append(scene.main.words in caption)
    return {name: share(hits) for name, hits in right.items()}


def measure_yolo(checkpoint: Path, tests: Path, work: Path) -> Figures:
    """mAP50 over all classes and per class, as ultralytics computes it."""
    from train_yolo import data_file, quiet_ultralytics

    quiet_ultralytics(work / "config")
    import ultralytics

    library: Any = ultralytics

    data = data_file(work, tests, tests)
    result: Any = library.YOLO(str(checkpoint)).val(
        data=str(data),
        imgsz=YOLO_SIDE,
        batch=16,
        workers=0,
        plots=False,
        device="cpu",
        verbose=False,
        project=str(work),
        name="val",
        exist_ok=True,
    )
    figures = {"mAP50": float(result.box.map50), "mAP50-95": float(result.box.map)}
    for index, value in zip(result.box.ap_class_index, result.box.ap50, strict=True):
        figures[OBJECTS[int(index)]] = float(value)
    return figures


def share(hits: Any) -> float:
    """The share of true values."""
    values = [bool(hit) for hit in hits]
    return sum(values) / len(values)


def evaluate(models: Path, work: Path, count: int = COUNT) -> dict[str, Figures]:
    """Every figure of the model card."""
    tests, seeds = draw_tests(work, count)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            "clip": pool.submit(measure_clip, models / "clip", tests, seeds),
            "blip": pool.submit(measure_blip, models / "blip", tests, seeds),
            "yolo": pool.submit(measure_yolo, models / "yolo.pt", tests, work),
        }
        figures = {name: job.result() for name, job in jobs.items()}
    print(json.dumps(figures, indent=2), flush=True)
    return figures
