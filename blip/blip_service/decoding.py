"""Which token comes next: greedy and beam search, with the results of transformers' `generate`.

It owns neither the network (`network`) nor the words (`captions`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .network import TextDecoder

# Changes the log-probabilities (rows, vocabulary) of what follows the tokens (rows, length); -inf forbids.
Constraint = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A caption's tokens without start and end, and the mean log-probability of all that were written, the end too."""

    tokens: list[int]
    mean_log_prob: float


def greedy(decoder: TextDecoder, pictures: Tensor, *, start: int, end: int, max_tokens: int) -> list[list[Candidate]]:
    """The likeliest token each time: one caption a picture, that of `generate(max_new_tokens=max_tokens)`.

    `pictures` are embeddings (pictures, patches, hidden). The result is in the shape of `beam_search`'s.
    """
    count, device = len(pictures), pictures.device
    state = decoder.start(pictures, max_tokens)
    tokens = torch.full((count,), start, device=device)
    total = torch.zeros(count, device=device)
    length = torch.zeros(count, dtype=torch.long, device=device)
    unfinished = torch.ones(count, dtype=torch.bool, device=device)
    written: list[Tensor] = []
    for _ in range(max_tokens):
        logits = decoder.step(state, tokens)
        tokens = logits.argmax(-1)
        log_probs = logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)
        total += torch.where(unfinished, log_probs, 0.0)
        length += unfinished
        written.append(tokens)
        unfinished &= tokens != end
        if not unfinished.any():
            break
    return _candidates(torch.stack(written, 1)[:, None], (total / length)[:, None], end)


def beam_search(
    decoder: TextDecoder,
    pictures: Tensor,
    *,
    start: int,
    end: int,
    max_tokens: int,
    beams: int,
    constraint: Constraint | None = None,
) -> list[list[Candidate]]:
    """Up to `beams` different captions for each picture, the best first by mean log-probability.

    `pictures` are embeddings (pictures, patches, hidden). Without a constraint, the captions are those of
    `generate(num_beams=beams, num_return_sequences=beams, max_new_tokens=max_tokens)`.
    """
    count, device = len(pictures), pictures.device
    beams = min(beams, decoder.vocabulary_size // 2)
    state = decoder.start(pictures, max_tokens)
    # All captions of a picture start from one beam.
    tokens = torch.full((count,), start, device=device)
    running = torch.empty((count, 1, 0), dtype=torch.long, device=device)
    scores = torch.zeros((count, 1), device=device)
    finished = torch.full((count, beams, max_tokens), end, device=device)
    finished_scores = torch.full((count, beams), -torch.inf, device=device)
    open_ = torch.ones((count, 1), dtype=torch.bool, device=device)
    first_row = torch.arange(count, device=device)[:, None]
    may_finish = torch.arange(2 * beams, device=device) < beams
    for length in range(1, max_tokens + 1):
        log_probs = decoder.step(state, tokens).log_softmax(-1)
        if constraint is not None:
            log_probs = constraint(log_probs, running.flatten(0, 1))
        # twice as many as beams: even if half of them end, enough go on
        totals, flat = (scores.flatten()[:, None] + log_probs).view(count, -1).topk(2 * beams)
        parents, chosen = flat // decoder.vocabulary_size, flat % decoder.vocabulary_size
        grown = torch.cat([_take(running, parents), chosen[..., None]], -1)
        ends = (chosen == end) | (length == max_tokens)

        newly = torch.where(ends & may_finish & open_, totals / length, -torch.inf)
        finished_scores, best = torch.cat([finished_scores, newly], 1).topk(beams)
        finished = _take(torch.cat([finished, pad(grown, (0, max_tokens - length), value=end)], 1), best)

        scores, best = totals.masked_fill(ends, -torch.inf).topk(beams)
        # generate's rule: a mean that is not better now is taken never to become better
        open_ &= scores[:, :1] / length > finished_scores[:, -1:]
        if length == max_tokens or not open_.any():
            break
        running = _take(grown, best)
        tokens = running[..., -1].flatten()
        state.reorder((first_row * state.beams + parents.gather(1, best)).flatten())
    return _candidates(finished, finished_scores, end)


def _take(of: Tensor, indices: Tensor) -> Tensor:
    """From `of` (pictures, beams, tokens) the beams that `indices` (pictures, taken) names."""
    return of.gather(1, indices[..., None].expand(-1, -1, of.shape[-1]))


def _candidates(tokens: Tensor, means: Tensor, end: int) -> list[list[Candidate]]:
    return [
        [
            Candidate(row[: row.index(end)] if end in row else row, mean)
            for row, mean in zip(*picture, strict=True)
            if math.isfinite(mean)
        ]
        for picture in zip(tokens.tolist(), means.tolist(), strict=True)
    ]


class NoLoops:
    """A constraint: no loops, nothing that has no text, and no caption without a word."""

    def __init__(self, *, end: int, textless: Tensor) -> None:
        self._end = end
        self._textless = textless

    def __call__(self, log_probs: Tensor, written: Tensor) -> Tensor:
        log_probs = log_probs.index_fill(1, self._textless, -torch.inf)
        if written.shape[1] == 0:
            log_probs[:, self._end] = -torch.inf
        for row, tokens in enumerate(written.tolist()):
            log_probs[row, looping(tokens)] = -torch.inf
        return log_probs


def looping(tokens: Sequence[int]) -> list[int]:
    """The tokens after which the last one or two would stand twice in a row, or the last three a second time anywhere.

    By tokens what `captions.has_loop` says by words; a word may be several tokens.
    """
    banned = set(tokens[-1:])
    if len(tokens) >= 3 and tokens[-1] == tokens[-3]:
        banned.add(tokens[-2])
    last_two = tokens[-2:]
    banned |= {tokens[i + 2] for i in range(len(tokens) - 2) if tokens[i : i + 2] == last_two}
    return sorted(banned)
