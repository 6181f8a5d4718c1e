"""`/analyze/all` by itself against each of its parts by itself, all through the gateway."""

from functools import partial

from running_stack import RunningStack, running_stack
from session import Part, Session, in_turn

_PICTURE = {"width": 1024, "height": 576, "format": "webp", "quality": 80}
_PATHS = ("all", "blip", "clip", "yolo")
_TOKENS = 20


def measure(session: Session) -> Part:
    part = Part()
    with running_stack(session) as stack:
        steps = [(f"/analyze/{path}", partial(_measure, session, part, stack, path)) for path in _PATHS]
        in_turn(session.repetitions, steps)
    return part


def _measure(session: Session, part: Part, stack: RunningStack, path: str) -> None:
    fields = {"max_length": _TOKENS} if path in ("all", "blip") else {}
    count = session.choose(8, 3) if fields else session.choose(24, 6)
    target = stack.upload(f"/analyze/{path}/file", **fields)
    part.add_load(f"all.{path}", session.closed(target, _PICTURE, 1, count))
