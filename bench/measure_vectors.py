"""Search and upsert through the gateway in the embedded store, at several sizes, and search by picture."""

import json
import shutil
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

from processes import DATA, Child, PeerMissing, peer_python, versions
from running_stack import RunningStack, running_stack
from session import Part, Session, in_turn, say

_LIMIT = 10
_TARGET_POINTS = 100_000
_PICTURE = {"width": 1024, "height": 576, "format": "webp", "quality": 80}
_POINTS_SEED = 1
_INDEX_BEGINS_WITHIN_S = 30
_INDEX_TIMEOUT_S = 1800


def measure(session: Session) -> Part:
    part = Part()
    sizes = (1_000, _TARGET_POINTS) if session.quick else (1_000, 10_000, _TARGET_POINTS)
    with TemporaryDirectory(dir=DATA, prefix="vectors-") as folder, Child("fill_store.py") as filler:
        for points in sizes:
            _at_size(session, part, filler, Path(folder) / str(points), points)
    _peer(session, part)
    return part


def measure_million(session: Session) -> Part:
    """One more size, apart because it takes minutes and gigabytes."""
    part = Part()
    with TemporaryDirectory(dir=DATA, prefix="vectors-") as folder, Child("fill_store.py") as filler:
        _at_size(session, part, filler, Path(folder) / "1000000", 1_000_000)
    return part


def _at_size(session: Session, part: Part, filler: Child, folder: Path, points: int) -> None:
    say(f"  writing {points} points")
    part.add(
        f"vectors.{points}.written_per_s", filler.call("fill", folder=str(folder), count=points, seed=_POINTS_SEED)
    )
    asked = filler.call(
        "queries", count=60, seed=session.fresh(1), points=points, points_seed=_POINTS_SEED, limit=_LIMIT
    )
    is_target = points == _TARGET_POINTS
    with running_stack(session, vectors=folder, QDRANT_INDEX_AFTER="0") as stack:
        steps = [("search by vector", partial(_search, session, part, stack, points, "written", asked))]
        if is_target:
            steps += [
                ("upsert", partial(_upsert, session, part, stack, points)),
                ("search by picture", partial(_picture, session, part, stack, "search")),
                ("embed", partial(_picture, session, part, stack, "embed")),
            ]
        in_turn(session.repetitions, [(f"{points} points: {name}", step) for name, step in steps])
    if is_target:
        with running_stack(session, vectors=folder) as stack:
            _wait_for_index(session, part, stack, points, asked)
            again = [("search in the index", partial(_search, session, part, stack, points, "indexed", asked))]
            in_turn(session.repetitions, again)
    shutil.rmtree(folder)


def _search(session: Session, part: Part, stack: RunningStack, points: int, state: str, asked: dict[str, Any]) -> None:
    bodies = [json.dumps({"vector": vector, "limit": _LIMIT}) for vector in asked["vectors"]]
    count = len(bodies)
    found = session.load.call(
        "closed_bodies", target=stack.json("/vectors/search/vector"), bodies=bodies, in_flight=1, count=count
    )
    part.add_load(f"vectors.{points}.{state}", found)
    # the first body went before the clock started, so the answers begin with the second's
    wanted = asked["ids"][1:] + asked["ids"][:1]
    hits = [[int(hit["id"]) for hit in json.loads(answer)] for answer in found["answers"]]
    shares = [len(set(one) & set(other)) / _LIMIT for one, other in zip(hits, wanted, strict=True)]
    part.add(f"vectors.{points}.{state}.recall", sum(shares) / len(shares))


def _upsert(session: Session, part: Part, stack: RunningStack, points: int) -> None:
    """New points far from all others, so that they are nobody's neighbours."""
    count = session.choose(60, 30)
    first = session.fresh(count + 2)
    far = [[float(place == point % 512) for place in range(512)] for point in range(count + 2)]
    bodies = [
        json.dumps({"vector": vector, "id": points + first + index, "metadata": {"n": index}})
        for index, vector in enumerate(far)
    ]
    found = session.load.call(
        "closed_bodies", target=stack.json("/vectors/upsert/vector"), bodies=bodies, in_flight=1, count=count
    )
    part.add_load(f"vectors.{points}.upsert", found)


def _picture(session: Session, part: Part, stack: RunningStack, what: str) -> None:
    target = stack.upload(f"/vectors/{what}/file")
    part.add_load(f"vectors.by_picture.{what}", session.closed(target, _PICTURE, 1, session.choose(24, 10)))


def _wait_for_index(session: Session, part: Part, stack: RunningStack, points: int, asked: dict[str, Any]) -> None:
    """Searches go on while the store builds its index; a collection is yellow meanwhile, and green before and after."""
    began = time.monotonic()
    seen: list[str] = []
    while seen[-1:] != ["green"] or "yellow" not in seen:
        seen.append(_status(stack))
        waited = time.monotonic() - began
        if waited > (_INDEX_TIMEOUT_S if "yellow" in seen else _INDEX_BEGINS_WITHIN_S):
            raise RuntimeError(f"no index after {waited:.0f} s")
        if seen[-1] == "yellow":
            _search(session, part, stack, points, "building", asked)
        time.sleep(0.2)
    part.facts["index_built_in_s"] = round(waited)
    say(f"  the index was built in {waited:.0f} s")


def _status(stack: RunningStack) -> str:
    request = Request(f"{stack.stack.url}/vectors/collections/images", headers={"X-API-Key": stack.stack.key})  # noqa: S310
    with urlopen(request, timeout=30) as response:  # noqa: S310 - our own loopback
        status: str = json.load(response)["status"]
        return status


def _peer(session: Session, part: Part) -> None:
    try:
        python = peer_python("libraries")
    except PeerMissing as exc:
        say(f"PEER MISSING: qdrant-client: {exc}")
        part.missing["qdrant-client"] = str(exc)
        return
    with Child("peers/qdrant_local.py", python=python) as client:
        found = client.call("run", points=_TARGET_POINTS, points_seed=_POINTS_SEED, count=20, seed=session.fresh(1))
    part.add_load("vectors.qdrant-client", found)
    part.facts["peers"] = {"qdrant-client": versions(python, ["qdrant-client"])}
