"""Hostile and odd pictures through the real gateway: each gets its right answer, whichever way it comes, and costs."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway_process import KEY, gateway_process
from hostile_pictures import BOMBS, HOSTILE, Hostile
from image_host import ImageHost
from local_stack import Stack
from pictures import encoded, gradient
from problems import assert_problem

pytestmark = pytest.mark.timeout(900)

CODES = {
    413: {"image_too_large"},
    415: {"unsupported_media_type"},
    422: {"invalid_image"},
    503: {"overloaded"},
}
MiB = 1024 * 1024
# No picture may hold its sender longer, on however slow a machine.
PATIENCE_S = 60.0
ALL_PATHS = ("/analyze/all", "/analyze/clip", "/analyze/blip", "/analyze/yolo", "/vectors/embed", "/vectors/search")


def ask(api: httpx2.Client, path: str, row: Hostile, data: bytes, host: ImageHost | None) -> httpx2.Response:
    """By upload, or by URL where a host is given. Patient with a 503, as clients should be."""
    body = {"url": host.put(f"/picture-{threading.get_ident()}", data, row.mime)} if host else None
    for _ in range(30):
        if body is None:
            response = api.post(f"{path}/file", files={"file": ("picture.png", data, "image/png")})
        else:
            response = api.post(path, json=body)
        if response.status_code != 503 or 503 in row.answers:
            break
        time.sleep(int(response.headers["retry-after"]))
    return response


def wrong(row: Hostile, response: httpx2.Response) -> str | None:
    """What is wrong with the answer's status and code, or None."""
    status = response.status_code
    if status not in row.answers:
        return f"{row.group}, {row.name}: {status}, not {sorted(row.answers)}: {response.text[:200]}"
    if status != 200:
        code = response.json()["code"]
        assert_problem(response, status, code)
        if code not in CODES[status]:
            return f"{row.group}, {row.name}: {status} {code}"
    return None


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.security
def test_every_picture_gets_its_right_answer(
    api: httpx2.Client, image_host: ImageHost, thorough: bool, record_property: Callable[[str, object], None]
) -> None:
    """Size and embedding too: most wrong answers have status 200. In the long form on every endpoint, twice."""
    known: dict[bytes, list[float]] = {}
    tried: Counter[str] = Counter()
    errors_500: Counter[str] = Counter()
    slowest: Counter[str] = Counter()
    problems: list[tuple[str, str]] = []
    paths = ALL_PATHS if thorough else ("/analyze/all", "/vectors/embed")

    def embedding(data: bytes) -> list[float]:
        if data not in known:
            vector: list[float] = api.post("/vectors/embed/file", files={"file": ("p", data)}).json()["vector"]
            known[data] = vector
        return known[data]

    def answers(row: Hostile) -> list[tuple[int, int, list[str]]]:
        """Of each request its milliseconds, its status, and what is wrong with it."""
        data, given = row.make(), []
        for path in paths:
            for host in (None, image_host) if thorough or path != paths[0] else (None,):
                started = time.monotonic()
                response = ask(api, path, row, data, host)
                elapsed = round((time.monotonic() - started) * 1000)
                found = [f"{path}: {what}"] if (what := wrong(row, response)) else []
                answer = response.json() if response.status_code == 200 else {}
                if answer and path == "/analyze/all" and row.size is not None:
                    told = answer["image"]["width"], answer["image"]["height"]
                    if told != row.size:
                        found.append(f"{row.name}: {told}, not {row.size}")
                if answer and path == "/vectors/embed" and row.like is not None:
                    likeness = cosine(answer["vector"], embedding(row.like()))
                    if likeness < row.cosine:
                        found.append(f"{row.name}: cosine {likeness:.4f}")
                given.append((elapsed, response.status_code, found))
        return given

    rows = HOSTILE * (2 if thorough else 1)
    with ThreadPoolExecutor(1 if thorough else 3) as pool:  # the long form's times are those of one at a time
        for row, given in zip(rows, pool.map(answers, rows), strict=True):
            for elapsed, status, found in given:
                slowest[row.group] = max(slowest[row.group], elapsed)
                tried[row.group] += 1
                errors_500[row.group] += status == 500
                problems += [(row.group, what) for what in found]
    for group, count in tried.items():
        record_property(f"Hostile and odd pictures/{group}/pictures", sum(row.group == group for row in HOSTILE))
        record_property(f"Hostile and odd pictures/{group}/requests", count)
        record_property(f"Hostile and odd pictures/{group}/answers 500", errors_500[group])
        record_property(f"Hostile and odd pictures/{group}/wrong answers", sum(where == group for where, _ in problems))
        record_property(f"Hostile and odd pictures/{group}/slowest, ms", slowest[group])
    assert problems == []
    assert max(slowest.values()) < PATIENCE_S * 1000


