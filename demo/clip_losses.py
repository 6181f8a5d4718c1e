"""What CLIP learns from: texts that are right for several pictures, all tags at once, and two views of one picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from render import Rendered
from world import COLOURS, PAINTED
from world_words import SYNONYMS, Fact

FACTS: list[Fact] = [(facet, tag) for facet, tags in SYNONYMS.items() for tag in tags]
TAGS = len(FACTS)
FACTS += [("object", f"{colour} {kind}") for kind in sorted(PAINTED) for colour in COLOURS]
INDEX = {fact: i for i, fact in enumerate(FACTS)}


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


def text_loss(scale: torch.Tensor, images: torch.Tensor, texts: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
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
