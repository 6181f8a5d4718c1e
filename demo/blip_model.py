"""The small BLIP: its shape, and the hub-style folder it is saved as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BlipConfig, BlipImageProcessor, BlipProcessor

from clip_model import SIDE, VISION
from tokens import DEC, build_tokenizer
from views import MEAN, STD

MAX_TOKENS = 32


def model_config(vocabulary: int, start: int, stop: int) -> BlipConfig:
    """A vision tower of CLIP's shape and a small text decoder."""
    width = VISION["width"]
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 160,
        "encoder_hidden_size": width,
        "intermediate_size": 480,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        # The services may ask for up to 200 tokens.
        "max_position_embeddings": 512,
        "bos_token_id": start,
        "eos_token_id": stop,
        "sep_token_id": stop,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "label_smoothing": 0.0,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": round(width * VISION["mlp_ratio"]),
        "num_hidden_layers": VISION["layers"],
        "num_attention_heads": width // VISION["head_width"],
        "image_size": SIDE,
        "patch_size": VISION["patch_size"],
        # BLIP's own default spread of 1e-10 suits only weights that are loaded afterwards.
        "initializer_range": 0.02,
    }
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=64)


def see_like_clip(vision: torch.nn.Module, clip: Mapping[str, torch.Tensor]) -> None:
    """Give BLIP's vision tower the weights of CLIP's: same shape, other names."""
    width = VISION["width"]
    state = {
        "embeddings.class_embedding": clip["visual.class_embedding"].view(1, 1, width),
        "embeddings.position_embedding": clip["visual.positional_embedding"][None],
        "embeddings.patch_embedding.weight": clip["visual.conv1.weight"],
        "embeddings.patch_embedding.bias": torch.zeros(width),
        "post_layernorm.weight": clip["visual.ln_post.weight"],
        "post_layernorm.bias": clip["visual.ln_post.bias"],
    }
    names = {
        "self_attn.qkv.weight": "attn.in_proj_weight",
        "self_attn.qkv.bias": "attn.in_proj_bias",
        "self_attn.projection.weight": "attn.out_proj.weight",
        "self_attn.projection.bias": "attn.out_proj.bias",
        "layer_norm1.weight": "ln_1.weight",
        "layer_norm1.bias": "ln_1.bias",
        "layer_norm2.weight": "ln_2.weight",
        "layer_norm2.bias": "ln_2.bias",
        "mlp.fc1.weight": "mlp.c_fc.weight",
        "mlp.fc1.bias": "mlp.c_fc.bias",
        "mlp.fc2.weight": "mlp.c_proj.weight",
        "mlp.fc2.bias": "mlp.c_proj.bias",
    }
    for layer in range(VISION["layers"]):
        for mine, theirs in names.items():
            block = f"visual.transformer.resblocks.{layer}.{theirs}"
            state[f"encoder.layers.{layer}.{mine}"] = clip[block]
    vision.load_state_dict({name: value.float() for name, value in state.items()})


def save(model: Any, out: Path) -> None:
    """The folder that `BlipForConditionalGeneration.from_pretrained` loads."""
    out.mkdir(parents=True, exist_ok=True)
    images: Any = BlipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=list(MEAN), image_std=list(STD))
    # A fresh tokenizer: the one used in training would save its last padding along.
    processor: Any = BlipProcessor(images, build_tokenizer(MAX_TOKENS, bos=DEC))
    processor.save_pretrained(out)
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
