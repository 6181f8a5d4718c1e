"""The blip service against transformers' `generate`: as many tokens, at the same precision, one request at a time."""

import json
from contextlib import ExitStack
from functools import partial

from processes import Child, PeerMissing, Server, peer_python, service, status_of, versions
from session import Part, Session, in_turn, say
from visionstack.machine import available_cores

_PICTURE = {"width": 1024, "height": 768}
_TOKENS = 20


def measure(session: Session) -> Part:
    part = Part()
    with ExitStack() as stack:
        blip = stack.enter_context(service("blip", BLIP_MODEL=str(session.weights.blip)))
        part.facts["service"] = status_of(blip)
        part.facts["tokens"] = _TOKENS
        steps = [
            ("blip service, one caption", partial(_service, session, part, blip, 1, 1)),
            ("blip service, three captions", partial(_service, session, part, blip, 3, 1)),
            ("blip service, 4 in flight", partial(_service, session, part, blip, 1, 4)),
        ]
        try:
            python = peer_python("libraries")
        except PeerMissing as exc:
            say(f"PEER MISSING: generate: {exc}")
            part.missing["generate"] = str(exc)
        else:
            generate = stack.enter_context(Child("peers/blip_generate.py", python=python))
            generate.call(
                "load",
                weights=str(session.weights.blip),
                precision=part.facts["service"]["precision"],
                threads=available_cores(),
            )
            part.facts["peers"] = {"generate": versions(python, ["transformers", "torch"])}
            steps.append(("generate, one caption", partial(_generate, session, part, generate, 1)))
            steps.append(("generate, three captions", partial(_generate, session, part, generate, 3)))
        in_turn(session.repetitions, steps)
    return part


def _service(session: Session, part: Part, blip: Server, variants: int, in_flight: int) -> None:
    target = {"url": f"{blip.url}/analyze?variants={variants}&max_length={_TOKENS}"}
    count = session.choose(6, 2) if in_flight == 1 else session.choose(2, 1) * in_flight
    found = session.closed(target, _PICTURE, in_flight, count)
    captions = json.loads(found["answer"])
    if len(captions) != variants:
        raise RuntimeError(f"{variants} captions were asked for, and {len(captions)} came")
    part.add_load(f"blip.service.{variants}x{in_flight}", found)


def _generate(session: Session, part: Part, generate: Child, variants: int) -> None:
    count = session.choose(6, 2)
    found = generate.call(
        "run",
        picture=_PICTURE,
        count=count,
        first_seed=session.fresh(count + 1),
        tokens=_TOKENS,
        variants=variants,
    )
    part.add_load(f"blip.generate.{variants}", found)
    part.facts["generate wrote"] = sorted(set(found["lengths"]))
