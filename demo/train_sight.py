"""Trains CLIP and BLIP at once, on one vision tower that both are saved with.

Seeing is what costs: a small tower needs many pictures before it tells a windmill from a castle. So one tower learns
from everything that is known of a picture, in as many processes as there are cores, which average their gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import distributed
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BlipForConditionalGeneration

import blip_model
import clip_model
from clip_losses import FACTS, TAGS, fact_rows, tag_loss, tag_targets, text_loss, view_loss
from learning import Optimizer, autocast, batches, learning_rate
from lessons import PatchLesson, SceneLesson
from render import Rendered
from tokens import DEC, SEP, build_tokenizer
from views import view
from world import OBJECTS
from world_words import captions, describe, facts, tag_text

BATCH = 24
"""Pictures a step, over all processes. Small, since steps are what a young model needs."""
PEAK_RATE = 1.5e-3
TEXTS_EVERY = 2
"""CLIP's texts and second views cost as much as the rest of a step."""
SHOWN = 0.65
"""The share of its patches that the tower is shown of a picture, drawn anew each time: it learns as much from them in
less time (https://arxiv.org/abs/2212.00794). The last part of the training shows all."""
ALL_SHOWN_FROM = 0.9
LESSONS_WEIGHT, TEXTS_WEIGHT, VIEWS_WEIGHT = 0.5, 0.5, 1.5
WHOLE, PART = 0.9, 0.72
"""What the first and the second view of a picture keep at least, per side."""


class Seen(NamedTuple):
    """`whole` is `[n, width]`, `patches` `[n, shown, width]`; `places` `[n, shown]` says which patches these are."""

    whole: torch.Tensor
    patches: torch.Tensor
    places: torch.Tensor


class Tower(torch.nn.Module):
    """CLIP's vision transformer up to its last normalisation, which is all of BLIP's."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pictures: torch.Tensor, shown: float, draws: torch.Generator) -> Seen:
        # open_clip's own `forward`, with a choice of patches in its middle
        tokens = self.visual._embeds(pictures)
        count, length, width = tokens.shape
        order = torch.rand(count, length - 1, generator=draws).argsort(1)
        places = order[:, : round(shown * (length - 1))]
        picked = tokens[:, 1:].gather(1, places[..., None].expand(-1, -1, width))
        whole, patches = self.visual._pool(self.visual.transformer(torch.cat([tokens[:, :1], picked], 1)))
        return Seen(whole, patches, places)


class Captioning:
    """BLIP's text decoder and its lesson."""

    def __init__(self) -> None:
        tokenizer: Any = build_tokenizer(blip_model.MAX_TOKENS, bos=DEC)
        self.tokenizer = tokenizer
        self.start, stop = tokenizer.convert_tokens_to_ids([DEC, SEP])
        config = blip_model.model_config(len(tokenizer), self.start, stop)
        self.model: Any = BlipForConditionalGeneration(config).train()
        # One word in a dozen names the object, and it is the one that is hard to get right.
        self.weights = torch.ones(len(self.tokenizer))
        self.weights[self.tokenizer.convert_tokens_to_ids(list(OBJECTS))] = 4.0

    def loss(self, seen: Seen, words: list[str]) -> torch.Tensor:
        """Cross entropy of the next words."""
        batch = self.tokenizer(words, padding=True, return_tensors="pt")
        ids = batch.input_ids.clone()
        ids[:, 0] = self.start
        labels = ids.masked_fill(batch.attention_mask == 0, -100)[:, 1:]
        answer = self.model.text_decoder(
            input_ids=ids,
            attention_mask=batch.attention_mask,
            encoder_hidden_states=torch.cat([seen.whole[:, None], seen.patches], 1),
        )
        return F.cross_entropy(answer.logits[:, :-1].float().flatten(0, 1), labels.flatten(), self.weights)


