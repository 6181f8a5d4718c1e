"""Many requests at once: each gets its own right answer, or a 503 that says when to come back."""

import asyncio
import re
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from local_stack import Stack
from problems import assert_problem
from scenes import webp

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

AT_ONCE = 64


_HELD = re.compile(r"(\w+) event loop held (\d+) ms, worked (\d+) ms")


async def test_64_at_once_are_answered_as_if_alone(stack: Stack, stack_log: Path, api: httpx2.Client) -> None:
    pictures = [webp(number) for number in range(40, 56)]

    def alone(path: str, data: bytes) -> Any:
        return api.post(path, files={"file": ("p", data)}).json()

    paths = ("/analyze/clip/file", "/analyze/yolo/file", "/analyze/blip/file", "/vectors/embed/file")
    noted = len(holds(stack_log))
    wanted = {(path, n): alone(path, data) for path in paths for n, data in enumerate(pictures)}
    limits = httpx2.Limits(max_connections=AT_ONCE)
    async with httpx2.AsyncClient(
        base_url=stack.url, headers={"X-API-Key": stack.key}, timeout=120, limits=limits, trust_env=False
    ) as client:

        async def ask(path: str, number: int) -> httpx2.Response:
            return await client.post(path, files={"file": ("p", pictures[number])})

        assert len(wanted) == AT_ONCE
        responses = await asyncio.gather(*(ask(*key) for key in wanted))
    answered = 0
    for key, response in zip(wanted, responses, strict=True):
        if response.status_code == 200:
            answered += 1
            assert_same(response.json(), wanted[key])
        else:
            assert_problem(response, 503, response.json()["code"])
    assert answered >= AT_ONCE // 2
    print(f"{answered} of {AT_ONCE} answered; {longest(holds(stack_log)[noted:])}")


def holds(log: Path) -> list[tuple[str, int, int]]:
    """Service, milliseconds, and how many of them were work, of every time that `loop_watch` saw an event loop held."""
    return [(service, int(held), int(worked)) for service, held, worked in _HELD.findall(log.read_text())]


def longest(held: list[tuple[str, int, int]]) -> str:
    by_service = {service: (ms, worked) for service, ms, worked in sorted(held, key=itemgetter(1))}
    each = [f"{service} for {ms} ms ({worked} of work)" for service, (ms, worked) in by_service.items()]
    return f"event loops were held by {', '.join(each) or 'nothing'}"


def assert_same(got: Any, wanted: Any) -> None:
    """Equal but for the last digits, which depend on how many pictures the model was given at once."""
    if isinstance(wanted, dict) and "vector" in wanted:
        cosine = sum(a * b for a, b in zip(got["vector"], wanted["vector"], strict=True))
        assert cosine > 0.999
    else:
        assert len(got) == len(wanted)
        first, first_wanted = got[:1], wanted[:1]
        for one, other in zip(first, first_wanted, strict=True):
            for name in ("tag", "caption", "class"):
                assert one.get(name) == other.get(name)
            for name in ("confidence", "score"):
                assert one.get(name) == pytest.approx(other.get(name), abs=0.02)
