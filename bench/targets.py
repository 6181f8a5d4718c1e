"""The targets: what each compares, in which direction, and how far. Pure: from samples to verdicts.

`number` is the target's number in the list that the project holds itself to; a number may have several lines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from figures import (
    Figure,
    NotMeasured,
    Samples,
    best_of,
    differences,
    growth,
    ratios,
    series,
    steepest,
    sums,
)
from local_stack import SERVICES

MODELS = ("clip", "blip", "yolo")

# a curve of medians counts as linear within the noise of a measurement
_LINEAR_WITHIN = 1.15
# a service that ends an hour of load this much larger than it began has not grown: allocators breathe
_STEADY_WITHIN = 1.03


@dataclass(frozen=True, slots=True)
class Target:
    """`values` gives one value a repetition, or raises `NotMeasured`; `unit` is x for a ratio, else what it is in."""

    number: int
    what: str
    sense: Literal["at least", "at most"]
    bound: float
    unit: str
    values: Callable[[Samples], Sequence[float]]

    @property
    def key(self) -> str:
        """Names the target in the file of known limits."""
        return f"{self.number}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`figure` is None where something was not measured, which `lacking` names; that is a miss like any other."""

    target: Target
    figure: Figure | None
    lacking: str = ""

    @property
    def met(self) -> bool:
        if self.figure is None:
            return False
        if self.target.sense == "at least":
            return self.figure.median >= self.target.bound
        return self.figure.median <= self.target.bound


def judge(targets: Sequence[Target], samples: Samples) -> list[Verdict]:
    verdicts = []
    for target in targets:
        try:
            verdicts.append(Verdict(target, Figure.of(target.values(samples))))
        except NotMeasured as exc:
            verdicts.append(Verdict(target, None, str(exc)))
    return verdicts


def exit_status(verdicts: Sequence[Verdict]) -> int:
    """0 only if every target was measured and met; that a limit is known changes nothing."""
    return 0 if verdicts and all(verdict.met for verdict in verdicts) else 1


def _ratio(above: str, below: str) -> Callable[[Samples], Sequence[float]]:
    return lambda samples: ratios(series(samples, above), series(samples, below))


def _value(name: str) -> Callable[[Samples], Sequence[float]]:
    return lambda samples: series(samples, name)


def _against_bare(above: str, bare: str, quantity: str) -> Callable[[Samples], Sequence[float]]:
    """Against the faster of the two bare loops; `bare` has a place for its kind."""

    def values(samples: Samples) -> list[float]:
        loops = [series(samples, bare.format(kind) + f".{quantity}") for kind in ("torch", "own")]
        return ratios(series(samples, f"{above}.{quantity}"), best_of(*loops, lower_is_better=quantity.endswith("_ms")))

    return values


def _added_by_gateway(samples: Samples) -> list[float]:
    return differences(series(samples, "gateway.gateway.1.p50_ms"), series(samples, "gateway.direct.1.p50_ms"))


def _all_against_slowest(samples: Samples) -> list[float]:
    parts = [series(samples, f"all.{name}.p50_ms") for name in MODELS]
    return ratios(series(samples, "all.all.p50_ms"), best_of(*parts))


def _shares(how: str) -> Callable[[Samples], Sequence[float]]:
    """The sum over the services of what each does among the others, in units of what it does alone, by torch."""
    return lambda samples: sums(
        *(
            ratios(series(samples, f"shared.{name}.{how}.per_s"), series(samples, f"shared.{name}.alone.per_s"))
            for name in MODELS
        )
    )


def _decode_cpu(kind: str) -> Callable[[Samples], Sequence[float]]:
    """The gateway's decoding, and from its working picture the three models' own scaling."""
    return lambda samples: sums(
        series(samples, f"decode.{kind}.gateway_cpu_ms"), series(samples, f"decode.{kind}.inputs_cpu_ms")
    )


def _steepest(prefix: str, sizes: Sequence[int], suffix: str = ".p50_ms") -> Callable[[Samples], Sequence[float]]:
    def values(samples: Samples) -> list[float]:
        return [steepest([(size, Figure.of(series(samples, f"{prefix}{size}{suffix}")).median) for size in sizes])]

    return values


def _growth(samples: Samples) -> list[float]:
    """Of the service that grew most."""
    return [max(growth(series(samples, f"hour.{name}.load_own_mb")) for name in SERVICES)]


