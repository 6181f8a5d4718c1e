"""The report's plots, as SVG files with their text as text."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Figure, Samples
from measure_sizes import IN_FLIGHT
from record import Record
from targets import MODELS

_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f", "#4a5568")


def draw(record: Record, hour: Record, folder: Path) -> dict[str, str]:
    """Writes the plots into the folder; their addresses relative to the page beside it, by name.

    `hour` is the run of the hour of load; it may be empty, and the few minutes that every run has stand for it.
    """
    import matplotlib as mpl

    mpl.use("svg")
    # the same numbers give the same file
    mpl.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False,
    })  # fmt: skip
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    painters: Mapping[str, Callable[[Any, Record], None]] = {
        "clip": _clip,
        "in_flight": _in_flight,
        "points": _points,
        "memory": _memory,
    }
    addresses = {}
    for name, paint in painters.items():
        figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
        paint(axes, hour if name == "memory" and hour.parts else record)
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
        addresses[name] = f"{folder.name}/{path.name}"
    return addresses


def _median(samples: Samples, name: str) -> float:
    return Figure.of(samples[name]).median


def _clip(axes: Any, record: Record) -> None:
    samples, peers = record.samples, record.parts["clip"]["facts"]["peers"]
    names = {"bare-own": "bare loop (own)", "bare-torch": "bare loop (open_clip)", "service": "clip service"}
    names |= {peer: peer for peer in sorted(peers)}
    found = [samples[f"clip.{name}.32.per_s"] for name in names]
    medians = [Figure.of(values).median for values in found]
    low = [median - min(values) for median, values in zip(medians, found, strict=True)]
    high = [max(values) - median for median, values in zip(medians, found, strict=True)]
    bars = axes.barh(list(names.values()), medians, xerr=(low, high), color=[_colour(name) for name in names])
    axes.bar_label(bars, [f" {median:.1f}" for median in medians], padding=6)
    axes.invert_yaxis()
    axes.set_xlabel("pictures a second, ViT-B-32, 32 in flight")


def _colour(name: str) -> str:
    return "#a0aec0" if name.startswith("bare") else _COLOURS[0] if name == "service" else _COLOURS[1]


def _in_flight(axes: Any, record: Record) -> None:
    samples = record.samples
    rates = [_median(samples, f"sizes.in_flight.{count}.per_s") for count in IN_FLIGHT]
    latencies = [_median(samples, f"sizes.in_flight.{count}.p50_ms") for count in IN_FLIGHT]
    axes.plot(IN_FLIGHT, rates, marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(IN_FLIGHT, [str(count) for count in IN_FLIGHT])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("pictures a second", color=_COLOURS[0])
    other = axes.twinx()
    other.plot(IN_FLIGHT, latencies, marker="s", color=_COLOURS[1])
    other.set_ylim(bottom=0)
    other.set_ylabel("p50, ms", color=_COLOURS[1])
    other.spines["right"].set_visible(True)


def _points(axes: Any, record: Record) -> None:
    samples = record.samples
    for state in ("written", "indexed"):
        ending = f".{state}.p50_ms"
        sizes = sorted(
            int(name.split(".")[1]) for name in samples if name.startswith("vectors.") and name.endswith(ending)
        )
        if sizes:
            axes.plot(sizes, [_median(samples, f"vectors.{size}{ending}") for size in sizes], marker="o", label=state)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("points")
    axes.set_ylabel("search p50, ms")
    axes.legend(frameon=False)


def _memory(axes: Any, record: Record) -> None:
    """Of a run with the hour of load, or of the few minutes that every run has."""
    ((prefix, part),) = [(name, part) for name, part in record.parts.items() if name in ("hour", "memory")]
    minutes = part["facts"]["sample_every_s"] / 60
    services: Sequence[str] = ("gateway", *MODELS, "qdrant")
    for name in services:
        values = part["samples"][f"{prefix}.{name}.load_mb"]
        axes.plot([index * minutes for index in range(len(values))], values, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes of load")
    axes.set_ylabel("MB")
    axes.legend(frameon=False, ncols=3)
