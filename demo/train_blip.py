"""Trains the small BLIP captioner on the drawn world and saves it as a hub-style folder."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from learning import Optimizer, autocast, batches
from lessons import PatchLesson, SceneLesson
from render import Rendered
from tokens import DEC, SEP, build_tokenizer
from train_clip import SIDE, VISION
from train_clip import WEIGHTS as CLIP_WEIGHTS
from views import MEAN, STD, view
from world import OBJECTS
from world_words import captions

MAX_TOKENS = 32
BATCH = 64


def model_config(vocabulary: int, start: int, stop: int) -> BlipConfig:
    """A vision tower of CLIP's shape and a small text decoder."""
    width = VISION["width"]
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 160,
        "encoder_hidden_size": width,
        "intermediate_size": 480,
        "num_hidden_layers": 3,
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


def see_like_clip(vision: torch.nn.Module, clip: dict[str, torch.Tensor]) -> None:
    """Start BLIP's vision tower from the CLIP model trained before: same shape, other names."""
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


def caption_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the next words, `[n, words, vocabulary]`; `weights` says how much each word counts."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), weights)


def train_blip(
    rendered: Rendered, out: Path, *, epochs: float, seed: int, clip: Path | None = None, earlier: Path | None = None
) -> None:
    """Train for `epochs` passes and write to `out`; start with the eyes of the folder `clip`, or
    from the whole of the BLIP folder `earlier`."""
    torch.manual_seed(seed)
    rng, draws = Random(seed), torch.Generator().manual_seed(seed)
    tokenizer: Any = build_tokenizer(MAX_TOKENS, bos=DEC)
    start, stop = tokenizer.convert_tokens_to_ids([DEC, SEP])
    model: Any = BlipForConditionalGeneration(model_config(len(tokenizer), start, stop))
    if clip:
        see_like_clip(model.vision_model, load_file(clip / CLIP_WEIGHTS))
    if earlier:
        model.load_state_dict(BlipForConditionalGeneration.from_pretrained(earlier).float().state_dict())
    model.train()
    # One word in a dozen names the object, and it is the one that is hard to get right.
    weights = torch.ones(len(tokenizer))
    weights[tokenizer.convert_tokens_to_ids(list(OBJECTS))] = 4.0
    whole = SceneLesson(rendered, VISION["width"])
    patches = PatchLesson(rendered, VISION["width"], SIDE // VISION["patch_size"])
    steps = int(epochs * len(rendered.scenes) / BATCH)
    modules: list[tuple[torch.nn.Module, float]] = [
        (model.vision_model, 0.4 if clip else 1.0),
        (model.text_decoder, 1.0),
        (whole, 1.0),
        (patches, 1.0),
    ]
    optimizer = Optimizer(modules, steps, peak_rate=6e-4 if earlier else 1e-3)
    began = time.monotonic()
    for step, picked in enumerate(batches(len(rendered.scenes), BATCH, steps, seed)):
        pictures, kept = view(rendered.thumbs[picked], SIDE, 0.85, draws)
        words = [rng.choice(captions(rendered.scenes[i])) for i in picked]
        batch = tokenizer(words, padding=True, return_tensors="pt")
        ids = batch.input_ids.clone()
        ids[:, 0] = start
        labels = ids.masked_fill(batch.attention_mask == 0, -100)
        labels[:, 0] = -100
        with autocast():
            seen = model.vision_model(pixel_values=pictures).last_hidden_state
            answer = model.text_decoder(
                input_ids=ids,
                attention_mask=batch.attention_mask,
                encoder_hidden_states=seen,
            )
            lessons = whole(seen[:, 1:], picked) + patches(seen[:, 1:], picked, kept)
        loss = caption_loss(answer.logits.float(), labels, weights) + 0.5 * lessons
        optimizer.learn(loss)
        if step % 50 == 0 or step == steps - 1:
            spent = time.monotonic() - began
            print(f"blip {step}/{steps} loss {loss.item():.3f} lessons {lessons.item():.3f} {spent:.0f} s", flush=True)
    save(model, out)


def save(model: Any, out: Path) -> None:
    """The folder that `BlipForConditionalGeneration.from_pretrained` loads."""
    out.mkdir(parents=True, exist_ok=True)
    images: Any = BlipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=list(MEAN), image_std=list(STD))
    # A fresh tokenizer: the one used in training would save its last padding along.
    processor: Any = BlipProcessor(images, build_tokenizer(MAX_TOKENS, bos=DEC))
    processor.save_pretrained(out)
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
