"""Writes the model card, demo/README.md, from measured figures."""

from __future__ import annotations

from pathlib import Path

from clip_model import VISION
from evaluate import COUNT, Figures
from render import TRAIN_PICTURES, YOLO_PICTURES
from train_sight import BATCH, SHOWN
from world import COLOURS, LANDS, NEVER_MAIN, OBJECTS, SKIES, STYLES

TEXT = """\
# The demo models

Three small models with the architectures of the large ones, trained on a small drawn world. They
let the whole stack run, answer sensibly and be tested on a machine that cannot download weights.
They know drawn wallpapers and nothing else: a photograph gets an answer, but not a good one.

This card is written by `make demo-models` from what it measured. Its figures are meant to be
beaten.

| model | architecture | file | size |
|---|---|---|---|
{files}

Weights are stored as 16-bit floats. All together: {total:.1f} MB.

## Use

```sh
CLIP_MODEL=local-dir:demo/models/clip   # CLIP_PRETRAINED is not looked at
CLIP_TAGS_FILE=demo/models/tags.txt
BLIP_MODEL=demo/models/blip
YOLO_MODEL=demo/models/yolo.pt
```

The same code loads them as loads the large ones; relative paths start where the service does.
The detector sees pictures at 320 pixels, which its checkpoint remembers.

## The world

`world.py` draws a wallpaper of any size from a seed and knows what is on it:

```python
from world import Scene

scene = Scene.random(1_000_007)
picture = scene.draw(1920, 1080)
scene.sky, scene.land, scene.style, scene.main_object
scene.boxes(1920, 1080)  # [("boat", x1, y1, x2, y2), ...], main object first
scene.captions()
```

- skies: {skies}
- lands: {lands}
- objects, with boxes: {objects}
- colours of objects: {colours}
- styles: {styles}

Every picture has one main object, which is none of {never_main}, and up to two smaller ones. A thing less
than half visible has no box. Seeds below 1,000,000 are for training; the figures below, and all tests, use only seeds
from 1,000,000 upwards.

## Figures

Measured on {count:,} pictures of unseen seeds, 640 pixels on the long side, in ten aspect ratios.

| what | figure | asked |
|---|---|---|
{figures}

{notes}

Average precision at 50 % overlap by class: {classes}.

## Training

`make demo-models` draws {pictures:,} pictures ({yolo_pictures:,} of them for the detector) and trains
all models at once, from fixed seeds, within 45 minutes on two cores. {times}

- **CLIP and BLIP** learn at once on one vision tower, which both are saved with: seeing is what costs.
  Two processes take half of every step's {batch} pictures each and average their gradients. Most of the
  time the tower is shown {shown} of a picture's patches. Helper heads that are thrown away
  afterwards name sky, land, main object, its colour, and the thing under each patch; a small tower
  learns to see sooner so.
- CLIP learns from two views of a picture and one text. A text is right for *every* picture of which it
  is true, since many scenes share a description. It also learns the right tags among all tags and the
  two views of a picture among all views.
- BLIP learns captions in four phrasings, without a prompt. The word for the object counts four times:
  it is the hardest to get right, and one in a dozen.
- **YOLO** is a narrow YOLO11 trained by ultralytics at 320 pixels, without mosaics.

## Limits

- Text search and tags understand the words in `models/tags.txt`, the colours and plain English
  around them. Other words are spelled letter by letter and mean nothing to the model.
- Small objects are often left out of captions, by design: a caption names the main one.
- A score says which answer is likelier in this world. It says nothing about photographs.

## Licences

`models/yolo.pt` and `yolo11n-demo.yaml` are AGPL-3.0, as works made with ultralytics. Everything
else here, pictures and the other weights included, is Apache-2.0.
"""


def _files(models: Path) -> tuple[str, float]:
    side, layers = VISION["image_size"], VISION["layers"]
    kinds = (
        ("CLIP", f"ViT, {side} px, {layers} layers of 192, text 2 layers of 128, 512 dimensions", "clip"),
        ("BLIP", f"`BlipForConditionalGeneration`, {side} px, {layers} layers of 192, text 2 of 160", "blip"),
        ("YOLO", "YOLO11, width 0.125, 320 px", "yolo.pt"),
    )
    rows, total = [], 0.0
    for name, what, where in kinds:
        path = models / where
        files = [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]
        size = sum(f.stat().st_size for f in files) / 1e6
        total += size
        rows.append(f"| {name} | {what} | `models/{where}` | {size:.1f} MB |")
    return "\n".join(rows), total


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _figures(clip: Figures, blip: Figures, yolo: Figures) -> str:
    rows = [
        ("tags: right sky first among skies", _percent(clip["sky"]), "97 %"),
        ("tags: right land first among lands", _percent(clip["land"]), "97 %"),
        ("tags: right style first among styles", _percent(clip["style"]), ""),
        ("tags: main object first among objects", _percent(clip["object"]), ""),
        ("captions: sky, land and main object all named", _percent(blip["all"]), "88 %"),
        ("captions: the same with three beams", _percent(blip["beams"]), ""),
        ("captions: colour and kind of a coloured main object right", _percent(blip["colour"]), ""),
        ("boxes: mAP50", f"{yolo['mAP50']:.3f}", "0.85"),
        ("boxes: mAP50-95", f"{yolo['mAP50-95']:.3f}", ""),
        ("reverse search: JPEG q40 finds its original first", _percent(clip["jpeg q40"]), "97 %"),
        ("reverse search: half size", _percent(clip["half size"]), "97 %"),
        ("reverse search: cropped by 10 %", _percent(clip["crop 10 %"]), "97 %"),
        ("reverse search: 10 % off every side", _percent(clip["10 % off every side"]), ""),
        ("text search: right pictures among the first five", _percent(clip["text search"]), ""),
    ]
    return "\n".join(f"| {what} | {figure} | {asked} |" for what, figure, asked in rows)


NOTES = """\
Tags use four general templates per name and the synonyms of `models/tags.txt`. "Cropped by 10 %"
keeps 90 % of the width and of the height, anywhere in the picture. Reverse search looks among all
the test pictures. Text search asks for every sky with every land, every object under every sky and
every coloured object that at least five test pictures show. Captions are the greedy ones."""


def _times(times: dict[str, float] | None) -> str:
    if times is None:
        return ""
    minutes = ", ".join(f"{name} {seconds / 60:.0f}" for name, seconds in times.items())
    return f"Processor minutes of the run that made these files: {minutes}; together {sum(times.values()) / 60:.0f}."


def write_card(
    path: Path,
    models: Path,
    figures: dict[str, Figures],
    times: dict[str, float] | None,
) -> None:
    """Write the card to `path`; `times` are the seconds of each step if one run made everything."""
    files, total = _files(models)
    yolo = figures["yolo"]
    text = TEXT.format(
        files=files,
        total=total,
        skies=", ".join(SKIES),
        lands=", ".join(LANDS),
        objects=", ".join(OBJECTS),
        colours=", ".join(COLOURS),
        styles=", ".join(STYLES),
        never_main=", ".join(kind for kind in OBJECTS if kind in NEVER_MAIN),
        count=COUNT,
        figures=_figures(figures["clip"], figures["blip"], yolo),
        notes=NOTES,
        classes=", ".join(f"{kind} {yolo[kind]:.2f}" for kind in OBJECTS if kind in yolo),
        pictures=TRAIN_PICTURES,
        yolo_pictures=YOLO_PICTURES,
        batch=BATCH,
        shown=_percent(SHOWN),
        times=_times(times),
    )
    path.write_text(text)
