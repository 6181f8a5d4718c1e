"""`make bench`: measure the stack against its bare models and its peers, and say which targets are met.

A whole run writes docs/performance.md and its plots. The exit status is 0 only if every target is met. The parts of one
run may be measured one at a time (`--only`); the report is written once all are there. The hour of load is a run of its
own: it compares nothing with the other parts, and a page without it says that it was not measured.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import measure_all
import measure_blip
import measure_clip
import measure_decode
import measure_gateway
import measure_memory
import measure_shared
import measure_sizes
import measure_vectors
import measure_yolo
from known_limits import read_limits
from machine import Clock, describe, state_of_files
from plots import draw
from processes import DATA, ROOT
from record import Record
from report import report, summary
from session import Part, Session, open_session, say
from supervisor import StartFailed
from targets import TARGETS, Target, exit_status, judge
from weights import make_weights

HOUR = "hour"
PARTS: Mapping[str, Callable[[Session], Part]] = {
    "clip": measure_clip.measure,
    "yolo": measure_yolo.measure,
    "blip": measure_blip.measure,
    "gateway": measure_gateway.measure,
    "all": measure_all.measure,
    "shared": measure_shared.measure,
    "decode": measure_decode.measure,
    "vectors": measure_vectors.measure,
    "million": measure_vectors.measure_million,
    "sizes": measure_sizes.measure,
    "memory": measure_memory.measure,
    HOUR: measure_memory.measure_hour,
}
NOT_IN_QUICK = ("million", HOUR)
# targets that nothing but these parts can meet
_HOUR_TARGETS = (12,)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition and fewer sizes")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument(
        "--report",
        action="store_true",
        help="measure nothing; write the last run's report anew, for a reason that was added",
    )
    chosen = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    wanted = [name for name in PARTS if not (chosen.quick and name in NOT_IN_QUICK)]
    header = describe() | {"quick": chosen.quick}
    path, hour_path = DATA / ("quick.json" if chosen.quick else "run.json"), DATA / "hour.json"
    record = Record.of_file(path) if chosen.report else Record.open(path, header)
    hour = Record.of_file(hour_path) if chosen.report and hour_path.exists() else Record.open(hour_path, header)
    if not chosen.report:
        names = chosen.only or wanted
        _measure(record, [name for name in names if name != HOUR], quick=chosen.quick)
        if HOUR in names:
            _measure(hour, [HOUR], quick=chosen.quick)
    targets = [target for target in TARGETS if not (chosen.quick and target.number in _HOUR_TARGETS)]
    lacking = [name for name in wanted if name != HOUR and name not in record.parts]
    return _conclude(record, hour, targets, lacking, quick=chosen.quick)


def _measure(record: Record, names: Sequence[str], *, quick: bool) -> None:
    if not names:
        return
    say("making the models' weights, if they are not there")
    weights = make_weights(DATA / "weights")
    with open_session(weights, quick=quick) as session:
        for name in names:
            clock, began, files = Clock.now(), time.time(), state_of_files()
            say(f"{name} (load average {clock.load_average:.2f})")
            try:
                part = PARTS[name](session)
            # a refusal, or a process that ended: the other parts are still worth measuring
            except (RuntimeError, StartFailed, TimeoutError) as exc:
                say(f"FAILED, so that its targets are missed: {name}: {exc}")
                continue
            others = clock.others_since()
            record.put(name, files | {
                "began": began,
                "ended": time.time(),
                "load_before": clock.load_average,
                "cores_used_by_others": round(others, 3),
                "samples": part.samples,
                "missing": part.missing,
                "facts": part.facts,
            })  # fmt: skip
            if others > 0.1:
                say(f"  NOT QUIET: others kept {others:.2f} cores busy")


def _conclude(record: Record, hour: Record, targets: Sequence[Target], lacking: Sequence[str], *, quick: bool) -> int:
    verdicts = judge(targets, record.samples | hour.samples)
    limits = read_limits()
    print(summary(verdicts, limits))
    for peer, reason in record.missing.items():
        print(f"PEER MISSING: {peer}: {reason}")
    if quick:
        print("This was a quick run: one repetition, fewer sizes, no hour of load; docs/performance.md stays as it is.")
    elif lacking:
        print(f"Not measured in this run yet: {', '.join(lacking)}. docs/performance.md is written when they are.")
    else:
        plots = draw(record, hour, ROOT / "docs/performance")
        (ROOT / "docs/performance.md").write_text(report(record, hour, verdicts, limits, plots))
        print("Wrote docs/performance.md.")
    return exit_status(verdicts)


def _end(number: int, _: FrameType | None) -> None:
    """As an exception, so that every process that was started is ended."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
