"""docs/performance.md from one run. Pure: numbers in, text out."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from figures import Figure, NotMeasured, Samples, growth, series
from measure_clip import LEVELS
from measure_sizes import IN_FLIGHT, PICTURES
from record import Record
from targets import MODELS, Verdict

_SERVICES = ("gateway", *MODELS, "qdrant")
# flops of one picture in ViT-B-32's image tower
_CLIP_GFLOP = 8.8

_METHOD = """\
Every figure is taken on one machine in one run. What is compared is measured in turn (A B C, A B C, …), ratios are
taken within a repetition, and the median of the repetitions counts; the range behind it is that of all repetitions.

- The models are the real architectures (ViT-B-32, BLIP base, YOLO11n) with random weights: the same arithmetic. YOLO's
  norms fit pictures, so that it finds about as many boxes as a trained one; every caption of BLIP has {tokens} tokens.
- Services are processes with the settings of `.env.example`. A service measured by itself has all cores; in the stack,
  `make run` shares them out. Bare loops and peers run in processes of their own, with as many threads as the service,
  and at the precision that the service chose, except for naive FastAPI and `YOLO.predict`, which run as they are. A
  server among the peers is stopped while others are measured: some look for work all the time. Their workers end with
  them, unseen, so that the part on CLIP counts some of their time as that of others.
- The load generator runs on the same cores, in a process of its own, with aiohttp: it costs 0.3 to 0.6 ms of CPU a
  request there where httpx2 costs 1.9. It keeps a number of requests in flight; the clock neither sees the start, when
  the queue is empty, nor the end. No answer is kept (RESULT_CACHE_BYTES=0), and no picture is sent twice but where
  several services are loaded together.
