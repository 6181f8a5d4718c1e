"""The network and the search for tokens against transformers' own, number for number."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration

from blip_networks import END, SIDE, START, VOCABULARY, make_network
from blip_service.decoding import Candidate, NoLoops, beam_search, greedy, looping
from blip_service.network import TextDecoder, VisionTower
from visionstack.packed import PackedLinear, pack

TOKENS: dict[str, Any] = {"start": START, "end": END}
MAX_TOKENS = 12


@pytest.fixture(autouse=True)
def inference_in_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pixels() -> Tensor:
    return random(8, 3, SIDE, SIDE)


@pytest.fixture
def reference() -> BlipForConditionalGeneration:
    return make_network()


def own(network: BlipForConditionalGeneration) -> tuple[VisionTower, TextDecoder]:
    return VisionTower(network, max_batch=8), TextDecoder(network.text_decoder)


def test_vision_tower_is_transformers(reference: BlipForConditionalGeneration, pixels: Tensor) -> None:
    vision, _ = own(make_network())
    expected = reference.vision_model(pixel_values=pixels).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(vision(pixels), expected, atol=1e-5, rtol=0)


def test_step_is_transformers(reference: BlipForConditionalGeneration) -> None:
    """Logits of every step, for two pictures with three beams each that trade places."""
    _, decoder = own(make_network())
    pictures = random(2, 17, 48)
    state = decoder.start(pictures, 8)
    decoder.step(state, torch.tensor([START, START]))
    state.reorder(torch.tensor([0, 0, 0, 1, 1, 1]))
    written = torch.full((6, 1), START)
    for parents, tokens in (
        ([0, 1, 2, 3, 4, 5], [7, 8, 9, 10, 11, 12]),
        ([2, 0, 0, 5, 4, 5], [13, 14, 15, 16, 17, 18]),
        ([1, 1, 2, 3, 3, 4], [19, 20, 21, 22, 23, 24]),
    ):
        state.reorder(torch.tensor(parents))
        logits = decoder.step(state, torch.tensor(tokens))
        written = torch.cat([written[parents], torch.tensor(tokens)[:, None]], 1)
        expected = reference.text_decoder(written, encoder_hidden_states=pictures.repeat_interleave(3, 0)).logits[:, -1]
        assert expected.std() > 0.1
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def generated(reference: BlipForConditionalGeneration, pixels: Tensor, **options: Any) -> list[list[int]]:
    sequences = reference.generate(pixels, max_new_tokens=MAX_TOKENS, do_sample=False, **options)
    return [row[: row.index(END)] if END in row else row for row in sequences[:, 1:].tolist()]


def test_greedy_is_generate(reference: BlipForConditionalGeneration, pixels: Tensor) -> None:
    vision, decoder = own(make_network())
    expected = generated(reference, pixels)
    assert len({len(tokens) for tokens in expected}) >= 3, "the captions should differ in length"
    assert max(len(tokens) for tokens in expected) == MAX_TOKENS, "some should be cut"
    found = greedy(decoder, vision(pixels), **TOKENS, max_tokens=MAX_TOKENS)
    assert [[candidate.tokens for candidate in picture] for picture in found] == [[tokens] for tokens in expected]


def test_greedy_score_is_the_mean_of_the_log_probabilities(
    reference: BlipForConditionalGeneration, pixels: Tensor
) -> None:
    vision, decoder = own(make_network())
    embeddings = vision(pixels)
    for picture, (candidate,) in enumerate(greedy(decoder, embeddings, **TOKENS, max_tokens=MAX_TOKENS)):
        end = [END] if len(candidate.tokens) < MAX_TOKENS else []
        written = torch.tensor([[START, *candidate.tokens, *end]])
        logits = reference.text_decoder(written[:, :-1], encoder_hidden_states=embeddings[picture, None]).logits
        log_probs = logits.log_softmax(-1).gather(2, written[:, 1:, None])
        assert candidate.mean_log_prob == pytest.approx(log_probs.mean().item(), abs=1e-5)


@pytest.mark.parametrize("beams", [2, 3, 7])
def test_beam_search_is_generate(reference: BlipForConditionalGeneration, pixels: Tensor, beams: int) -> None:
    vision, decoder = own(make_network())
    options: dict[str, Any] = {"num_beams": beams, "num_return_sequences": beams}
    expected = generated(reference, pixels, **options)
    assert len({len(tokens) for tokens in expected}) >= 3, "the captions should differ in length"
    answer: Any = reference.generate(
        pixels, max_new_tokens=MAX_TOKENS, do_sample=False, return_dict_in_generate=True, output_scores=True, **options
    )
    scores = answer.sequences_scores.tolist()
    found = beam_search(decoder, vision(pixels), **TOKENS, max_tokens=MAX_TOKENS, beams=beams)
    assert [len(picture) for picture in found] == [beams] * len(pixels)
    candidates = [candidate for picture in found for candidate in picture]
    assert [candidate.tokens for candidate in candidates] == expected
    assert [candidate.mean_log_prob for candidate in candidates] == pytest.approx(scores, abs=1e-5)


def test_more_beams_than_words() -> None:
    vision, decoder = own(make_network())
    (found,) = beam_search(decoder, vision(random(1, 3, SIDE, SIDE)), **TOKENS, max_tokens=5, beams=80)
    assert len(found) == len(VOCABULARY) // 2
    assert len({tuple(candidate.tokens) for candidate in found}) == len(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beams", [1, 3])
def test_batched_is_single_to_the_bit(pixels: Tensor, dtype: torch.dtype, beams: int) -> None:
    network: Any = make_network()
    vision, decoder = own(network.to(dtype))

    def search(pixels: Tensor) -> list[list[Candidate]]:
        embeddings = vision(pixels.to(dtype))
        if beams == 1:
            return greedy(decoder, embeddings, **TOKENS, max_tokens=MAX_TOKENS)
        return beam_search(decoder, embeddings, **TOKENS, max_tokens=MAX_TOKENS, beams=beams)

    assert search(pixels) == [found for picture in pixels for found in search(picture[None])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (768, 768), (768, 3072), (3072, 768)])
def test_packed_rows_do_not_depend_on_each_other(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    layer = nn.Linear(inputs, outputs).to(dtype)
    packed = pack(layer)
    if not isinstance(packed, PackedLinear):
        pytest.skip("oneDNN has no operators for this precision here")
    x = random(40, inputs).to(dtype)
    together = packed(x)
    tolerance = 1e-4 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(together, layer(x), atol=tolerance, rtol=tolerance)
    for rows in (1, 2, 3, 4, 5, 8, 17):
        assert torch.equal(packed(x[:rows]), together[:rows]), f"{rows} rows"


def test_layers_that_share_their_input_become_one() -> None:
    layers = [nn.Linear(16, width) for width in (8, 8, 24)]
    x = random(5, 16)
    expected = torch.cat([layer(x) for layer in layers], 1)
    torch.testing.assert_close(pack(*layers)(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("written", "banned"),
    [
        ([], []),
        ([7], [7]),
        ([7, 8], [8]),
        ([7, 8, 7], [7, 8]),
        ([7, 8, 9, 7, 8], [8, 9]),
        ([7, 8, 9, 6, 7, 8, 5, 7, 8], [5, 8, 9]),
    ],
)
def test_tokens_that_would_loop(written: list[int], banned: list[int]) -> None:
    assert looping(written) == banned


def test_constraint_forbids_and_changes_nothing_else() -> None:
    constraint = NoLoops(end=END, textless=torch.tensor([0, START]))
    log_probs = random(2, 10).log_softmax(-1)
    first = constraint(log_probs, torch.empty(2, 0, dtype=torch.long))
    later = constraint(log_probs, torch.tensor([[7, 8, 7], [5, 6, 9]]))
    expected = log_probs.clone()
    expected[:, [0, START]] = -math.inf
    assert torch.equal(first[:, END], torch.tensor([-math.inf, -math.inf]))
    assert torch.equal(first[:, 3:], expected[:, 3:])
    expected[0, [7, 8]] = -math.inf
    expected[1, 9] = -math.inf
    assert torch.equal(later, expected)


def test_constrained_search_writes_no_loops() -> None:
    network = make_network(spread=0.3, end_bias=-2.0)
    vision, decoder = own(network)
    embeddings = vision(random(6, 3, SIDE, SIDE))
    plain = beam_search(decoder, embeddings, **TOKENS, max_tokens=20, beams=4)
    assert any(loops(candidate.tokens) for picture in plain for candidate in picture), "the model should loop"
    constraint = NoLoops(end=END, textless=torch.tensor([0, START, 3, 4, 5]))
    for picture in beam_search(decoder, embeddings, **TOKENS, max_tokens=20, beams=4, constraint=constraint):
        assert len(picture) == 4
        for candidate in picture:
            assert candidate.tokens
            assert not loops(candidate.tokens)
            assert not {0, START, 3, 4, 5} & set(candidate.tokens)


def loops(tokens: list[int]) -> bool:
    return any(token in looping(tokens[:index]) for index, token in enumerate(tokens))
