"""Three model services on one machine: what each does alone with all cores, and what they do at the same time.

Alone means a service started by itself; together means those of the stack as `make run` starts it, once by torch and
once with `RUNTIME=openvino`.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

from processes import service, status_of
from running_stack import running_stack
from session import Part, Session, in_turn

_TOKENS = 20
_LOADS: dict[str, dict[str, Any]] = {
    "clip": {"path": "/embed", "picture": {"width": 224, "height": 224}, "in_flight": 8},
    "blip": {
        "path": f"/analyze?max_length={_TOKENS}",
        "picture": {"width": 640, "height": 480},
        "in_flight": 1,
    },
    "yolo": {"path": "/analyze", "picture": {"width": 640, "height": 480}, "in_flight": 2},
}
_PICTURES = 64


def measure(session: Session) -> Part:
    part = Part()
    with ExitStack() as exits:
        stacks = {
            "together": exits.enter_context(running_stack(session)),
            "openvino": exits.enter_context(running_stack(session, RUNTIME="openvino")),
        }
        alone = {name: exits.enter_context(service(name, **session.model_settings)) for name in _LOADS}
        part.facts["services"] = {name: status_of(server) for name, server in alone.items()}
        seconds = session.choose(30, 25)
        steps = [
            (f"{name} alone", partial(_measure, session, part, "alone", {name: target}, seconds))
            for name, target in ((name, {"url": server.url + _LOADS[name]["path"]}) for name, server in alone.items())
        ]
        for how, stack in stacks.items():
            targets = {name: stack.direct(name, load["path"]) for name, load in _LOADS.items()}
            steps.append((f"all three, {how}", partial(_measure, session, part, how, targets, 2 * seconds)))
        in_turn(session.repetitions, steps)
    return part


def _measure(session: Session, part: Part, how: str, targets: dict[str, Any], seconds: int) -> None:
    loads = {}
    for name, target in targets.items():
        loads[name] = {
            "target": target,
            "picture": _LOADS[name]["picture"],
            "in_flight": _LOADS[name]["in_flight"],
            "pictures": _PICTURES,
            "first_seed": session.fresh(_PICTURES),
        }
    for name, found in session.load.call("together", loads=loads, seconds=seconds).items():
        part.add_load(f"shared.{name}.{how}", found)
