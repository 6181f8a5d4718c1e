"""What all measurements share: the run they belong to, the models, the load generator, and where numbers go."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from figures import percentile
from processes import Child
from weights import CLIP_NAME, Weights

# far more than a run sends, so that two runs against one warm server do not meet
_SEEDS_A_RUN = 10_000_000


@dataclass(slots=True)
class Part:
    """What one measurement found: samples by name, what peers are missing and why, and facts for the report."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(round(value, 6))

    def add_load(self, name: str, found: Mapping[str, Any]) -> None:
        """Rate and latencies of one measurement of the load generator or of a bare loop."""
        self.add(f"{name}.per_s", found["per_s"])
        self.add(f"{name}.p50_ms", percentile(found["ms"], 50))
        self.add(f"{name}.p95_ms", percentile(found["ms"], 95))


@dataclass(frozen=True, slots=True)
class Session:
    """`quick` asks for one repetition and fewer requests and sizes."""

    quick: bool
    weights: Weights
    load: Child
    seeds: Iterator[int]

    @property
    def repetitions(self) -> int:
        return 1 if self.quick else 3

    @property
    def clip_settings(self) -> dict[str, str]:
        return {"CLIP_MODEL": CLIP_NAME, "CLIP_PRETRAINED": str(self.weights.clip)}

    @property
    def model_settings(self) -> dict[str, str]:
        return self.clip_settings | {"BLIP_MODEL": str(self.weights.blip), "YOLO_MODEL": str(self.weights.yolo)}

    def choose(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def fresh(self, count: int) -> int:
        """The first of `count` seeds that nobody had before."""
        first = next(self.seeds)
        for _ in range(count - 1):
            next(self.seeds)
        return first

    def closed(
        self, target: Mapping[str, Any], picture: Mapping[str, Any], in_flight: int, count: int
    ) -> dict[str, Any]:
        """See `load.closed`."""
        found: dict[str, Any] = self.load.call(
            "closed",
            target=target,
            picture=picture,
            first_seed=self.fresh(count + 2 * in_flight),
            in_flight=in_flight,
            count=count,
        )
        return found


@contextmanager
def open_session(weights: Weights, *, quick: bool) -> Iterator[Session]:
    start = time.time_ns() // 1000 % 100_000 * _SEEDS_A_RUN
    with Child("load.py", settings={"OPENBLAS_NUM_THREADS": "1"}) as load:
        yield Session(quick, weights, load, itertools.count(start))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def in_turn(repetitions: int, measurements: Sequence[tuple[str, Callable[[], None]]]) -> None:
    """Each of them once, then each once more: A B C, A B C. One that fails ends the run: a number is missing then."""
    for repetition in range(1, repetitions + 1):
        for name, measure in measurements:
            began = time.monotonic()
            measure()
            say(f"  {repetition}/{repetitions} {name} ({time.monotonic() - began:.0f} s)")


def json_lines(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
