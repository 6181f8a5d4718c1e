"""`filter_metadata` as conditions that no engine has a say in.

The grammar, all keys ANDed:

- `{"category": "wallpaper"}`: equal. Texts equal by their characters, numbers by their value (`1` and `1.0` are one
  number), booleans and null only themselves.
- `{"category": ["wallpaper", "photo"]}`: any of.
- `{"width": {"gte": 1920}}`: `gte`, `lte`, `gt`, `lt`, on numbers or on RFC 3339 times.

A key may be a dotted path into nested objects. Where the metadata holds a list, one fitting element is enough.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from visionstack.errors import InvalidRequest
from visionstack.schemas import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, PRIVATE_KEY

from .ids import is_unicode

Scalar = str | bool | int | float | None
Path = tuple[str, ...]

_SHOWN_KEY = 100
_NOT_UNICODE = "is not valid Unicode: it holds half of a surrogate pair"
_BOUNDS = ("gte", "lte", "gt", "lt")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The value, or an element of it, equals one of `values`."""

    path: Path
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Compared as 64-bit floats."""

    path: Path
    gte: float | None = None
    lte: float | None = None
    gt: float | None = None
    lt: float | None = None


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Compared in microseconds; the bounds are in UTC."""

    path: Path
    gte: datetime | None = None
    lte: datetime | None = None
    gt: datetime | None = None
    lt: datetime | None = None


Condition = AnyOf | NumberRange | TimeRange


def parse_filter(filter_metadata: Mapping[str, Any] | None) -> tuple[Condition, ...]:
    """Raises `InvalidRequest` that names the key."""
    if not filter_metadata:
        return ()
    if len(filter_metadata) > MAX_CONDITIONS:
        raise InvalidRequest.for_field("filter_metadata", f"at most {MAX_CONDITIONS} conditions")
    return tuple(_condition(key, value) for key, value in filter_metadata.items())


def _condition(key: str, value: object) -> Condition:
    if not is_unicode(key):
        raise InvalidRequest.for_field("filter_metadata", f"a key {_NOT_UNICODE}")
    field = f"filter_metadata.{key[:_SHOWN_KEY]}"
    path = _path(field, key)
    if isinstance(value, dict):
        return _range(field, path, value)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InvalidRequest.for_field(field, "the list is empty; leave the key out to match everything")
    if len(values) > MAX_VALUES:
        raise InvalidRequest.for_field(field, f"at most {MAX_VALUES} values in a list")
    return AnyOf(path, tuple(_scalar(field, item) for item in values))


def _path(field: str, key: str) -> Path:
    path = tuple(key.split("."))
    if len(path) > MAX_DEPTH:
        raise InvalidRequest.for_field(field, f"a path has at most {MAX_DEPTH} parts")
    if not all(path):
        raise InvalidRequest.for_field(field, "a part of the path is empty")
    # the engine's paths have no way to write these
    if '"' in key or "\\" in key:
        raise InvalidRequest.for_field(field, "keys with quotes or backslashes cannot be filtered")
    if path[0] == PRIVATE_KEY:
        raise InvalidRequest.for_field(field, "this key is reserved")
    return path


def _scalar(field: str, value: object) -> Scalar:
    match value:
        case None | bool():
            return value
        case str() if is_unicode(value):
            return value
        case str():
            raise InvalidRequest.for_field(field, _NOT_UNICODE)
        case int():
            return value
        case float() if math.isfinite(value):
            return value
        case float():
            raise InvalidRequest.for_field(field, "is not a finite number")
    raise InvalidRequest.for_field(field, "a list holds texts, numbers, booleans or null")


def _range(field: str, path: Path, bounds: dict[str, Any]) -> Condition:
    unknown = set(bounds) - set(_BOUNDS)
    if unknown or not bounds:
        raise InvalidRequest.for_field(
            field, "an object is a range of gte, lte, gt, lt; write a nested key as a dotted path"
        )
    if all(isinstance(bound, str) for bound in bounds.values()):
        return TimeRange(path, **{name: _time(field, bound) for name, bound in bounds.items()})
    if all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds.values()):
        return NumberRange(path, **{name: _number(field, bound) for name, bound in bounds.items()})
    raise InvalidRequest.for_field(field, "the bounds of a range are all numbers or all RFC 3339 times")


def _number(field: str, bound: float) -> float:
    try:
        number = float(bound)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequest.for_field(field, "is not a finite 64-bit number")
    return number


def _time(field: str, bound: str) -> datetime:
    if _TIME.fullmatch(bound):
        try:
            return datetime.fromisoformat(bound.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise InvalidRequest.for_field(field, "send an RFC 3339 time such as 2026-01-31T12:00:00Z")
