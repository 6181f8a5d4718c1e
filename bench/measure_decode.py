"""CPU time from a 4K file to the models' inputs: in the gateway's decoders, and as three naive services would do it.

The decoders are processes of their own, so their CPU time is exact. The bundled models stand behind the gateway: they
get the same working picture and answer sooner.
"""

from functools import partial
from typing import Any

from processes import Child, children, cpu_seconds
from running_stack import RunningStack, running_stack
from session import Part, Session, in_turn
from visionstack.images import WorkingSize

_PICTURES: dict[str, dict[str, Any]] = {
    "jpeg": {"width": 3840, "height": 2160, "format": "jpeg", "quality": 90},
    "webp": {"width": 3840, "height": 2160, "format": "webp", "quality": 85},
}


def measure(session: Session) -> Part:
    part = Part()
    with running_stack(session, bundled=True) as stack, Child("bare_decode.py") as bare:
        for picture in _PICTURES.values():
            session.closed(stack.upload("/analyze/all/file"), picture, 2, 2)  # every decoder has worked once
        steps = []
        for kind in _PICTURES:
            steps.append((f"gateway, {kind}", partial(_gateway, session, part, stack, kind)))
            steps.append((f"naive, {kind}", partial(_naive, session, part, bare, kind)))
        in_turn(session.repetitions, steps)
    return part


def _gateway(session: Session, part: Part, stack: RunningStack, kind: str) -> None:
    decoders = children(stack.pid("gateway"))
    before = {pid: cpu_seconds(pid) for pid in decoders}
    count = session.choose(8, 4)
    # with one in flight, one picture more than counted and none beyond is sent
    found = session.closed(stack.upload("/analyze/all/file"), _PICTURES[kind], 1, count)
    if children(stack.pid("gateway")) != decoders:
        raise RuntimeError("the gateway replaced a decoder meanwhile; its CPU time is lost")
    used = sum(cpu_seconds(pid) - before[pid] for pid in decoders)
    part.add(f"decode.{kind}.gateway_cpu_ms", used * 1000 / (count + 1))
    part.add_load(f"decode.{kind}.request", found)
    part.facts[f"{kind}_mb"] = round(found["bytes"] / 1e6, 1)


def _naive(session: Session, part: Part, bare: Child, kind: str) -> None:
    count = session.choose(4, 2)
    milliseconds = bare.call("naive", picture=_PICTURES[kind], count=count, first_seed=session.fresh(count))
    part.add(f"decode.{kind}.naive_cpu_ms", milliseconds)
    picture = _PICTURES[kind]
    factor = WorkingSize().factor(picture["width"], picture["height"])
    width, height = picture["width"] // factor, picture["height"] // factor
    inputs = bare.call("model_inputs", width=width, height=height, count=8, first_seed=session.fresh(8))
    part.add(f"decode.{kind}.inputs_cpu_ms", inputs)
