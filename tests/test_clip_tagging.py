"""Ranking tags by their vectors: numbers worked out by hand."""

import numpy as np
import pytest

from clip_service.tagging import means_of_groups, rank_tags, unit

IMAGE = np.array([1.0, 0.0], np.float32)
TAGS = ["across", "along", "half", "also half"]
VECTORS = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, np.sqrt(0.75)], [0.5, -np.sqrt(0.75)]], np.float32)


def test_confidences_are_the_softmax_of_the_scaled_cosines() -> None:
    odds = np.exp(2.0 * np.array([0.0, 1.0, 0.5, 0.5]))
    expected = odds / odds.sum()

    ranked = dict(rank_tags(IMAGE, TAGS, VECTORS, logit_scale=2.0, limit=4))

    assert [ranked[tag] for tag in TAGS] == pytest.approx(expected, abs=1e-7)
    assert sum(ranked.values()) == pytest.approx(1.0, abs=1e-12)


def test_the_best_come_first_and_equals_keep_their_order() -> None:
    assert [tag for tag, _ in rank_tags(IMAGE, TAGS, VECTORS, 2.0, limit=4)] == ["along", "half", "also half", "across"]


def test_the_limit_cuts_the_list_but_not_the_softmax() -> None:
    [(tag, confidence)] = rank_tags(IMAGE, TAGS, VECTORS, 2.0, limit=1)

    assert tag == "along"
    assert confidence == pytest.approx(np.exp(2) / (1 + np.exp(2) + 2 * np.exp(1)), abs=1e-7)


def test_a_limit_beyond_the_tags_gives_all_of_them() -> None:
    assert len(rank_tags(IMAGE, TAGS, VECTORS, 2.0, limit=100)) == 4


def test_a_great_scale_does_not_overflow() -> None:
    (_, first), (_, second), *_ = rank_tags(IMAGE, TAGS, VECTORS, logit_scale=5000.0, limit=4)

    assert (first, second) == (1.0, 0.0)


def test_unit_gives_every_row_length_one() -> None:
    assert unit(np.array([[3.0, 4.0], [0.0, -2.0]], np.float32)).tolist() == [
        pytest.approx([0.6, 0.8]),
        pytest.approx([0.0, -1.0]),
    ]


def test_a_group_becomes_the_direction_of_its_mean() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)

    means = means_of_groups(rows, [3, 1])

    assert means[0] == pytest.approx(np.array([1.0, 2.0]) / np.sqrt(5), abs=1e-6)
    assert means[1].tolist() == [-1.0, 0.0]
