"""YOLO11n without a server: a plain loop of decode, letterbox, forward and non-maximum suppression.

Two of them: ultralytics' own parts around a fused network in channels-last memory, and the yolo service's own model
class without its HTTP. The bound that a server is held against is the faster one.
"""

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from calls import answer
from photos import photo_file

_CONF = 0.25

_loops: dict[str, Callable[[bytes], int]] = {}


def load(kind: str, weights: str, precision: str, threads: int) -> None:
    _loops[kind] = (_torch if kind == "torch" else _own)(weights, precision, threads)


def _torch(weights: str, precision: str, threads: int) -> Callable[[bytes], int]:
    import torch

    from yolo_service.checkpoint import prepare_ultralytics

    prepare_ultralytics()
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.nms import non_max_suppression

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    loaded: Any = torch.load(weights, weights_only=False)
    network: Any = loaded["model"].float().eval().fuse(verbose=False)
    network.requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
    letterbox: Any = LetterBox(640, auto=True, stride=32)

    def run(file: bytes) -> int:
        pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        boxed = letterbox(image=pixels)
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(boxed[None])).permute(0, 3, 1, 2).to(dtype).div_(255)
            found: Any = non_max_suppression(network(batch)[0].float(), conf_thres=_CONF, iou_thres=0.7)
        return len(found[0])

    return run


def _own(weights: str, precision: str, threads: int) -> Callable[[bytes], int]:
    from yolo_service.model import DetectionTask, YoloModel
    from yolo_service.settings import YoloSettings

    model = YoloModel(YoloSettings.model_validate({"yolo_model": weights, "precision": precision, "threads": threads}))
    model.load()
    model.warm_up()

    def run(file: bytes) -> int:
        pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        return len(model.predict(model.batch_key(pixels), [DetectionTask(pixels, _CONF)])[0])

    return run


def run(kind: str, picture: dict[str, Any], count: int, first_seed: int) -> dict[str, Any]:
    """Pictures a second over `count` pictures after two that do not count, and the boxes found in each."""
    files = [photo_file(**picture, seed=first_seed + index) for index in range(count + 2)]
    loop = _loops[kind]
    for file in files[:2]:
        loop(file)
    took, boxes = [], []
    for file in files[2:]:
        began = time.perf_counter()
        boxes.append(loop(file))
        took.append(time.perf_counter() - began)
    return {"per_s": count / sum(took), "ms": [second * 1000 for second in took], "boxes": boxes}


if __name__ == "__main__":
    answer({"load": load, "run": run})
