"""From texts that a model wrote to captions for a person: no preamble, no loops, all different. Pure."""

import math
import re
import sys
from collections.abc import Iterable
from itertools import pairwise

from visionstack.schemas import Caption

# Only what says nothing: "a painting of" stays.
_PREAMBLE = re.compile(
    r"(?:(?:this|here|there|it) is )?(?:an?|the) (?:image|picture|photo|photograph) (?:of|showing|depicting)(?: |$)",
    re.IGNORECASE,
)
_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\w+")


def clean(text: str) -> str:
    """Single spaces, and no "an image of" in front."""
    text = " ".join(text.split())
    while preamble := _PREAMBLE.match(text):
        text = text[preamble.end() :]
    return text


def has_loop(text: str) -> bool:
    """Whether one or two words stand twice in a row ("dai dai", "to and to and"), or three words twice anywhere."""
    words = _WORD_OR_SIGN.findall(text)
    pairs = list(pairwise(words))
    triples = list(pairwise(pairs))
    return (
        any(first == second for first, second in pairs)
        or any(first == second for first, second in zip(pairs, pairs[2:], strict=False))
        or len(set(triples)) < len(triples)
    )


class Selection:
    """Up to `wanted` different captions, gathered from rounds; there is another round only while some are wanting."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._chosen: dict[str, Caption] = {}
        self._rejected: Caption | None = None

    @property
    def complete(self) -> bool:
        return len(self._chosen) >= self._wanted

    def add(self, found: Iterable[tuple[str, float]]) -> None:
        """Take texts with the mean log-probability of their tokens, the best first, as far as they are wanted."""
        for text, mean_log_prob in found:
            score = min(1.0, max(math.exp(mean_log_prob), sys.float_info.min))
            caption = Caption(caption=clean(text), score=score)
            # what differs in its signs alone reads the same
            key = " ".join(_WORD.findall(caption.caption.casefold()))
            if key and not has_loop(caption.caption):
                if not self.complete:
                    self._chosen.setdefault(key, caption)
            elif caption.caption and self._rejected is None:
                self._rejected = caption

    def captions(self) -> list[Caption]:
        """The best first. Where no text was good, the first of the others; empty only if there was none."""
        if not self._chosen and self._rejected is not None:
            return [self._rejected]
        return sorted(self._chosen.values(), key=lambda caption: -caption.score)
