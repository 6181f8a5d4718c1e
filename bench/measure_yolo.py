"""The yolo service against the bare loops and `YOLO.predict`."""

from contextlib import ExitStack
from functools import partial

from processes import Child, PeerMissing, Server, peer_python, service, status_of, versions
from session import Part, Session, in_turn, say
from visionstack.machine import available_cores

_PICTURE = {"width": 1024, "height": 768}
_IN_FLIGHT = 4
_BARE = ("torch", "own")


def measure(session: Session) -> Part:
    part = Part()
    weights, threads = str(session.weights.yolo), available_cores()
    with ExitStack() as stack:
        yolo = stack.enter_context(service("yolo", YOLO_MODEL=weights))
        openvino = stack.enter_context(service("yolo", YOLO_MODEL=weights, RUNTIME="openvino"))
        part.facts["service"] = status_of(yolo)
        bare = stack.enter_context(Child("bare_yolo.py"))
        for kind in _BARE:
            bare.call("load", kind=kind, weights=weights, precision=part.facts["service"]["precision"], threads=threads)
        steps = [
            ("yolo service", partial(_service, session, part, yolo)),
            ("yolo service on OpenVINO", partial(_in_flight, session, part, "openvino", openvino)),
            *((f"bare {kind}", partial(_child, session, part, f"bare-{kind}", bare, {"kind": kind})) for kind in _BARE),
        ]
        try:
            python = peer_python("libraries")
        except PeerMissing as exc:
            say(f"PEER MISSING: YOLO.predict: {exc}")
            part.missing["YOLO.predict"] = str(exc)
        else:
            predict = stack.enter_context(Child("peers/ultralytics_predict.py", python=python))
            predict.call("load", weights=weights)
            part.facts["peers"] = {"YOLO.predict": versions(python, ["ultralytics", "torch"])}
            steps.append(("YOLO.predict", partial(_child, session, part, "predict", predict, {})))
        in_turn(session.repetitions, steps)
    return part


def _service(session: Session, part: Part, yolo: Server) -> None:
    _in_flight(session, part, "service", yolo)
    target = {"url": f"{yolo.url}/analyze"}
    part.add_load("yolo.service.1", session.closed(target, _PICTURE, 1, session.choose(24, 6)))


def _in_flight(session: Session, part: Part, name: str, yolo: Server) -> None:
    target = {"url": f"{yolo.url}/analyze"}
    part.add_load(f"yolo.{name}", session.closed(target, _PICTURE, _IN_FLIGHT, session.choose(60, 12)))


def _child(session: Session, part: Part, name: str, child: Child, arguments: dict[str, str]) -> None:
    count = session.choose(60, 12)
    found = child.call("run", picture=_PICTURE, count=count, first_seed=session.fresh(count + 2), **arguments)
    part.add_load(f"yolo.{name}", found)
    part.add(f"yolo.{name}.boxes", sum(found["boxes"]) / count)