TARGETS: tuple[Target, ...] = (
    Target(1, "clip, 32 in flight, against the bare batched loop", "at least", 0.90, "x",
           _against_bare("clip.service.32", "clip.bare-{}.32", "per_s")),
    Target(1, "clip, 32 in flight, against naive FastAPI", "at least", 7.5, "x",
           _ratio("clip.service.32.per_s", "clip.naive FastAPI.32.per_s")),
    Target(1, "clip, 32 in flight, against LitServe at the same precision", "at least", 1.4, "x",
           _ratio("clip.service.32.per_s", "clip.LitServe.32.per_s")),
    Target(2, "clip, 8 in flight, against the bare loop at batch 8", "at least", 0.80, "x",
           _against_bare("clip.service.8", "clip.bare-{}.8", "per_s")),
    Target(3, "clip, one in flight, p50 against bare decode and forward", "at most", 1.10, "x",
           _against_bare("clip.service.1", "clip.bare-{}.1", "p50_ms")),
    Target(4, "gateway against the clip service called directly, throughput", "at least", 0.9, "x",
           _ratio("gateway.gateway.8.per_s", "gateway.direct.8.per_s")),
    Target(4, "gateway against the clip service called directly, added p50 at 300 KB", "at most", 3.0, "ms",
           _added_by_gateway),
    Target(5, "yolo against the bare loop with letterbox and NMS", "at least", 0.9, "x",
           _against_bare("yolo.service", "yolo.bare-{}", "per_s")),
    Target(5, "yolo against YOLO.predict", "at least", 3.5, "x", _ratio("yolo.service.per_s", "yolo.predict.per_s")),
    Target(6, "blip, one caption, against generate at the same precision", "at most", 0.80, "x",
           _ratio("blip.service.1x1.p50_ms", "blip.generate.1.p50_ms")),
    Target(6, "blip, three captions against one", "at most", 1.45, "x",
           _ratio("blip.service.3x1.p50_ms", "blip.service.1x1.p50_ms")),
    Target(7, "/analyze/all by itself, p50 against the slowest part", "at most", 1.15, "x", _all_against_slowest),
    Target(8, "three model services loaded together, sum of shares of their best alone", "at least", 1.1, "x",
           _shares("together")),
    Target(8, "the same with RUNTIME=openvino", "at least", 1.4, "x", _shares("openvino")),
    Target(9, "4K JPEG into /analyze/all, CPU of decoding and resizing", "at most", 60, "ms", _decode_cpu("jpeg")),
    Target(9, "4K WebP into /analyze/all, CPU of decoding and resizing", "at most", 170, "ms", _decode_cpu("webp")),
    Target(10, "search among 100,000 points as written, p50", "at most", 22, "ms",
           _value("vectors.100000.written.p50_ms")),
    Target(10, "search among 100,000 points as written, recall@10", "at least", 0.99, "",
           _value("vectors.100000.written.recall")),
    Target(10, "search among 100,000 points after an index build, p50", "at most", 4, "ms",
           _value("vectors.100000.indexed.p50_ms")),
    Target(10, "search among 100,000 points after an index build, recall@10", "at least", 0.99, "",
           _value("vectors.100000.indexed.recall")),
    Target(10, "single upsert among 100,000 points, p50", "at most", 4, "ms", _value("vectors.100000.upsert.p50_ms")),
    Target(11, "search by picture, p50 against the embedding alone", "at most", 1.2, "x",
           _ratio("vectors.by_picture.search.p50_ms", "vectors.by_picture.embed.p50_ms")),
    Target(12, "own memory after an hour of load against its second quarter, of the service that grew most", "at most",
           _STEADY_WITHIN, "x", _growth),
    Target(13, "cost of 1, 8, 33 megapixels, steepest step (1 is linear)", "at most", _LINEAR_WITHIN, "x",
           _steepest("sizes.picture.", (1, 8, 33))),
    Target(13, "cost of 1,000 to 100,000 points, steepest step (1 is linear)", "at most", _LINEAR_WITHIN, "x",
           _steepest("vectors.", (1_000, 100_000), ".written.p50_ms")),
    Target(13, "latency of 1 to 64 requests in flight, steepest step (1 is linear)", "at most", _LINEAR_WITHIN, "x",
           _steepest("sizes.in_flight.", (1, 2, 4, 8, 16, 32, 64))),
)  # fmt: skip
