"""Conditions in the few terms that the engines share: what each adapter has to translate.

A filter is clauses that all hold; a clause is terms of which one holds. Where the engine's own equality does not do,
a term looks into the `match` tree of the payload instead.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from visionstack.schemas import PRIVATE_KEY

from .filters import AnyOf, Condition, NumberRange, Path, Scalar, TimeRange
from .payload import MATCH_KEY, ORIGINAL_ID_KEY, is_kept, is_matched_integer, match_text

IndexKind = Literal["keyword", "bool", "float"]

# A range costs the engine far more than a place in a set of values: a thousand of them took 24 s over 20,000 points.
_MAX_RANGES = 8
# Up to here a 64-bit float holds every integer.
_MAX_EXACT = 2**53
_PLAIN_PART = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Keywords:
    """One of these texts."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Integers:
    """One of these integers, each of 64 signed bits; does not see floats."""

    path: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Boolean:
    path: str
    value: bool


@dataclass(frozen=True, slots=True)
class Null:
    path: str


@dataclass(frozen=True, slots=True)
class Numbers:
    """Within all bounds that are not None; booleans are no numbers."""

    path: str
    gte: float | None = None
    lte: float | None = None
    gt: float | None = None
    lt: float | None = None


@dataclass(frozen=True, slots=True)
class Times:
    path: str
    gte: datetime | None = None
    lte: datetime | None = None
    gt: datetime | None = None
    lt: datetime | None = None


Term = Keywords | Integers | Boolean | Null | Numbers | Times
Clause = tuple[Term, ...]


def original_id_clause(original_id: str) -> Clause:
    return (Keywords(ORIGINAL_ID_KEY, (original_id,)),)


def clauses_of(conditions: Iterable[Condition], *, mirrored_booleans: bool) -> tuple[Clause, ...]:
    """`mirrored_booleans`: the engine cannot match booleans, so that they are looked for in the `match` tree."""
    return tuple(_clause(condition, mirrored_booleans) for condition in conditions)


def _clause(condition: Condition, mirrored_booleans: bool) -> Clause:
    match condition:
        case AnyOf(path, values):
            return _equality(path, values, mirrored_booleans)
        case NumberRange(path, gte, lte, gt, lt):
            return (Numbers(json_path(path), gte, lte, gt, lt),)
        case TimeRange(path, start, end, after, before):
            return (Times(json_path(path), start, end, after, before),)


def _equality(path: Path, values: tuple[Scalar, ...], mirrored_booleans: bool) -> Clause:
    here, mirror = json_path(path), json_path((PRIVATE_KEY, MATCH_KEY, *path))
    texts = [value for value in values if isinstance(value, str)]
    booleans = sorted({value for value in values if isinstance(value, bool)})
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    terms: list[Term] = []
    mirrored: list[str] = []
    if texts:
        terms.append(Keywords(here, _unique(texts)))
    if mirrored_booleans:
        mirrored += map(match_text, booleans)
    else:
        terms += [Boolean(here, value) for value in booleans]
    if len(numbers) <= _MAX_RANGES and all(map(_is_range_exact, numbers)):
        terms += [Numbers(here, gte=float(number), lte=float(number)) for number in numbers]
    else:
        integral = [int(number) for number in numbers if _is_integral(number)]
        if matched := [number for number in integral if is_matched_integer(number)]:
            terms.append(Integers(here, tuple(dict.fromkeys(matched))))
        mirrored += map(match_text, numbers)
    if mirrored:
        terms.append(Keywords(mirror, _unique(mirrored)))
    if None in values:
        terms.append(Null(here))
    return tuple(terms)


def _is_range_exact(number: float) -> bool:
    """Whether a range of this one value is equality."""
    return is_kept(number) and abs(number) <= _MAX_EXACT


def _is_integral(number: float) -> bool:
    return isinstance(number, int) or number.is_integer()


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def json_path(path: Sequence[str]) -> str:
    """The engine's spelling of a path, its parts quoted where they hold more than letters and digits."""
    return ".".join(part if _PLAIN_PART.fullmatch(part) else f'"{part}"' for part in path)


def wanted_indexes(clauses: Iterable[Clause]) -> dict[str, IndexKind]:
    """The payload indexes that would spare a scan: those of clauses whose every term one can answer."""
    wanted: dict[str, IndexKind] = {}
    for clause in clauses:
        kinds = [(term.path, _index_kind(term)) for term in clause]
        if all(kind is not None for _, kind in kinds):
            for path, kind in kinds:
                if kind is not None:
                    wanted.setdefault(path, kind)
    return wanted


def _index_kind(term: Term) -> IndexKind | None:
    """Keyword and boolean indexes leave all other conditions on the field as they were; so does a float index, except
    for times: it hides them (and a time index hides numbers, which is why there is none)."""
    match term:
        case Keywords():
            return "keyword"
        case Boolean():
            return "bool"
        case Numbers():
            return "float"
    return None


def time_paths(clauses: Iterable[Clause]) -> set[str]:
    return {term.path for clause in clauses for term in clause if isinstance(term, Times)}
