"""The small CLIP: its shape, and the open_clip folder it is saved as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer

from views import MEAN, STD

SIDE = 96
CONTEXT = 24

VISION: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 16,
    "layers": 5,
    "width": 192,
    "head_width": 64,
    "mlp_ratio": 3.0,
    # Without it the tower is BLIP's, which has the same weights.
    "no_ln_pre": True,
}


def model_config(vocabulary: int) -> dict[str, Any]:
    """The `model_cfg` of open_clip_config.json."""
    text = {
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
        "width": 128,
        "heads": 4,
        "layers": 2,
        "hf_tokenizer_name": "local",
    }
    return {"embed_dim": 512, "vision_cfg": VISION, "text_cfg": text}


def save(model: torch.nn.Module, tokenizer: BertTokenizer, config: dict[str, Any], out: Path) -> None:
    """The folder that `open_clip.create_model_and_transforms("local-dir:<out>")` loads."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items() if name != "attn_mask"}
    save_file(weights, out / "open_clip_model.safetensors")
    (out / "open_clip_model.safetensors").chmod(0o644)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (out / "open_clip_config.json").write_text(text + "\n")
    tokenizer.save_pretrained(out)
