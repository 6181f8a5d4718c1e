"""Ids of points: which are kept, which are derived, which are refused."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdrant_service.ids import MAX_INTEGER_ID, ResolvedId, random_id, resolve_id
from visionstack.errors import InvalidRequest

CANONICAL = "550e8400-e29b-41d4-a716-446655440000"


@pytest.mark.parametrize("value", [0, 1, 2**63, MAX_INTEGER_ID])
def test_integers_are_kept_as_number_and_as_digits(value: int) -> None:
    assert resolve_id("images", value) == ResolvedId(value, None)
    assert resolve_id("images", str(value)) == ResolvedId(value, None)


@pytest.mark.parametrize(
    "spelling",
    [
        CANONICAL,
        CANONICAL.upper(),
        CANONICAL.replace("-", ""),
        CANONICAL.replace("-", "").upper(),
        "urn:uuid:" + CANONICAL,
        "URN:UUID:" + CANONICAL.upper(),
        "{" + CANONICAL + "}",
    ],
)
def test_every_usual_spelling_of_a_uuid_is_one_point(spelling: str) -> None:
    assert resolve_id("images", spelling) == ResolvedId(CANONICAL, None)


@pytest.mark.parametrize(
    "text",
    [
        "img-001",
        "007",
        "00",
        "-0",
        "+1",
        " 1",
        "1 ",
        "1\n",
        "1e3",
        "1.0",
        "1_000",
        "0x10",
        "\uff11\uff12",  # full-width digits
        "\u0661\u0662",  # Arabic-Indic digits
        str(MAX_INTEGER_ID + 1),
        "9" * 30,
        "-1",
        CANONICAL + "\n",
        "{" + CANONICAL,
        CANONICAL[:-1],
        "urn:uuid:" + CANONICAL.replace("-", ""),
        "5-50e8400e29b41d4a716446655440000",  # Python's own parser drops any hyphen
        "a/b/../c",
        "..",
        " ",
        "\u0000",
        "\u200b",
        "\U0001f600",
        "x" * 1024,
    ],
)
def test_other_texts_are_derived_and_kept_beside(text: str) -> None:
    resolved = resolve_id("images", text)
    assert resolved.original == text
    assert isinstance(resolved.point_id, str)
    assert uuid.UUID(resolved.point_id).version == 5
    assert str(uuid.UUID(resolved.point_id)) == resolved.point_id


def test_derivation_is_fixed_for_good() -> None:
    """Points of earlier versions must stay reachable, and clients may derive ids themselves."""
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "urn:vision-stack:original-id")
    assert resolve_id("images", "img-001").point_id == str(uuid.uuid5(namespace, "images/img-001"))
    assert resolve_id("images", "img-001").point_id == "1a1a3cbe-499d-513f-929d-ec657d6edf18"
    assert resolve_id("other", "img-001").point_id != resolve_id("images", "img-001").point_id


def test_composed_and_decomposed_characters_are_two_points() -> None:
    assert resolve_id("images", "\u00e9").point_id != resolve_id("images", "e\u0301").point_id


@pytest.mark.parametrize(
    "value", [-1, MAX_INTEGER_ID + 1, 10**400, True, False, 1.0, None, [], "", "x" * 1025, "\ud800", "a\udfffb"]
)
def test_what_names_no_point_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_id("images", value)
    assert caught.value.errors is not None
    assert [error["field"] for error in caught.value.errors] == ["id"]
    caught.value.detail.encode()  # the sentence itself must be fit for an answer


def test_the_field_named_is_the_callers() -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_id("images", -1, field="ids.3")
    assert caught.value.errors == [
        {"field": "ids.3", "message": "an integer id lies between 0 and 2^64 - 1; send others as text"}
    ]


def test_random_ids_differ() -> None:
    one, other = random_id(), random_id()
    assert one.original is None
    assert one.point_id != other.point_id
    assert uuid.UUID(str(one.point_id)).version == 4


@given(st.integers(0, MAX_INTEGER_ID) | st.uuids().map(str) | st.text(min_size=1, max_size=1024))
def test_a_points_own_id_always_leads_back_to_it(value: int | str) -> None:
    resolved = resolve_id("images", value)
    again = resolve_id("images", resolved.point_id)
    assert again == ResolvedId(resolved.point_id, None)
    assert resolve_id("images", str(resolved.point_id)).point_id == resolved.point_id
    if resolved.original is not None:
        assert resolved.original == value


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_different_texts_are_different_points_unless_they_spell_one_uuid(one: str, other: str) -> None:
    first, second = resolve_id("images", one), resolve_id("images", other)
    if one != other and (first.original is not None or second.original is not None):
        assert first.point_id != second.point_id
