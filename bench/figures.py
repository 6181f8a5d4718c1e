"""What is computed from measured numbers: medians, spreads, and ratios within one repetition. Pure.

A repetition measures all sides of a comparison one after another (A B C, A B C, …). A ratio is taken within each
repetition, and the median of the ratios counts: what slows the machine for a minute slows both sides of it.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# name of a measured quantity -> one value for each repetition
Samples = Mapping[str, Sequence[float]]


class NotMeasured(Exception):
    """A quantity that a comparison needs was not measured; the text names it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A median and the range of the repetitions around it."""

    median: float
    lowest: float
    highest: float
    repetitions: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        return cls(statistics.median(values), min(values), max(values), len(values))


def series(samples: Samples, name: str) -> Sequence[float]:
    """The values of one quantity. Raises `NotMeasured`."""
    values = samples.get(name)
    if not values:
        raise NotMeasured(name)
    return values


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Value by value, within each repetition."""
    return [a / b for a, b in zip(above, below, strict=True)]


def differences(minuend: Sequence[float], subtrahend: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(minuend, subtrahend, strict=True)]


def best_of(*columns: Sequence[float], lower_is_better: bool = False) -> list[float]:
    """In each repetition the best of several ways to do the same."""
    choose = min if lower_is_better else max
    return [choose(values) for values in zip(*columns, strict=True)]


def sums(*columns: Sequence[float]) -> list[float]:
    return [sum(values) for values in zip(*columns, strict=True)]


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that `percent` of the values do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * percent // 100) - 1)]


def steepest(points: Sequence[tuple[float, float]]) -> float:
    """The largest growth of cost over growth of size between neighbouring (size, cost): 1 is linear, less is better."""
    ranked = sorted(points)
    return max(
        (cost / earlier_cost) / (size / earlier_size) for (earlier_size, earlier_cost), (size, cost) in pairwise(ranked)
    )


def growth(values: Sequence[float]) -> float:
    """How much higher the last quarter of the samples lies than the second, which is past the warming up."""
    quarter = max(1, len(values) // 4)
    return statistics.median(values[-quarter:]) / statistics.median(values[quarter : 2 * quarter])