class Matching:
    """CLIP: pictures among texts, among all tags, and among views of other pictures."""

    def __init__(self, rendered: Rendered) -> None:
        self.tokenizer = build_tokenizer(clip_model.CONTEXT)
        self.config = clip_model.model_config(len(self.tokenizer))
        self.model: Any = open_clip.CLIP(**self.config).train()
        self.view_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.scenes = rendered.scenes
        self.truth = fact_rows([facts(scene) for scene in rendered.scenes])
        self.targets = tag_targets(rendered)

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """All but the tower's."""
        yield "view_scale", self.view_scale
        for name, parameter in self.model.named_parameters():
            if not name.startswith("visual."):
                yield name, parameter

    def encode(self, words: list[str]) -> torch.Tensor:
        """What `encode_text` computes, without the padding up to the longest text there may be."""
        ids = self.tokenizer(
            words, return_tensors="pt", padding=True, truncation=True, max_length=clip_model.CONTEXT
        ).input_ids
        length, model = ids.shape[1], self.model
        tokens = model.token_embedding(ids) + model.positional_embedding[:length]
        tokens = model.ln_final(model.transformer(tokens, attn_mask=model.attn_mask[:length, :length]))
        return F.normalize(tokens[torch.arange(len(ids)), ids.argmax(1)].float() @ model.text_projection, dim=1)

    def loss(self, seen: Seen, picked: list[int], rng: Random) -> torch.Tensor:
        """Of two views of each picture, one half after the other."""
        texts = [describe(rng, self.scenes[i]) for i in picked]
        tags = [tag_text(rng, facet, tag) for facet, tag in FACTS[:TAGS]]
        words = self.encode([text.words for text in texts] + tags)
        images = F.normalize(seen.whole.float() @ self.model.visual.proj, dim=1)
        scale = self.model.logit_scale.exp().clamp(max=100)
        # A text is right for every picture that lacks none of the facts it claims.
        claims = fact_rows([text.facts for text in texts])
        right = (((1 - self.truth[picked]) @ claims.T) == 0).float().repeat(2, 1)
        matched = text_loss(scale, images, words[: len(texts)], right)
        tagged = tag_loss(scale * images @ words[len(texts) :].T, self.targets[picked].repeat(2, 1))
        return TEXTS_WEIGHT * (matched + tagged) + VIEWS_WEIGHT * view_loss(
            self.view_scale.exp().clamp(max=100), images
        )


def train_sight(rendered: Rendered, out: Path, *, passes: float, seed: int) -> None:
    """Train for `passes` over the pictures and write the folders `clip` and `blip` under `out`.

    Each of the processes that `torch.distributed` knows of takes its share of every step's pictures; the first writes.
    """
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    torch.manual_seed(seed)
    matching, captioning = Matching(rendered), Captioning()
    tower = Tower(matching.model.visual)
    width = clip_model.VISION["width"]
    scene_lesson = SceneLesson(rendered, width)
    patch_lesson = PatchLesson(rendered, width, clip_model.SIDE // clip_model.VISION["patch_size"])
    modules = tower, captioning.model.text_decoder, scene_lesson, patch_lesson
    always = Optimizer(named for module in modules for named in module.named_parameters())
    at_texts = Optimizer(matching.named_parameters())
    rng, draws = Random(seed + rank), torch.Generator().manual_seed(seed + rank)
    steps = int(passes * len(rendered.scenes) / BATCH)
    began = time.monotonic()
    for step, together in enumerate(batches(len(rendered.scenes), BATCH, steps, seed)):
        picked = together[rank::ranks]
        with_texts = step % TEXTS_EVERY == 0
        views = [view(rendered.thumbs[picked], clip_model.SIDE, WHOLE, draws)]
        if with_texts:
            views.append(view(rendered.thumbs[picked], clip_model.SIDE, PART, draws))
        pictures, kept = (torch.cat(parts) for parts in zip(*views, strict=True))
        numbers = picked * len(views)
        words = [rng.choice(captions(rendered.scenes[i])) for i in numbers]
        # The fused attention is slow backwards on CPUs at this size; the plain one is not.
        with autocast(), sdpa_kernel(SDPBackend.MATH):
            seen = tower(pictures, SHOWN if step < ALL_SHOWN_FROM * steps else 1.0, draws)
            lessons = scene_lesson(seen.patches, numbers) + patch_lesson(seen.patches, numbers, kept, seen.places)
            told = captioning.loss(seen, words)
            matched = matching.loss(seen, picked, rng) if with_texts else torch.zeros(())
        (told + LESSONS_WEIGHT * lessons + matched).backward()
        rate = learning_rate(step, steps, PEAK_RATE)
        always.learn(rate)
        if with_texts:
            at_texts.learn(rate)
        if rank == 0 and (step % (50 * TEXTS_EVERY) == 0 or step == steps - 1):
            spent = time.monotonic() - began
            print(
                f"sight {step}/{steps}: captions {told.item():.3f}, lessons {lessons.item():.3f},"
                f" texts {matched.item():.3f}, {spent:.0f} s",
                flush=True,
            )
    if rank == 0:
        clip_model.save(matching.model, matching.tokenizer, matching.config, out / "clip")
        blip_model.see_like_clip(captioning.model.vision_model, matching.model.state_dict())
        blip_model.save(captioning.model, out / "blip")
