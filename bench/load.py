"""The load generator: a process of its own on the same cores, with aiohttp.

aiohttp costs 0.3 to 0.6 ms of CPU a request where httpx2 costs 1.9 (measured against a server that does nothing). Every
request carries a picture that was never sent before, made before the clock starts.
"""

import asyncio
import base64
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import aiohttp
import orjson
import uvloop

from calls import answer
from photos import photo_file

_TIMEOUT_S = 300


class Target(TypedDict):
    """Where to send what. `body` is how a picture travels: as `raw` bytes (the default), a `form`'s file, `base64` in
    JSON, or in `infinity`'s request; `json` takes the body as it is."""

    url: str
    body: NotRequired[str]
    headers: NotRequired[dict[str, str]]
    fields: NotRequired[dict[str, str]]


class PictureSpec(TypedDict):
    width: int
    height: int
    format: NotRequired[str]
    quality: NotRequired[int]


@dataclass(frozen=True, slots=True)
class Done:
    at: float
    took: float
    answer: bytes


class Sender:
    """Sends bodies to one target, as many at a time as there are workers."""

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session, self._target = session, target
        self.done: list[Done] = []

    async def one(self, content: bytes) -> None:
        headers, data = self._request(content)
        began = time.perf_counter()
        async with self._session.post(self._target["url"], data=data, headers=headers) as response:
            body = await response.read()
        ended = time.perf_counter()
        if response.status != 200:
            raise RuntimeError(f"{self._target['url']} answered {response.status}: {body[:500]!r}")
        self.done.append(Done(ended, ended - began, body))

    async def until_done(self, contents: Iterator[bytes], in_flight: int, count: int) -> None:
        """Closed loop: `in_flight` workers, until `count` have been answered."""

        async def worker() -> None:
            while len(self.done) < count and (content := next(contents, None)) is not None:
                await self.one(content)

        await _gather(worker() for _ in range(in_flight))

    async def until(self, contents: Iterator[bytes], in_flight: int, deadline: float) -> None:
        """The same until a time of `perf_counter`; contents are sent again where they do not suffice."""

        async def worker() -> None:
            while time.perf_counter() < deadline:
                await self.one(next(contents))

        await _gather(worker() for _ in range(in_flight))

    def _request(self, content: bytes) -> tuple[dict[str, str], Any]:
        headers = dict(self._target.get("headers", {}))
        match self._target.get("body", "raw"):
            case "raw":
                return {"content-type": "application/octet-stream"} | headers, content
            case "json":
                return {"content-type": "application/json"} | headers, content
            case "form":
                form = aiohttp.FormData(self._target.get("fields", {}))
                form.add_field("file", content, filename="picture", content_type="application/octet-stream")
                return headers, form
            case "base64":
                text = orjson.dumps({"image": base64.b64encode(content).decode()})
                return {"content-type": "application/json"} | headers, text
            case "infinity":
                address = b"data:image/jpeg;base64," + base64.b64encode(content)
                text = orjson.dumps({"model": "clip", "modality": "image", "input": [address.decode()]})
                return {"content-type": "application/json"} | headers, text
            case other:
                raise ValueError(other)


async def _gather(workers: Iterator[Any]) -> None:
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)
    )


def _pictures(spec: PictureSpec, seeds: Sequence[int]) -> list[bytes]:
    return [
        photo_file(spec["width"], spec["height"], seed, spec.get("format", "jpeg"), spec.get("quality", 90))
        for seed in seeds
    ]


def _ms(seconds: Sequence[float]) -> list[float]:
    return [round(value * 1000, 3) for value in seconds]


def closed(target: Target, picture: PictureSpec, first_seed: int, in_flight: int, count: int) -> dict[str, Any]:
    """`count` requests measured while `in_flight` are under way all the time.

    The clock starts with the answer to the `in_flight`-th and ends `count` answers later, while all workers still
    work: neither the empty queue at the start nor the last ones' lonely end is in it.
    """
    total = count + 2 * in_flight
    return uvloop.run(_closed(target, _pictures(picture, range(first_seed, first_seed + total)), in_flight, count))


def closed_bodies(target: Target, bodies: Sequence[str], in_flight: int, count: int) -> dict[str, Any]:
    """The same with bodies given as text, sent in turn."""
    texts = [text.encode() for text in bodies]
    contents = list(itertools.islice(itertools.cycle(texts), count + 2 * in_flight))
    return uvloop.run(_closed(target, contents, in_flight, count))


async def _closed(target: Target, contents: Sequence[bytes], in_flight: int, count: int) -> dict[str, Any]:
    async with _session() as session:
        sender = Sender(session, target)
        await sender.until_done(iter(contents), in_flight, in_flight + count)
    done = sorted(sender.done, key=lambda one: one.at)
    measured = done[in_flight : in_flight + count]
    return {
        "per_s": count / (measured[-1].at - done[in_flight - 1].at),
        "ms": _ms([one.took for one in measured]),
        "bytes": sum(map(len, contents)) / len(contents),
        "answers": [one.answer.decode() for one in measured[:count]] if target.get("body") == "json" else [],
        "answer": measured[-1].answer.decode()[:2000],
    }


def together(loads: Mapping[str, dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Several closed loops at once for a time; each is `{target, picture, first_seed, pictures, in_flight}`.

    The rate of each is that between its first answer and its last within the time. Pictures that do not suffice are
    sent again.
    """
    contents = {
        name: _pictures(load["picture"], range(load["first_seed"], load["first_seed"] + load["pictures"]))
        for name, load in loads.items()
    }
    return uvloop.run(_together(loads, contents, seconds))


async def _together(
    loads: Mapping[str, dict[str, Any]], contents: Mapping[str, Sequence[bytes]], seconds: float
) -> dict[str, Any]:
    async with _session() as session:
        senders = {name: Sender(session, load["target"]) for name, load in loads.items()}
        deadline = time.perf_counter() + seconds
        await _gather(
            sender.until(itertools.cycle(contents[name]), loads[name]["in_flight"], deadline)
            for name, sender in senders.items()
        )
    found = {}
    for name, sender in senders.items():
        within = sorted((one for one in sender.done if one.at <= deadline), key=lambda one: one.at)
        if len(within) < 3:
            raise RuntimeError(f"{name}: {len(within)} answers in {seconds:g} s")
        found[name] = {
            "per_s": (len(within) - 1) / (within[-1].at - within[0].at),
            "ms": _ms([one.took for one in within]),
        }
    return found


if __name__ == "__main__":
    answer({"closed": closed, "closed_bodies": closed_bodies, "together": together})
