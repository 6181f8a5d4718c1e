"""`filter_metadata`: its grammar, its limits, and the terms it becomes."""

from datetime import UTC, datetime
from typing import Any

import pytest

from qdrant_service.clauses import (
    Boolean,
    Clause,
    Integers,
    Keywords,
    Null,
    Numbers,
    Times,
    clauses_of,
    json_path,
    wanted_indexes,
)
from qdrant_service.filters import AnyOf, NumberRange, TimeRange, parse_filter
from visionstack.errors import InvalidRequest


def test_no_filter_is_no_condition() -> None:
    assert parse_filter(None) == parse_filter({}) == ()


@pytest.mark.parametrize("value", ["wallpaper", "", 7, 1.5, True, False, None, 10**30])
def test_a_value_is_equality(value: Any) -> None:
    (condition,) = parse_filter({"category": value})
    assert condition == AnyOf(("category",), (value,))
    assert isinstance(condition, AnyOf)
    assert type(condition.values[0]) is type(value)


def test_a_list_is_any_of_and_keys_are_anded_in_order() -> None:
    assert parse_filter({"a": ["x", 1, 1.5, True, None], "b.c": "y"}) == (
        AnyOf(("a",), ("x", 1, 1.5, True, None)),
        AnyOf(("b", "c"), ("y",)),
    )


def test_ranges_are_of_numbers_or_of_times() -> None:
    assert parse_filter({"width": {"gte": 1920, "lt": 3840.5}}) == (NumberRange(("width",), gte=1920.0, lt=3840.5),)
    assert parse_filter({"taken": {"gt": "2026-01-31T12:00:00+02:00", "lte": "2026-02-01t00:00:00.25z"}}) == (
        TimeRange(
            ("taken",),
            gt=datetime(2026, 1, 31, 10, tzinfo=UTC),
            lte=datetime(2026, 2, 1, 0, 0, 0, 250_000, tzinfo=UTC),
        ),
    )


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"a": []}, "filter_metadata.a", "the list is empty; leave the key out to match everything"),
    ({"a": ["x"] * 1001}, "filter_metadata.a", "at most 1000 values in a list"),
    ({"a": [["x"]]}, "filter_metadata.a", "a list holds texts, numbers, booleans or null"),
    ({"a": [{}]}, "filter_metadata.a", "a list holds texts, numbers, booleans or null"),
    ({"a": float("nan")}, "filter_metadata.a", "is not a finite number"),
    ({"a": [float("inf")]}, "filter_metadata.a", "is not a finite number"),
    ({"a": "\ud800"}, "filter_metadata.a", "is not valid Unicode: it holds half of a surrogate pair"),
    ({"\ud800": 1}, "filter_metadata", "a key is not valid Unicode: it holds half of a surrogate pair"),
    ({"": 1}, "filter_metadata.", "a part of the path is empty"),
    ({"a..b": 1}, "filter_metadata.a..b", "a part of the path is empty"),
    ({".a": 1}, "filter_metadata..a", "a part of the path is empty"),
    ({"a.b.c.d.e.f": 1}, "filter_metadata.a.b.c.d.e.f", "a path has at most 5 parts"),
    ({'a"b': 1}, 'filter_metadata.a"b', "keys with quotes or backslashes cannot be filtered"),
    ({"a\\b": 1}, "filter_metadata.a\\b", "keys with quotes or backslashes cannot be filtered"),
    ({"_vision": 1}, "filter_metadata._vision", "this key is reserved"),
    ({"_vision.match.a": "1"}, "filter_metadata._vision.match.a", "this key is reserved"),
    (
        {"a": {}},
        "filter_metadata.a",
        "an object is a range of gte, lte, gt, lt; write a nested key as a dotted path",
    ),
    (
        {"a": {"b": 1}},
        "filter_metadata.a",
        "an object is a range of gte, lte, gt, lt; write a nested key as a dotted path",
    ),
    (
        {"a": {"gte": 1, "eq": 1}},
        "filter_metadata.a",
        "an object is a range of gte, lte, gt, lt; write a nested key as a dotted path",
    ),
    ({"a": {"gte": 1, "lt": "2026-01-31T12:00:00Z"}}, "filter_metadata.a", "the bounds of a range are all numbers or "),
    ({"a": {"gte": True}}, "filter_metadata.a", "the bounds of a range are all numbers or all RFC 3339 times"),
    ({"a": {"gte": None}}, "filter_metadata.a", "the bounds of a range are all numbers or all RFC 3339 times"),
    ({"a": {"gte": [1]}}, "filter_metadata.a", "the bounds of a range are all numbers or all RFC 3339 times"),
    ({"a": {"gte": float("nan")}}, "filter_metadata.a", "is not a finite 64-bit number"),
    ({"a": {"gte": 10**400}}, "filter_metadata.a", "is not a finite 64-bit number"),
    *(
        ({"a": {"gte": time}}, "filter_metadata.a", "send an RFC 3339 time such as 2026-01-31T12:00:00Z")
        for time in (
            "yesterday",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00Z",
            "2026-02-30T12:00:00Z",
            "2026-01-31T12:00:60Z",
            "2026-01-31T12:00:00+99:00",
            "0001-01-01T00:00:00+01:00",
            "\u0662026-01-31T12:00:00Z",
            " 2026-01-31T12:00:00Z",
            "",
        )
    ),
    ({f"k{i}": 1 for i in range(65)}, "filter_metadata", "at most 64 conditions"),
]


