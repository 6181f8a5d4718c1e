"""Trains the small CLIP on the drawn world and saves it as an open_clip folder."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from random import Random
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertTokenizer

from learning import Optimizer, autocast, batches
from lessons import PatchLesson, SceneLesson
from render import Rendered
from tokens import build_tokenizer
from views import MEAN, STD, view
from world import COLOURS, PAINTED
from world_words import SYNONYMS, Fact, describe, facts, tag_text

SIDE = 112
WEIGHTS = "open_clip_model.safetensors"
CONTEXT = 24
BATCH = 128

FACTS: list[Fact] = [(facet, tag) for facet, tags in SYNONYMS.items() for tag in tags]
TAGS = len(FACTS)
FACTS += [("object", f"{colour} {kind}") for kind in sorted(PAINTED) for colour in COLOURS]
INDEX = {fact: i for i, fact in enumerate(FACTS)}


VISION: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 16,
    "layers": 6,
    "width": 192,
    "head_width": 64,
    "mlp_ratio": 3.0,
    # Without it the tower is built like BLIP's, which starts from these weights.
    "no_ln_pre": True,
}


def model_config(vocabulary: int) -> dict[str, Any]:
    """The `model_cfg` of open_clip_config.json."""
    text = {
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
        "width": 128,
        "heads": 4,
        "layers": 3,
        "hf_tokenizer_name": "local",
    }
    return {"embed_dim": 512, "vision_cfg": VISION, "text_cfg": text}


def fact_rows(claims: list[frozenset[Fact]]) -> torch.Tensor:
    rows = torch.zeros(len(claims), len(FACTS))
    for row, claim in zip(rows, claims, strict=True):
        row[[INDEX[fact] for fact in claim]] = 1.0
    return rows


def several_right(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Cross entropy whose target is shared evenly by all right answers of a row."""
    target = right / right.sum(1, keepdim=True).clamp_min(1)
    return -(target * F.log_softmax(logits, 1)).sum(1).mean()


def tag_targets(rendered: Rendered) -> torch.Tensor:
    """How much each tag should be picked for each picture: facets alike, bystanders half."""
    weights = torch.zeros(len(rendered.scenes), TAGS)
    for row, scene in zip(weights, rendered.scenes, strict=True):
        for thing in scene.things:
            row[INDEX["object", thing.kind]] = 0.4
        for fact in (
            ("sky", scene.sky),
            ("land", scene.land),
            ("style", scene.style),
            ("object", scene.main_object),
        ):
            row[INDEX[fact]] = 1.0
    return weights


def caption_loss(scale: torch.Tensor, images: torch.Tensor, texts: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Pictures against texts, both ways."""
    logits = scale * images @ texts.T
    return 0.5 * (several_right(logits, right) + several_right(logits.T, right.T))


def tag_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The right tags among all, and the one right tag among those of its facet."""
    loss = several_right(logits, target)
    for facet in ("sky", "land", "style"):
        columns = [i for i, fact in enumerate(FACTS[:TAGS]) if fact[0] == facet]
        best = target[:, columns].argmax(1)
        loss = loss + 0.3 * F.cross_entropy(logits[:, columns], best)
    return loss


def view_loss(scale: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The two views of a picture among all views; the halves of `images` belong together."""
    logits = scale * images[: len(images) // 2] @ images[len(images) // 2 :].T
    same = torch.arange(len(logits))
    return 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))


def train_clip(rendered: Rendered, out: Path, *, epochs: float, seed: int, earlier: Path | None = None) -> None:
    """Train for `epochs` passes, on top of the model folder `earlier` if given; write to `out`."""
    torch.manual_seed(seed)
    rng, draws = Random(seed), torch.Generator().manual_seed(seed)
    tokenizer = build_tokenizer(CONTEXT)
    config = model_config(len(tokenizer))
    model: Any = open_clip.CLIP(**config)
    if earlier:
        model.load_state_dict(load_file(earlier / WEIGHTS), strict=False)
    model.train()
    model.visual.output_tokens = True
    scene_lesson = SceneLesson(rendered, VISION["width"])
    patch_lesson = PatchLesson(rendered, VISION["width"], SIDE // VISION["patch_size"])
    view_scale = torch.nn.ParameterList([torch.tensor(math.log(1 / 0.07))])
    steps = int(epochs * len(rendered.scenes) / BATCH)
    optimizer = Optimizer([(model, 1.0), (scene_lesson, 1.0), (patch_lesson, 1.0), (view_scale, 1.0)], steps)
    truth = fact_rows([facts(scene) for scene in rendered.scenes])
    targets = tag_targets(rendered)

    def encode(words: list[str]) -> torch.Tensor:
        ids = tokenizer(words, return_tensors="pt", padding="max_length", truncation=True, max_length=CONTEXT).input_ids
        return F.normalize(model.encode_text(ids).float(), dim=1)

    began = time.monotonic()
    for step, picked in enumerate(batches(len(rendered.scenes), BATCH, steps, seed)):
        thumbs = rendered.thumbs[picked]
        whole, kept = view(thumbs, SIDE, 0.97, draws)
        part, kept_part = view(thumbs, SIDE, 0.72, draws)
        texts = [describe(rng, rendered.scenes[i]) for i in picked]
        tags = [tag_text(rng, facet, tag) for facet, tag in FACTS[:TAGS]]
        # The fused attention is slow backwards on CPUs at this size; the plain one is not.
        with autocast(), sdpa_kernel(SDPBackend.MATH):
            pooled, patches = model.visual(torch.cat([whole, part]))
            lessons = scene_lesson(patches, picked + picked)
            lessons = lessons + patch_lesson(patches, picked + picked, torch.cat([kept, kept_part]))
            words = encode([text.words for text in texts] + tags)
        images = F.normalize(pooled.float(), dim=1)
        scale = model.logit_scale.exp().clamp(max=100)
        # A text is right for every picture that lacks none of the facts it claims.
        claims = fact_rows([text.facts for text in texts])
        right = (((1 - truth[picked]) @ claims.T) == 0).float().repeat(2, 1)
        loss = (
            caption_loss(scale, images, words[:BATCH], right)
            + tag_loss(scale * images @ words[BATCH:].T, targets[picked].repeat(2, 1))
            + 1.5 * view_loss(view_scale[0].exp().clamp(max=100), images)
            + 0.5 * lessons
        )
        optimizer.learn(loss)
        if step % 50 == 0 or step == steps - 1:
            spent = time.monotonic() - began
            print(f"clip {step}/{steps} loss {loss.item():.3f} lessons {lessons.item():.3f} {spent:.0f} s", flush=True)
    save(model, tokenizer, config, out)


def save(model: torch.nn.Module, tokenizer: BertTokenizer, config: dict[str, Any], out: Path) -> None:
    """The folder that `open_clip.create_model_and_transforms("local-dir:<out>")` loads."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items() if name != "attn_mask"}
    save_file(weights, out / WEIGHTS)
    (out / WEIGHTS).chmod(0o644)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (out / "open_clip_config.json").write_text(text + "\n")
    tokenizer.save_pretrained(out)