# --- memory -----------------------------------------------------------------------------------------------------------


class Memory:
    """The resident memory of a process and of its children, sampled; `peak` is since the last `begin`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak = 0

    def now(self) -> int:
        return sum(self._resident(pid) for pid in (self._pid, *self._children()))

    def begin(self) -> int:
        self.peak = self.now()
        return self.peak

    def sample(self) -> None:
        self.peak = max(self.peak, self.now())

    def _children(self) -> Iterator[int]:
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            with contextlib.suppress(OSError):
                yield from map(int, (task / "children").read_text().split())

    @staticmethod
    def _resident(pid: int) -> int:
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        return 0


@pytest.mark.alone
@pytest.mark.security
@pytest.mark.anyio
@pytest.mark.timeout(3600)
async def test_64_bombs_at_once_stay_within_the_budget(
    stack: Stack, thorough: bool, record_property: Callable[[str, object], None]
) -> None:
    """Of each kind; the gateway answers probes meanwhile, and an ordinary picture afterwards."""
    workers, pixels = 2, 50_000_000
    budget = pixels * 20  # one bomb at a time
    kinds = BOMBS if thorough else {name: BOMBS[name] for name in ("flat webp", "1-bit png")}
    in_flight = 512 * MiB
    settings = {
        "DECODE_WORKERS": str(workers),
        "DECODE_MEMORY_BYTES": str(budget),
        "MAX_IN_FLIGHT_BYTES": str(in_flight),
        "FETCH_ALLOW_NETWORKS": "",
    }
    at_once = 64 if thorough else 8
    ordinary = encoded(gradient(), "PNG")
    with gateway_process(stack, **settings) as process:
        memory = Memory(process.pid)
        quiet = memory.now()
        limits = httpx2.Limits(max_connections=at_once + 1)
        async with httpx2.AsyncClient(
            base_url=process.url, headers={"X-API-Key": KEY}, timeout=300, limits=limits, trust_env=False
        ) as client:
            for name, make in kinds.items():
                bomb = make()
                memory.begin()
                work = asyncio.gather(
                    # each with an end of its own: equal files would be decoded once for all
                    *(
                        client.post("/vectors/embed/file", files={"file": ("p", bomb + number.to_bytes(4, "big"))})
                        for number in range(at_once)
                    )
                )
                slowest_probe = 0.0
                while not work.done():
                    memory.sample()
                    started = time.perf_counter()
                    assert (await client.get("/livez")).status_code == 200
                    slowest_probe = max(slowest_probe, time.perf_counter() - started)
                    await asyncio.sleep(0.01)
                statuses = Counter(response.status_code for response in await work)
                after: Any = await client.post("/vectors/embed/file", files={"file": ("p", ordinary)})
                assert after.status_code == 200, after.text
                row = f"{at_once} bombs at once/{name}"
                record_property(f"{row}/bytes each", len(bomb))
                record_property(f"{row}/peak over idle, MiB", (memory.peak - quiet) // MiB)
                record_property(f"{row}/budget, MiB", budget // MiB)
                record_property(f"{row}/answered 200", statuses[200])
                record_property(f"{row}/422", statuses[422])
                record_property(f"{row}/503", statuses[503])
                record_property(f"{row}/500", statuses[500])
                record_property(f"{row}/slowest probe, ms", round(slowest_probe * 1000))
                assert set(statuses) <= {200, 422, 503}, statuses
                # on top come what a worker keeps between two pictures until it is replaced, and the files that wait
                kept, waiting = workers * 512 * MiB, min(at_once * len(bomb), in_flight)
                assert memory.peak - quiet < budget + kept + waiting, name