- A bare loop is the faster of two: the library's own model in a plain loop, and the service's model class without HTTP.
- `make bench` repeats all this; `make bench ARGS=--quick` does it once, with fewer requests.
"""


def summary(verdicts: Sequence[Verdict], limits: Mapping[str, str]) -> str:
    """The targets as text for a terminal."""
    lines = []
    for verdict in verdicts:
        target = verdict.target
        state = "met   " if verdict.met else "MISSED"
        bound = f"{target.sense} {_bound(verdict)}"
        known = "" if verdict.met else " (reason written)" if target.key in limits else " (NO REASON WRITTEN)"
        lines.append(f"{state} {target.number:>2} {target.what}: {_measured(verdict)}; {bound}{known}")
    met = sum(verdict.met for verdict in verdicts)
    return "\n".join([*lines, f"{met} of {len(verdicts)} met"])


def report(
    record: Record, hour: Record, verdicts: Sequence[Verdict], limits: Mapping[str, str], plots: Mapping[str, str]
) -> str:
    """The page. `hour` is the run of the hour of load, which may be empty; `plots` are addresses relative to it."""
    samples = record.samples | hour.samples
    facts = {name: part["facts"] for name, part in (record.parts | hour.parts).items()}
    sections = [
        "# Performance\n\nWritten by `make bench`; do not edit. "
        + f"{sum(verdict.met for verdict in verdicts)} of {len(verdicts)} targets are met.",
        "## The machine\n\n" + _machine(record, hour),
        "## Targets\n\n" + _targets(verdicts),
        "## Missed, and why\n\n" + _missed(verdicts, limits, record.missing),
        "## CLIP\n\n" + _clip(samples, facts["clip"], plots),
        "## YOLO\n\n" + _yolo(samples, facts["yolo"]),
        "## BLIP\n\n" + _blip(samples, facts["blip"]),
        "## Gateway and whole stack\n\n" + _stack(samples, facts),
        "## Vectors\n\n" + _vectors(samples, facts["vectors"], plots),
        "## Cost against size\n\n" + _sizes(samples, facts["sizes"], plots),
        "## Memory and start\n\n" + _memory(samples, facts, plots),
        "## How it is measured\n\n" + _METHOD.format(tokens=facts["blip"]["tokens"]),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


# --- pieces ---------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}"


def _figure(samples: Samples, name: str, *, spread: bool = True) -> str:
    try:
        figure = Figure.of(series(samples, name))
    except NotMeasured:
        return "-"
    if not spread or figure.repetitions == 1:
        return number(figure.median)
    return f"{number(figure.median)} ({number(figure.lowest)} to {number(figure.highest)})"


def _bound(verdict: Verdict) -> str:
    return f"{verdict.target.bound:g} {verdict.target.unit}".strip()


def _measured(verdict: Verdict) -> str:
    if verdict.figure is None:
        return f"not measured ({verdict.lacking})"
    figure = verdict.figure
    text = f"{figure.median:.3g} {verdict.target.unit}".strip()
    if figure.repetitions > 1:
        text += f" ({figure.lowest:.3g} to {figure.highest:.3g})"
    return text


def _machine(record: Record, hour: Record) -> str:
    header = record.header
    times = [time.strftime("%Y-%m-%d %H:%M", time.gmtime(part["began"])) for part in record.parts.values()]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    rows = [
        ("processor", f"{header['cpu']}, {header['cores']} cores, {' '.join(header['flags'])}"),
        ("memory", f"{header['memory_gb']} GB"),
        ("system", header["system"]),
        ("versions", versions),
        ("measured", f"{min(times)} to {max(times)} UTC"),
        *(("the hour of load", _hour(hour, part)) for part in hour.parts.values()),
    ]
    parts = [
        (
            name,
            part["commit"][:12] + (" with changes" if part["changed_files"] else ""),
            time.strftime("%H:%M", time.gmtime(part["began"])),
            f"{(part['ended'] - part['began']) / 60:.1f} min",
            f"{part['load_before']:.2f}",
            f"{part['cores_used_by_others']:.2f}",
        )
        for name, part in sorted(record.parts.items(), key=lambda item: float(item[1]["began"]))
    ]
    head = ("part", "commit", "began", "took", "load average before", "cores that others used meanwhile")
    return _table(("", ""), rows) + "\n\n" + _table(head, parts)


def _hour(hour: Record, part: Mapping[str, Any]) -> str:
    began = time.strftime("%Y-%m-%d %H:%M", time.gmtime(part["began"]))
    return f"{began} UTC, commit {part['commit'][:12]}, {hour.header['cpu']}, {hour.header['cores']} cores"


def _targets(verdicts: Sequence[Verdict]) -> str:
    rows = [
        (
            v.target.number,
            v.target.what,
            f"{v.target.sense} {_bound(v)}",
            _measured(v),
            "met" if v.met else "**missed**",
        )
        for v in verdicts
    ]
    return _table(("#", "what", "target", "measured: median (range)", ""), rows)


def _missed(verdicts: Sequence[Verdict], limits: Mapping[str, str], missing: Mapping[str, str]) -> str:
    lines = [
        f"- **{v.target.number}, {v.target.what}** ({_measured(v)}; {v.target.sense} {_bound(v)}): "
        + limits.get(v.target.key, "no reason is written yet.")
        for v in verdicts
        if not v.met
    ]
    lines += [f"- {peer} could not be measured here: {reason}" for peer, reason in missing.items()]
    return "\n".join(lines) or "None."


def _clip(samples: Samples, facts: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    servers = ["service", *facts["peers"], "bare-torch", "bare-own"]
    names = {
        "service": "**clip service**",
        "bare-torch": "bare loop, open_clip",
        "bare-own": "bare loop, service's model",
    }
    rows = []
    for in_flight in LEVELS:
        for server in servers:
            key = f"clip.{server}.{in_flight}"
            rate, p50, p95 = (_figure(samples, f"{key}.{what}") for what in ("per_s", "p50_ms", "p95_ms"))
            if f"{key}.per_s" in samples:
                rows.append((in_flight, names.get(server, server), rate, p50, p95))
    text = _state(facts["service"]) + "\n\n"
    text += _table(("in flight, or batch", "", "pictures/s", "p50 ms", "p95 ms"), rows)
    gemm = max(facts["gemm_gflops"])
    ceiling = gemm / _CLIP_GFLOP
    text += (
        f"\n\nThe machine multiplies fp32 matrices at {gemm:.0f} GFLOP/s; at {_CLIP_GFLOP} GFLOP a picture that would "
        f"be {ceiling:.1f} pictures/s without other work. Where a picture's time goes in the open_clip loop:\n\n"
    )
    stages = ("decode", "transform", "forward")
    text += _table(
        ("batch", *(f"{stage} ms" for stage in stages)),
        [(batch, *(_figure(samples, f"clip.bare-torch.{batch}.{stage}_ms") for stage in stages)) for batch in LEVELS],
    )
    return text + "\n\n" + _peers(facts) + _plot(plots, "clip", "pictures a second of each server")


def _yolo(samples: Samples, facts: Mapping[str, Any]) -> str:
    names = {
        "service": "**yolo service**, 4 in flight",
        "service.1": "**yolo service**, 1 in flight",
        "openvino": "**yolo service** with RUNTIME=openvino, 4 in flight",
        "bare-torch": "bare loop, ultralytics' parts",
        "bare-own": "bare loop, service's model",
        "predict": "YOLO.predict",
    }
    rows = [
        (name, *(_figure(samples, f"yolo.{key}.{what}") for what in ("per_s", "p50_ms", "p95_ms", "boxes")))
        for key, name in names.items()
    ]
    text = _state(facts["service"]) + " JPEG of 1024 x 768 pixels, decoding included.\n\n"
    text += _table(("", "pictures/s", "p50 ms", "p95 ms", "boxes a picture"), rows)
    return text + "\n\n" + _peers(facts)


def _blip(samples: Samples, facts: Mapping[str, Any]) -> str:
    names = {
        "service.1x1": "**blip service**, one caption",
        "generate.1": "generate, one caption",
        "service.3x1": "**blip service**, three captions",
        "generate.3": "generate, three captions (beams)",
        "service.1x4": "**blip service**, one caption, 4 in flight",
    }
    rows = [
        (name, *(_figure(samples, f"blip.{key}.{what}") for what in ("per_s", "p50_ms", "p95_ms")))
        for key, name in names.items()
    ]
    text = _state(facts["service"]) + f" Captions of {facts['tokens']} tokens.\n\n"
    return text + _table(("", "answers/s", "p50 ms", "p95 ms"), rows) + "\n\n" + _peers(facts)


def _stack(samples: Samples, facts: Mapping[str, Mapping[str, Any]]) -> str:
    gateway = [
        (f"{name}, {in_flight} in flight", *_row(samples, f"gateway.{name}.{in_flight}"))
        for in_flight in (8, 1)
        for name in ("direct", "gateway")
    ]
    everything = [(f"/analyze/{name}", *_row(samples, f"all.{name}")) for name in ("all", *MODELS)]
    shared = [
        (
            name,
            *(
                _figure(samples, f"shared.{name}.{how}.{what}")
                for what in ("per_s", "p95_ms")
                for how in ("alone", "together", "openvino")
            ),
        )
        for name in MODELS
    ]
    decode = [
        (
            f"4K {kind}, {facts['decode'][f'{kind}_mb']} MB",
            *(_figure(samples, f"decode.{kind}.{what}_cpu_ms") for what in ("gateway", "inputs", "naive")),
        )
        for kind in ("jpeg", "webp")
    ]
    head = ("", "answers/s", "p50 ms", "p95 ms")
    return "\n\n".join([
        f"The clip service called directly and through the gateway, a JPEG of {facts['gateway']['picture_kb']} KB:",
        _table(head, gateway),
        "One request at a time, through the gateway, a WebP of 1024 x 576 pixels:",
        _table(head, everything),
        "Three model services, each alone with the whole machine, and the stack's three loaded at the same time, "
        "by torch and with RUNTIME=openvino:",
        _table(
            ("", *(f"{how}, {what}" for what in ("answers/s", "p95 ms") for how in ("alone", "together", "OpenVINO"))),
            shared,
        ),
        "CPU milliseconds of one picture, from the file to the models' inputs:",
        _table(("", "decoded by the gateway", "scaled for three models", "naive: decoded three times"), decode),
    ])  # fmt: skip


def _vectors(samples: Samples, facts: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    sizes = sorted({int(name.split(".")[1]) for name in samples if name.startswith("vectors.") and ".written." in name})
    rows = []
    for points in sizes:
        for state, words in (
            ("written", "written"),
            ("building", "while the index is built"),
            ("indexed", "indexed"),
        ):
            key = f"vectors.{points}.{state}"
            if f"{key}.p50_ms" in samples:
                recall = _figure(samples, f"{key}.recall", spread=False)
                rows.append((f"{points:,} points, {words}", *_row(samples, key), recall))
    rows += [
        ("upsert of one vector, 100,000 points", *_row(samples, "vectors.100000.upsert"), ""),
        ("search by picture, 100,000 points", *_row(samples, "vectors.by_picture.search"), ""),
        ("embedding of a picture", *_row(samples, "vectors.by_picture.embed"), ""),
        ("qdrant-client's local mode, 100,000 points, no HTTP", *_row(samples, "vectors.qdrant-client"), ""),
    ]
    text = "The embedded store through the gateway, one request at a time, ten neighbours. "
    text += f"The index of 100,000 points was built in {facts['index_built_in_s']} s beside the searches.\n\n"
    text += _table(("", "answers/s", "p50 ms", "p95 ms", "recall@10"), rows)
    return text + "\n\n" + _peers(facts) + _plot(plots, "points", "search against the number of points")


def _sizes(samples: Samples, facts: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    pictures = [
        (f"{size} megapixels, {facts[f'{size} megapixels']}", *_row(samples, f"sizes.picture.{size}"))
        for size in PICTURES
    ]
    flights = [(count, *_row(samples, f"sizes.in_flight.{count}")) for count in IN_FLIGHT]
    return "\n\n".join([
        "JPEGs of three sizes into `/analyze/clip/file`, one at a time:",
        _table(("", "answers/s", "p50 ms", "p95 ms"), pictures),
        "Pictures of 224 pixels into the clip service:",
        _table(("in flight", "answers/s", "p50 ms", "p95 ms"), flights),
        _plot(plots, "in_flight", "throughput and latency against requests in flight").strip(),
    ])  # fmt: skip


def _memory(samples: Samples, facts: Mapping[str, Mapping[str, Any]], plots: Mapping[str, str]) -> str:
    hour = "hour" in facts
    part = "hour" if hour else "memory"
    rows = []
    for name in _SERVICES:
        load = series(samples, f"{part}.{name}.load_mb")
        rows.append((
            name,
            _figure(samples, f"{part}.{name}.ready_s"),
            _figure(samples, f"{part}.{name}.rest_mb"),
            number(max(load)),
            number(growth(series(samples, f"{part}.{name}.load_own_mb"))) if hour else "not measured",
        ))  # fmt: skip
    head = (
        "",
        "start to ready, s",
        "at rest, MB",
        f"most in {facts[part]['minutes']} min of load, MB",
        "growth of its own memory over an hour, x",
    )
    text = (
        "Proportional set size of a service with its child processes; all services start at once, with warm caches. "
        "Growth is that of their anonymous memory, since the pages of mapped files, such as the store's log, come and "
        "go.\n\n"
    )
    return text + _table(head, rows) + _plot(plots, "memory", "memory of each service under load")


def _row(samples: Samples, key: str) -> tuple[str, ...]:
    return tuple(_figure(samples, f"{key}.{what}") for what in ("per_s", "p50_ms", "p95_ms"))


def _state(service: Mapping[str, Any]) -> str:
    return f"{service['model']} on {service['device']} in {service['precision']}."


def _peers(facts: Mapping[str, Any]) -> str:
    return "".join(
        f"{peer}: {', '.join(f'{name} {version}' for name, version in found.items())}. "
        for peer, found in facts.get("peers", {}).items()
    ).strip()


def _plot(plots: Mapping[str, str], name: str, meaning: str) -> str:
    return f"\n\n![{meaning}]({plots[name]})" if name in plots else ""
