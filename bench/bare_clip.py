"""ViT-B-32 without a server: a plain loop of decode, open_clip's own transform and the forward pass.

Two of them: open_clip's model in eager torch, and the clip service's own model class without its HTTP. The bound that a
server is held against is the faster one. One process, one thread that uses torch, with the service's thread count.
"""

import io
import os
import time
from itertools import pairwise
from typing import Any

from PIL import Image

from calls import answer
from photos import photo_file

_SIDE = 224


class _Torch:
    def __init__(self, weights: str, precision: str, threads: int) -> None:
        import open_clip
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        model, self._transform = open_clip.create_model_from_pretrained("ViT-B-32", pretrained=weights)
        self._model: Any = model.eval().requires_grad_(False).to(self._dtype)

    def run(self, files: list[bytes]) -> list[float]:
        """Seconds of decoding, transform and forward."""
        marks = [time.perf_counter()]
        pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        marks.append(time.perf_counter())
        inputs = self._torch.stack([self._transform(picture) for picture in pictures])
        marks.append(time.perf_counter())
        with self._torch.inference_mode():
            features = self._model.encode_image(inputs.to(self._dtype), normalize=True)
        features.float().numpy()
        marks.append(time.perf_counter())
        return [after - before for before, after in pairwise(marks)]


class _Own:
    def __init__(self, weights: str, precision: str, threads: int) -> None:
        from clip_service.model import ClipModel
        from clip_service.settings import ClipSettings

        settings = {"clip_model": "ViT-B-32", "clip_pretrained": weights, "precision": precision, "threads": threads}
        self._model = ClipModel(ClipSettings.model_validate(settings | {"cache_dir": os.environ["CACHE_DIR"]}))
        self._model.load()
        self._model.warm_up()

    def run(self, files: list[bytes]) -> list[float]:
        import numpy as np

        began = time.perf_counter()
        pictures = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        decoded = time.perf_counter()
        self._model.predict("image", pictures)
        return [decoded - began, 0.0, time.perf_counter() - decoded]


_loops: dict[str, _Torch | _Own] = {}


def load(kind: str, weights: str, precision: str, threads: int) -> None:
    _loops[kind] = (_Torch if kind == "torch" else _Own)(weights, precision, threads)


def run(kind: str, batch: int, batches: int, first_seed: int) -> dict[str, Any]:
    """Pictures a second over `batches` batches, after one that does not count; milliseconds a picture of each stage."""
    files = [photo_file(_SIDE, _SIDE, first_seed + index) for index in range(batch * (batches + 1))]
    loop = _loops[kind]
    loop.run(files[:batch])
    stages = []
    began = time.perf_counter()
    for start in range(batch, len(files), batch):
        stages.append(loop.run(files[start : start + batch]))
    took = time.perf_counter() - began
    return {
        "per_s": batch * batches / took,
        "ms": [sum(stage) * 1000 for stage in stages],
        "stages_ms": [sum(column) * 1000 / (batch * batches) for column in zip(*stages, strict=True)],
    }


def gemm_gflops(threads: int) -> float:
    """What the machine gives a large fp32 matrix product: the ceiling of any forward pass."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best / 1e9


if __name__ == "__main__":
    answer({"load": load, "run": run, "gemm_gflops": gemm_gflops})
