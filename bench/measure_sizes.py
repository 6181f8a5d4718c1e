"""What larger pictures and more requests at once cost: medians over sizes, so that nothing worse than linear hides."""

from functools import partial
from typing import Any

from processes import Server, service
from running_stack import RunningStack, running_stack
from session import Part, Session, in_turn

# by megapixels
PICTURES: dict[int, dict[str, Any]] = {
    1: {"width": 1280, "height": 800},
    8: {"width": 3840, "height": 2160},
    33: {"width": 7680, "height": 4320},
}
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64)


def measure(session: Session) -> Part:
    part = Part()
    with running_stack(session) as stack:
        for megapixels, picture in PICTURES.items():  # every decoder has worked once
            session.closed(stack.upload("/analyze/clip/file"), picture, 1, 1 if megapixels > 8 else 2)
        steps = [(f"{size} megapixels", partial(_size, session, part, stack, size)) for size in PICTURES]
        in_turn(session.repetitions, steps)
    with service("clip", **session.clip_settings) as clip:
        steps = [(f"{count} in flight", partial(_in_flight, session, part, clip, count)) for count in IN_FLIGHT]
        in_turn(1 if session.quick else 2, steps)
    return part


def _size(session: Session, part: Part, stack: RunningStack, megapixels: int) -> None:
    count = session.choose(4, 2) if megapixels > 8 else session.choose(10, 5)
    found = session.closed(stack.upload("/analyze/clip/file"), PICTURES[megapixels], 1, count)
    part.add_load(f"sizes.picture.{megapixels}", found)
    part.facts[f"{megapixels} megapixels"] = f"{found['bytes'] / 1e6:.1f} MB"


def _in_flight(session: Session, part: Part, clip: Server, in_flight: int) -> None:
    target, picture = {"url": f"{clip.url}/embed"}, {"width": 224, "height": 224}
    count = max(session.choose(16, 8), in_flight)
    part.add_load(f"sizes.in_flight.{in_flight}", session.closed(target, picture, in_flight, count))
