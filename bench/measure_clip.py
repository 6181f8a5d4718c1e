"""The clip service against the bare loops and against the peers that serve the same model."""

from contextlib import ExitStack
from functools import partial
from typing import Any

from clip_peers import PEERS, Peer
from processes import DATA, Child, PeerMissing, Server, service, status_of
from session import Part, Session, in_turn, say
from visionstack.machine import available_cores

_PICTURE = {"width": 224, "height": 224}
# in flight, and requests (full, quick)
LEVELS = {32: (64, 32), 8: (32, 16), 1: (16, 6)}
# every peer is started once and measured where it matters: when crowded, and alone
_PEER_LEVELS = (32, 1)
_BARE = ("torch", "own")


def measure(session: Session) -> Part:
    part = Part()
    with ExitStack() as stack:
        clip = stack.enter_context(service("clip", **session.clip_settings))
        part.facts["service"] = status_of(clip)
        bare = stack.enter_context(Child("bare_clip.py", settings={"CACHE_DIR": str(DATA / "cache")}))
        precision = part.facts["service"]["precision"]
        for kind in _BARE:
            weights, threads = str(session.weights.clip), available_cores()
            bare.call("load", kind=kind, weights=weights, precision=precision, threads=threads)
        peers = _start_peers(session, part, stack, precision)
        part.facts["gemm_gflops"] = [bare.call("gemm_gflops", threads=threads) for _ in range(2)]
        in_turn(session.repetitions, [
            (f"{name}, {in_flight} in flight", call)
            for in_flight in LEVELS
            for name, call in [
                ("clip service", partial(_serve, session, part, clip, in_flight)),
                *((f"bare {kind}", partial(_bare, session, part, bare, kind, in_flight)) for kind in _BARE),
                *((p.name, partial(_peer, session, part, p, in_flight)) for p in peers if in_flight in _PEER_LEVELS),
            ]
        ])  # fmt: skip
    return part


def _start_peers(session: Session, part: Part, stack: ExitStack, precision: str) -> list[Peer]:
    """Those that run here; the others are noted with the reason."""
    peers = []
    part.facts["peers"] = {}
    for name, make in PEERS:
        try:
            peer = make(session, precision)
            stack.enter_context(peer.server)
            session.closed(peer.target, _PICTURE, 1, 1)  # some start well and fail at the first picture
            peer.server.pause()
        except (PeerMissing, RuntimeError) as exc:
            say(f"PEER MISSING: {name}: {exc}")
            part.missing[name] = str(exc)
        else:
            peers.append(peer)
            part.facts["peers"][name] = dict(peer.versions)
    return peers


def _serve(session: Session, part: Part, clip: Server, in_flight: int) -> None:
    target = {"url": f"{clip.url}/embed"}
    part.add_load(f"clip.service.{in_flight}", _closed(session, target, in_flight))


def _peer(session: Session, part: Part, peer: Peer, in_flight: int) -> None:
    peer.server.resume()
    try:
        part.add_load(f"clip.{peer.name}.{in_flight}", _closed(session, dict(peer.target), in_flight))
    finally:
        peer.server.pause()


def _closed(session: Session, target: dict[str, Any], in_flight: int) -> dict[str, Any]:
    return session.closed(target, _PICTURE, in_flight, session.choose(*LEVELS[in_flight]))


def _bare(session: Session, part: Part, bare: Child, kind: str, batch: int) -> None:
    batches = session.choose(*LEVELS[batch]) // batch
    found = bare.call("run", kind=kind, batch=batch, batches=batches, first_seed=session.fresh(batch * (batches + 1)))
    part.add_load(f"clip.bare-{kind}.{batch}", found)
    for stage, value in zip(("decode", "transform", "forward"), found["stages_ms"], strict=True):
        part.add(f"clip.bare-{kind}.{batch}.{stage}_ms", value)
