"""`YOLO.predict` as its documentation calls it, on a picture's file decoded by OpenCV."""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from ultralytics.models import YOLO

from calls import answer
from photos import photo_file

_models: dict[str, Any] = {}


def load(weights: str) -> None:
    _models["yolo"] = YOLO(weights)


def run(picture: dict[str, Any], count: int, first_seed: int) -> dict[str, Any]:
    files = [photo_file(**picture, seed=first_seed + index) for index in range(count + 2)]
    took, boxes = [], []
    for file in files:
        began = time.perf_counter()
        pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        result = _models["yolo"].predict(pixels, conf=0.25, device="cpu", verbose=False)[0]
        boxes.append(len(result.boxes))
        took.append(time.perf_counter() - began)
    took, boxes = took[2:], boxes[2:]
    return {"per_s": count / sum(took), "ms": [second * 1000 for second in took], "boxes": boxes}


if __name__ == "__main__":
    answer({"load": load, "run": run})
