"""Start-up and memory of every service, at rest and under load, and whether an hour of load makes any of them grow."""

import time
from typing import Any

from local_stack import SERVICES
from processes import memory_mb, own_memory_mb
from running_stack import RunningStack, running_stack
from session import Part, Session, say

_PICTURE = {"width": 640, "height": 480}
_PICTURES = 64
# long enough for some captions on a slow machine
_SAMPLE_EVERY_S = 60


def measure(session: Session) -> Part:
    """Several minutes of everything at once."""
    return _measure(session, "memory", minutes=session.choose(4, 1))


def measure_hour(session: Session) -> Part:
    """The same for an hour; apart because of that."""
    return _measure(session, "hour", minutes=60)


def _measure(session: Session, prefix: str, minutes: float) -> Part:
    part = Part()
    with running_stack(session) as stack:
        for name, seconds in stack.ready_after_s.items():
            part.add(f"{prefix}.{name}.ready_s", seconds)
        for name in SERVICES:
            part.add(f"{prefix}.{name}.rest_mb", memory_mb(stack.pid(name)))
        pids = {name: stack.pid(name) for name in SERVICES}
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < minutes * 60:
            session.load.call("together", loads=_loads(session, stack), seconds=_SAMPLE_EVERY_S)
            for name in SERVICES:
                part.add(f"{prefix}.{name}.load_mb", memory_mb(stack.pid(name)))
                part.add(f"{prefix}.{name}.load_own_mb", own_memory_mb(stack.pid(name)))
            if len(part.samples[f"{prefix}.clip.load_mb"]) % 10 == 0:
                say(f"  {elapsed / 60:.0f} of {minutes:g} minutes")
        if pids != {name: stack.pid(name) for name in SERVICES}:
            raise RuntimeError("a service was started anew meanwhile")
    part.facts["minutes"] = minutes
    part.facts["sample_every_s"] = _SAMPLE_EVERY_S
    return part


def _loads(session: Session, stack: RunningStack) -> dict[str, Any]:
    targets = {
        "all": (stack.upload("/analyze/all/file", max_length=10), 2),
        "clip": (stack.upload("/analyze/clip/file"), 2),
        "upsert": (stack.upload("/vectors/upsert/file", id="one"), 1),
        "search": (stack.upload("/vectors/search/file"), 1),
    }
    return {
        name: {
            "target": target,
            "picture": _PICTURE,
            "first_seed": session.fresh(_PICTURES),
            "pictures": _PICTURES,
            "in_flight": in_flight,
        }
        for name, (target, in_flight) in targets.items()
    }
