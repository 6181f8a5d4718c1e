"""What the gateway costs: the same pictures through it and to the clip service itself, in one running stack."""

from functools import partial
from typing import Any

from running_stack import running_stack
from session import Part, Session, in_turn

# 300 KB as JPEG
_PICTURE = {"width": 1200, "height": 900}


def measure(session: Session) -> Part:
    part = Part()
    with running_stack(session) as stack:
        ways = {"direct": stack.direct("clip", "/analyze"), "gateway": stack.upload("/analyze/clip/file")}
        in_turn(session.repetitions, [
            (f"{name}, {in_flight} in flight", partial(_measure, session, part, name, target, in_flight, count))
            for in_flight, count in ((8, session.choose(64, 16)), (1, session.choose(30, 8)))
            for name, target in ways.items()
        ])  # fmt: skip
    return part


def _measure(session: Session, part: Part, name: str, target: dict[str, Any], in_flight: int, count: int) -> None:
    found = session.closed(target, _PICTURE, in_flight, count)
    part.add_load(f"gateway.{name}.{in_flight}", found)
    part.facts["picture_kb"] = round(found["bytes"] / 1000)
