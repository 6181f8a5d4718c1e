"""What makes a text a caption: no preamble, no loop, none twice, scores in (0, 1]."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip_service.captions import Selection, clean, has_loop


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a red boat on the sea", "a red boat on the sea"),
        ("  a red   boat\ton the sea ", "a red boat on the sea"),
        ("an image of a red boat", "a red boat"),
        ("a picture of a red boat", "a red boat"),
        ("the photo of a red boat", "a red boat"),
        ("A photograph showing a red boat", "a red boat"),
        ("this is an image of a red boat", "a red boat"),
        ("there is a picture of a photo of a red boat", "a red boat"),
        ("an image of", ""),
        # information, or words that only begin alike
        ("a painting of a red boat", "a painting of a red boat"),
        ("a black and white photo of a boat", "a black and white photo of a boat"),
        ("a picture frame on a wall", "a picture frame on a wall"),
        ("a photo often seen", "a photo often seen"),
        ("there is a boat on the sea", "there is a boat on the sea"),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(st.text(alphabet="an imgeof picture", max_size=60))
def test_clean_leaves_nothing_to_clean(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    "text",
    [
        "a cat dai dai dai",
        "a cat on on a mat",
        "up and down and down and",
        "a red, red, red boat",
        "a man in a suit and a man in a suit",
        "a painting of a painting of a boat",
    ],
)
def test_loops(text: str) -> None:
    assert has_loop(text)


@pytest.mark.parametrize(
    "text",
    ["", "cat", "a black cat and a black dog", "a boat, a bird, a house", "a boat on the sea on a clear day"],
)
def test_no_loops(text: str) -> None:
    assert not has_loop(text)


def captions_of(selection: Selection) -> list[str]:
    return [caption.caption for caption in selection.captions()]


def test_selection_drops_what_reads_the_same() -> None:
    selection = Selection(3)
    selection.add([("a boat", -0.1), ("an image of a boat", -0.2), ("A boat .", -0.3), ("a ship", -0.4)])
    assert captions_of(selection) == ["a boat", "a ship"]
    assert not selection.complete


def test_scores_are_the_exponential_of_the_mean_and_descend() -> None:
    selection = Selection(2)
    selection.add([("a boat", -0.5), ("a ship", -0.25)])
    assert [caption.score for caption in selection.captions()] == [math.exp(-0.25), math.exp(-0.5)]


@pytest.mark.parametrize("mean_log_prob", [0.0, 1e-7, -5.0, -2000.0])
def test_scores_stay_above_zero_and_up_to_one(mean_log_prob: float) -> None:
    selection = Selection(1)
    selection.add([("a boat", mean_log_prob)])
    assert 0 < selection.captions()[0].score <= 1


def test_later_rounds_only_fill_up() -> None:
    selection = Selection(3)
    selection.add([("a boat", -0.5), ("a boat boat boat", -0.6), ("a ship", -0.9)])
    assert not selection.complete
    selection.add([("a raft", -0.1), ("a boat", -0.5), ("a canoe", -0.2)])
    assert selection.complete
    assert captions_of(selection) == ["a raft", "a boat", "a ship"]


def test_no_more_than_wanted() -> None:
    selection = Selection(1)
    selection.add([("a boat", -0.5), ("a ship", -0.6)])
    assert captions_of(selection) == ["a boat"]


def test_a_looping_text_is_better_than_none() -> None:
    selection = Selection(2)
    selection.add([("", -0.1), ("boat boat boat", -0.4), ("ship ship ship", -0.5)])
    assert not selection.complete
    assert captions_of(selection) == ["boat boat boat"]


def test_a_good_text_displaces_a_looping_one() -> None:
    selection = Selection(1)
    selection.add([("boat boat boat", -0.1)])
    selection.add([("a boat", -0.9)])
    assert captions_of(selection) == ["a boat"]


def test_nothing_from_nothing() -> None:
    assert Selection(1).captions() == []
