"""Thousands of mixed requests, hostile ones among them, leave the stack as large as it was."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from hostile_pictures import HOSTILE, Hostile
from image_host import ImageHost
from local_stack import SERVICES, Stack
from process_sizes import Held, held_by
from scenes import webp

pytestmark = [pytest.mark.anyio, pytest.mark.alone, pytest.mark.security, pytest.mark.timeout(3600)]

Record = Callable[[str, object], None]

CLIENTS = 8
MiB = 1024 * 1024
# A service lets go of connections that were idle for so long, at their pool's next use.
IDLE_S = 31.0
MOST_GROWTH = 0.05
COLLECTION = "soak"

REFUSED_URLS = (
    "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://[::1]/a.png", "http://0x0a000001/",
    "http://192.168.1.1:8080/a.png", "http://user:pw@127.0.0.1/", "ftp://127.0.0.1/a.png", "file:///etc/passwd",
    "http://[fd00:ec2::254]/", "not a url", "",
)  # fmt: skip
BAD_BODIES: tuple[tuple[str, str, dict[str, Any], int], ...] = (
    ("POST", "/analyze/clip", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 422),
    ("POST", "/analyze/clip", {"json": {"url": 5}}, 422),
    ("POST", "/analyze/all", {"json": {"url": "http://127.0.0.1/", "limmit": 5}}, 422),
    ("POST", "/analyze/all/file", {"data": {"limit": "5"}}, 422),
    ("POST", "/analyze/blip", {"content": b"\xff" * 9_000_000}, 413),
    ("POST", "/vectors/upsert/vector", {"json": {"vector": [1, 2, 3], "collection": COLLECTION}}, 409),
    ("POST", "/vectors/upsert/vector", {"json": {"vector": []}}, 422),
    ("POST", "/vectors/search/text", {"json": {"text": "a", "filter_metadata": {"a": {"b": 1}}}}, 422),
    ("POST", "/vectors/delete", {"json": {"ids": [-1], "collection": COLLECTION}}, 422),
    ("GET", "/vectors/collections/..%2Ftelemetry", {}, 422),
    ("GET", "/vectors/points/nobody", {"params": {"collection": COLLECTION}}, 404),
    ("GET", "/nowhere", {}, 404),
    ("PUT", "/analyze/clip", {}, 405),
)


@dataclass
class Mix:
    """Draws requests, each with the statuses that are right for it."""

    client: httpx2.AsyncClient
    host: ImageHost
    dice: random.Random
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _pictures: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._honest = [webp(number) for number in range(20)]
        self._urls = [self.host.put(f"/soak/{n}.webp", data, "image/webp") for n, data in enumerate(self._honest)]
        self._no_picture = self.host.put("/soak/page", b"<html>", "text/html")
        # those that take seconds are another test's, and would make this one take hours
        self._hostile = [row for row in HOSTILE if row.group not in ("time", "size")]

    async def one(self) -> None:
        kinds = (self.honest, self.vectors, self.hostile, self.refused_url, self.bad_body)
        (kind,) = self.dice.choices(kinds, (30, 30, 15, 10, 15))
        self.kinds[kind.__name__] += 1
        await kind()

    async def honest(self) -> None:
        number = self.dice.randrange(len(self._honest))
        url, file = self._urls[number], {"file": ("p", self._honest[number])}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("/analyze/clip", {"json": {"url": url, "limit": 3}}),
            ("/analyze/clip/file", {"files": file, "data": {"tags": ["boat", "tree"]}}),
            ("/analyze/blip", {"json": {"url": url, "max_length": 8}}),
            ("/analyze/yolo/file", {"files": file}),
            ("/analyze/all", {"json": {"url": url}}),
            ("/vectors/embed/file", {"files": file}),
            ("/vectors/embed/text", {"json": {"text": f"a red circle {number}"}}),
        ]
        path, body = self.dice.choice(calls)
        await self._ask("POST", path, {200}, **body)

    async def vectors(self) -> None:
        number = self.dice.randrange(len(self._honest))
        id, collection = f"soak-{self.dice.randrange(50)}", {"collection": COLLECTION}
        vector = [self.dice.gauss(0, 1) for _ in range(512)]
        calls: list[tuple[str, str, set[int], dict[str, Any] | None]] = [
            ("POST", "/vectors/upsert", {200}, {"url": self._urls[number], "id": id, "metadata": {"n": number}}),
            ("POST", "/vectors/upsert/vector", {200}, {"vector": vector, "id": id, "metadata": {"n": number}}),
            ("POST", "/vectors/search", {200}, {"url": self._urls[number]}),
            ("POST", "/vectors/search/vector", {200}, {"vector": vector, "filter_metadata": {"n": {"gte": 5}}}),
            ("POST", "/vectors/search/text", {200}, {"text": "a boat"}),
            ("POST", "/vectors/delete", {200}, {"ids": [id]}),
            ("GET", f"/vectors/points/by-original-id/{id}", {200, 404}, None),
            ("GET", f"/vectors/collections/{COLLECTION}", {200}, None),
        ]
        method, path, statuses, body = self.dice.choice(calls)
        if body is None:
            await self._ask(method, path, statuses, params={} if "collections" in path else collection)
        else:
            await self._ask(method, path, statuses, json=body | collection)

    async def hostile(self) -> None:
        row = self.dice.choice(self._hostile)
        path = self.dice.choice(["/analyze/all/file", "/vectors/embed/file"])
        await self._ask("POST", path, set(row.answers) | {503}, files={"file": ("p", self._data(row))})

    async def refused_url(self) -> None:
        path = self.dice.choice(["/analyze/all", "/vectors/search", "/vectors/embed"])
        if self.dice.random() < 0.2:
            missing, page = self.host.url("/soak/missing"), self._no_picture
            await self._ask("POST", path, {502, 415}, json={"url": self.dice.choice([missing, page])})
        else:
            await self._ask("POST", path, {400}, json={"url": self.dice.choice(REFUSED_URLS)})

    async def bad_body(self) -> None:
        method, path, body, status = self.dice.choice(BAD_BODIES)
        await self._ask(method, path, {status}, **body)

    def _data(self, row: Hostile) -> bytes:
        if row.name not in self._pictures:
            self._pictures[row.name] = row.make()
        return self._pictures[row.name]

    async def _ask(self, method: str, path: str, statuses: set[int], **body: Any) -> None:
        response = await self.client.request(method, path, **body)
        if response.status_code not in statuses:
            self.wrong.append(f"{method} {path}: {response.status_code}, not {statuses}: {response.text[:200]}")


async def send(stack: Stack, host: ImageHost, dice: random.Random, requests: int) -> Mix:
    """So many requests from a few clients at once, whose connections are closed afterwards."""
    async with httpx2.AsyncClient(
        base_url=stack.url, headers={"X-API-Key": stack.key}, timeout=120, trust_env=False
    ) as client:
        mix = Mix(client, host, dice)
        (await client.post("/vectors/collections", json={"name": COLLECTION})).raise_for_status()
        left = iter(range(requests))

        async def worker() -> None:
            for _ in left:
                await mix.one()

        await asyncio.gather(*(worker() for _ in range(CLIENTS)))
    return mix


async def at_rest(stack: Stack, host: ImageHost, thorough: bool) -> dict[str, Held]:
    """What each service holds once nobody asks, and its pools have a known size: as small or as large as they get."""
    at_once = 1 if thorough else CLIENTS
    if thorough:
        await asyncio.sleep(IDLE_S)
    url = host.put("/soak/rest.webp", webp(99), "image/webp")
    async with httpx2.AsyncClient(
        base_url=stack.url, headers={"X-API-Key": stack.key}, timeout=60, trust_env=False
    ) as client:
        for path in ("/analyze/all", "/vectors/search"):
            for answer in await asyncio.gather(*(client.post(path, json={"url": url}) for _ in range(at_once))):
                answer.raise_for_status()
        (await client.get("/health")).raise_for_status()
    held = {}
    for name in SERVICES:
        pid = stack.pid(name)
        assert pid is not None
        held[name] = held_by(pid)
    return held


def grown(before: dict[str, Held], after: dict[str, Held], spare: int) -> Iterator[str]:
    """Which service has more files open or more threads than before, and which they are.

    `spare`: pools may need a connection more than last time, and need as many as there are clients when they are full.
    """
    for name, now in after.items():
        then = before[name]
        for what, new, old in (("files", now.files, then.files), ("threads", now.threads, then.threads)):
            if new.total() > old.total() + spare:
                yield f"{name} has {new.total() - old.total()} {what} more: {dict(new - old)}"
        if now.processes > then.processes + spare:
            yield f"{name} has {now.processes - then.processes} processes more"


async def test_the_stack_does_not_grow(
    stack: Stack, image_host: ImageHost, thorough: bool, record_property: Record
) -> None:
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SOAK_SEED={seed}")
    dice = random.Random(seed)
    requests = int(os.environ.get("SOAK_REQUESTS") or (10_000 if thorough else 120))
    await send(stack, image_host, dice, requests // 5)
    before = await at_rest(stack, image_host, thorough)
    started = time.monotonic()
    mix = await send(stack, image_host, dice, requests)
    seconds = time.monotonic() - started
    after = await at_rest(stack, image_host, thorough)
    growth = sum(held.bytes for held in after.values()) / sum(held.bytes for held in before.values()) - 1
    row = "Soak/mixed requests"
    record_property(f"{row}/requests", mix.kinds.total())
    record_property(f"{row}/seconds", round(seconds))
    record_property(f"{row}/wrong answers", len(mix.wrong))
    record_property(f"{row}/memory before, MiB", sum(held.bytes for held in before.values()) // MiB)
    record_property(f"{row}/memory growth, %", round(growth * 100, 1))
    for what in ("files", "threads"):
        more = sum(getattr(after[name], what).total() - getattr(before[name], what).total() for name in after)
        record_property(f"{row}/{what} more", more)
    memory = {name: f"{before[name].bytes // MiB} to {after[name].bytes // MiB} MiB" for name in after}
    print(dict(mix.kinds), memory)
    assert mix.wrong == []
    assert list(grown(before, after, 2 if thorough else CLIENTS)) == []
    if thorough:  # a few hundred requests say nothing about memory
        assert growth < MOST_GROWTH, memory
