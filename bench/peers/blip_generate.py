"""transformers' `generate` for BLIP as its model card calls it: greedy, a number of new tokens, one picture a call."""

import io
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from calls import answer
from photos import photo_file

_loaded: dict[str, Any] = {}


def load(weights: str, precision: str, threads: int) -> None:
    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    _loaded["processor"] = BlipProcessor.from_pretrained(weights)
    _loaded["model"] = BlipForConditionalGeneration.from_pretrained(weights, dtype=dtype).eval()
    _loaded["dtype"] = dtype


def run(picture: dict[str, Any], count: int, first_seed: int, tokens: int, variants: int = 1) -> dict[str, Any]:
    """Milliseconds of each call, decoding of the file included, and how many tokens each wrote."""
    files = [photo_file(**picture, seed=first_seed + index) for index in range(count + 1)]
    took, lengths = [], []
    for file in files:
        began = time.perf_counter()
        inputs = _loaded["processor"](Image.open(io.BytesIO(file)).convert("RGB"), return_tensors="pt")
        options = {"num_beams": variants, "num_return_sequences": variants} if variants > 1 else {}
        with torch.inference_mode():
            written = _loaded["model"].generate(
                pixel_values=inputs["pixel_values"].to(_loaded["dtype"]),
                max_new_tokens=tokens,
                do_sample=False,
                **options,
            )
        _loaded["processor"].batch_decode(written, skip_special_tokens=True)
        lengths.append(written.shape[1])
        took.append(time.perf_counter() - began)
    took = took[1:]
    return {"per_s": count / sum(took), "ms": [second * 1000 for second in took], "lengths": lengths[1:]}


if __name__ == "__main__":
    answer({"load": load, "run": run})