@pytest.mark.parametrize(("refused", "field", "message"), REFUSED)
def test_what_is_no_filter_names_its_key(refused: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_filter(refused)
    assert caught.value.errors is not None
    (error,) = caught.value.errors
    assert error["field"] == field
    assert error["message"].startswith(message)
    caught.value.detail.encode()


def test_limits_are_reached_exactly() -> None:
    assert len(parse_filter({f"k{i}": 1 for i in range(64)})) == 64
    assert len(parse_filter({"a.b.c.d.e": ["x"] * 1000})) == 1


def test_a_long_key_does_not_fill_the_answer() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_filter({"x" * 100_000 + "..": 1})
    assert len(caught.value.detail) < 200


def clauses(filter_metadata: dict[str, Any], *, mirrored: bool = False) -> tuple[Clause, ...]:
    return clauses_of(parse_filter(filter_metadata), mirrored_booleans=mirrored)


def test_equality_becomes_terms_that_the_engine_answers_exactly() -> None:
    assert clauses({"a": "x"}) == ((Keywords("a", ("x",)),),)
    assert clauses({"a": True}) == ((Boolean("a", True),),)
    assert clauses({"a": True}, mirrored=True) == ((Keywords("_vision.match.a", ("true",)),),)
    assert clauses({"a": None}) == ((Null("a"),),)
    assert clauses({"a": 1}) == clauses({"a": 1.0}) == ((Numbers("a", gte=1.0, lte=1.0),),)
    assert clauses({"a": 2**53}) == ((Numbers("a", gte=2.0**53, lte=2.0**53),),)


def test_numbers_that_a_float_cannot_tell_apart_go_by_their_text() -> None:
    assert clauses({"a": 2**53 + 1}) == (
        (Integers("a", (2**53 + 1,)), Keywords("_vision.match.a", ("9007199254740993",))),
    )
    assert clauses({"a": 2**64}) == ((Keywords("_vision.match.a", ("18446744073709551616",)),),)
    assert clauses({"a": 1e20}) == clauses({"a": 10**20})
    assert clauses({"a": 0.30000000000000004}) == ((Keywords("_vision.match.a", ("0.30000000000000004",)),),)


def test_many_numbers_are_a_set_and_not_a_range_each() -> None:
    (terms,) = clauses({"a": [*range(1000)]})
    assert terms == (
        Integers("a", tuple(range(1000))),
        Keywords("_vision.match.a", tuple(map(str, range(1000)))),
    )


def test_paths_are_quoted_where_the_engine_would_read_syntax() -> None:
    assert json_path(("a", "b-c_1")) == "a.b-c_1"
    assert json_path(("a[0]", "b c", "d*")) == '"a[0]"."b c"."d*"'
    assert json_path(("\u00e9",)) == '"\u00e9"'


def test_indexes_are_wanted_only_where_they_answer_the_whole_clause() -> None:
    assert wanted_indexes(clauses({"a": "x", "b": 1, "c": True})) == {"a": "keyword", "b": "float", "c": "bool"}
    assert wanted_indexes(clauses({"a": ["x", None], "b": 2**60, "c": {"gte": "2026-01-31T12:00:00Z"}})) == {}
    assert wanted_indexes(clauses({"c": {"gte": 1}, "d": True}, mirrored=True)) == {
        "c": "float",
        "_vision.match.d": "keyword",
    }


def test_times_become_times() -> None:
    start = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert clauses({"a.b": {"gte": "2026-01-31T12:00:00Z"}}) == ((Times("a.b", gte=start),),)
