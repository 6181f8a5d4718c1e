"""Repeated requests: a kept answer is the one that would be given, and costs neither a model nor a decoding."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway_process import gateway
from gateway_service.app import create_app
from gateway_service.intake import Decoded, Received
from gateway_service.metrics import metrics_server
from gateway_service.results import Kept, Key, ResultCache
from gateway_service.services import Services
from gateway_service.settings import GatewaySettings
from local_stack import Stack
from peer_server import nobody, served
from scenes import webp
from service_process import free_port
from visionstack.inflight import Capacity
from visionstack.peers import Peer
from visionstack.schemas import ImageInfo

pytestmark = pytest.mark.anyio

_ANSWERS: dict[str, Any] = {
    "clip": [{"tag": "sea", "confidence": 0.1}],
    "blip": [{"caption": "the sea", "score": 0.7}],
    "yolo": [{"class": "boat", "confidence": 0.9, "bbox": [1.25, 2, 3.5, 4]}],
}


def key(number: int) -> Key:
    return Key("clip", bytes([number]) * 32, (5, None))


def test_what_is_kept_stays_in_its_bytes_and_the_oldest_use_goes_first() -> None:
    registry = CollectorRegistry()
    cache = ResultCache(10_000, registry)

    def held() -> float:
        return registry.get_sample_value("vision_result_cache_bytes") or 0.0

    for number in range(3):
        cache.put(key(number), Kept(b"x" * 2000, "a"))
    assert 6000 < held() <= 10_000
    assert cache.get(key(0)) == Kept(b"x" * 2000, "a")
    cache.put(key(3), Kept(b"y" * 2000, "a"))
    assert [cache.get(key(number)) is not None for number in range(4)] == [True, False, True, True]
    before = held()
    cache.put(key(3), Kept(b"z" * 1000, "b"))  # in place of the former
    assert held() == before - 1000
    cache.put(key(4), Kept(b"x" * 10_000, "a"))  # alone too large
    assert [cache.get(key(number)) is not None for number in range(5)] == [True, False, True, True, False]
    assert registry.get_sample_value("vision_result_cache_entries") == 3
    assert not ResultCache(0, CollectorRegistry()).enabled


class Backends:
    """Three model services of one replica each, which count what they are asked."""

    def __init__(self, *, cache_bytes: int = 1_000_000) -> None:
        self.asked: Counter[str] = Counter()
        self.instances = dict.fromkeys(_ANSWERS, "first")
        self.ready = True
        self.status = 200
        self.clock = 0.0
        self.registry = CollectorRegistry()
        self.results = ResultCache(cache_bytes, self.registry)

    @asynccontextmanager
    async def services(self) -> AsyncIterator[Services]:
        async with AsyncExitStack() as stack:
            urls = {name: await stack.enter_async_context(served(partial(self.answer, name))) for name in _ANSWERS}
            urls["qdrant"] = stack.enter_context(nobody())
            peers = {name: Peer(name, [url], timeout_s=5, clock=lambda: self.clock) for name, url in urls.items()}
            yield Services(**peers, results=self.results)

    async def answer(self, name: str, request: web.BaseRequest) -> web.Response:
        if request.path == "/readyz":
            status = {"status": "ok" if self.ready else "loading", "instance": self.instances[name]}
            return web.json_response(status, status=200 if self.ready else 503)
        self.asked[name] += 1
        if self.status != 200:
            return web.json_response({"status": 503, "code": "overloaded", "detail": "Full."}, status=self.status)
        if request.path == "/embed":
            answer: Any = {"vector": [0.6, 0.8], "model": "m", "dim": 2}
        else:
            answer = _ANSWERS[name]
        return web.json_response(answer, headers={"X-Instance": self.instances[name]})

    def hits(self, service: str) -> float:
        labels = {"service": service, "outcome": "hit"}
        return self.registry.get_sample_value("vision_result_cache_lookups_total", labels) or 0.0


@asynccontextmanager
async def client_of(backends: Backends) -> AsyncIterator[httpx2.AsyncClient]:
    settings = GatewaySettings.model_validate({"api_key": "k", "decode_workers": 1})
    async with AsyncExitStack() as stack:
        app = create_app(settings, services=await stack.enter_async_context(backends.services()))
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx2.ASGITransport(app)
        headers = {"X-API-Key": "k"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
            yield client


async def ask(client: httpx2.AsyncClient, path: str, data: bytes, **fields: Any) -> Any:
    response = await client.post(path, files={"file": ("p", data)}, data=fields)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_repeat_asks_nobody_and_says_the_same() -> None:
    backends = Backends()
    data = webp(1)
    async with client_of(backends) as client:
        first = await ask(client, "/analyze/all/file", data)
        again = await ask(client, "/analyze/all/file", data)
        assert backends.asked == {"clip": 1, "blip": 1, "yolo": 1}
        assert "decode" in first.pop("timings_ms")
        assert "decode" not in again.pop("timings_ms")
        assert first == again
        # the single endpoints share what the joint one has found
        assert await ask(client, "/analyze/clip/file", data) == first["clip"]
        assert await ask(client, "/analyze/blip/file", data) == first["blip"]
        assert await ask(client, "/analyze/yolo/file", data) == first["yolo"]
        assert backends.asked.total() == 3
        vector = await ask(client, "/vectors/embed/file", data)
        assert await ask(client, "/vectors/embed/file", data) == vector
    assert backends.asked.total() == 4
    assert [backends.hits(name) for name in ("clip", "blip", "yolo")] == [3, 2, 2]


async def test_every_parameter_and_every_byte_makes_another_request() -> None:
    backends = Backends()
    requests: list[tuple[str, bytes, dict[str, Any]]] = [
        ("/analyze/clip/file", webp(1), {}),
        ("/analyze/clip/file", webp(1) + b"\0", {}),
        ("/analyze/clip/file", webp(2), {}),
        ("/analyze/clip/file", webp(1), {"limit": 6}),
        ("/analyze/clip/file", webp(1), {"tags": ["a", "b"]}),
        ("/analyze/clip/file", webp(1), {"tags": ["b", "a"]}),
        ("/analyze/clip/file", webp(1), {"tags": ["ab"]}),
        ("/vectors/embed/file", webp(1), {}),
        ("/analyze/blip/file", webp(1), {}),
        ("/analyze/blip/file", webp(1), {"variants": 2}),
        ("/analyze/blip/file", webp(1), {"max_length": 49}),
        ("/analyze/yolo/file", webp(1), {}),
        ("/analyze/yolo/file", webp(1), {"conf": 0.26}),
    ]
    async with client_of(backends) as client:
        for _ in range(2):
            for path, data, fields in requests:
                await ask(client, path, data, **fields)
    assert backends.asked == {"clip": 8, "blip": 3, "yolo": 2}


async def test_an_answer_lives_no_longer_than_the_process_that_gave_it() -> None:
    backends = Backends()
    async with client_of(backends) as client:

        async def asked_again() -> int:
            before = backends.asked.total()
            await ask(client, "/analyze/clip/file", webp(1))
            return backends.asked.total() - before

        assert [await asked_again() for _ in range(2)] == [1, 0]
        backends.instances["clip"] = "second"
        backends.clock += 1.1
        assert [await asked_again() for _ in range(2)] == [1, 0]
        backends.ready = False  # another one starts: what the last one said is no longer given
        backends.clock += 1.1
        assert await asked_again() == 1


async def test_errors_are_not_kept() -> None:
    backends = Backends()
    async with client_of(backends) as client:
        backends.status = 503
        for _ in range(2):
            response = await client.post("/analyze/clip/file", files={"file": ("p", webp(1))})
            assert (response.status_code, response.json()["code"]) == (503, "overloaded")
        asked = backends.asked["clip"]
        backends.status = 200
        await ask(client, "/analyze/clip/file", webp(1))
        assert backends.asked["clip"] == asked + 1
        for _ in range(2):
            response = await client.post("/analyze/all/file", files={"file": ("p", webp(1)[:-200])})
            assert (response.status_code, response.json()["code"]) == (422, "invalid_image")


async def test_a_kept_answer_wants_a_valid_key_too() -> None:
    backends = Backends()
    async with client_of(backends) as client:
        await ask(client, "/analyze/clip/file", webp(1))
        client.headers["X-API-Key"] = "wrong"
        response = await client.post("/analyze/clip/file", files={"file": ("p", webp(1))})
    assert response.status_code == 401


async def test_zero_bytes_keep_nothing() -> None:
    backends = Backends(cache_bytes=0)
    async with client_of(backends) as client:
        for _ in range(2):
            await ask(client, "/analyze/all/file", webp(1))
    assert backends.asked == {"clip": 2, "blip": 2, "yolo": 2}


async def test_a_picture_is_decoded_once_for_all_and_for_nobody_once_all_have_left() -> None:
    calls, ended = 0, 0
    go_on = asyncio.Event()

    async def decode(data: bytes) -> Decoded:
        nonlocal calls, ended
        calls += 1
        try:
            await go_on.wait()
        finally:
            ended += 1
        return Decoded(ImageInfo(width=1, height=1, format=data.decode()), b"1234", 1, 1)

    capacity = Capacity(max_requests=1, max_bytes=100)
    with capacity.admit(timeout_s=60):
        picture = Received(b"png", decode, {})
        first, second = (asyncio.create_task(picture.decoded()) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (calls, ended) == (1, 0)  # the second one waits
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.sleep(0)
        assert (calls, ended) == (1, 1)
        go_on.set()
        both = await asyncio.gather(picture.decoded(), picture.decoded())
        assert both[0] is both[1]
        assert (both[0].info.format, calls, capacity.bytes) == ("png", 2, 4)
    assert capacity.bytes == 0


def test_a_port_that_the_metrics_cannot_have_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(OSError, match=f"METRICS_PORT={port}"),
            metrics_server(CollectorRegistry(), port, "127.0.0.1"),
        ):
            pass


def test_real_services_work_once_and_anew_after_a_restart(stack: Stack) -> None:
    def images(service: str) -> float:
        text = httpx2.get(f"http://127.0.0.1:{stack.port(service)}/metrics", trust_env=False).text
        return float(
            next(line for line in text.splitlines() if line.startswith("vision_inference_images_total")).split()[1]
        )

    def lookups(service: str, outcome: str) -> str:
        text = httpx2.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False).text
        counter = f'vision_result_cache_lookups_total{{outcome="{outcome}",service="{service}"}} '
        return next(line for line in text.splitlines() if line.startswith(counter)).removeprefix(counter)

    services = ("clip", "blip", "yolo")
    metrics_port = free_port()
    stack.wait_ready(60)
    with gateway(stack, RESULT_CACHE_BYTES="1000000", METRICS_PORT=str(metrics_port)) as client:

        def ask_all() -> tuple[list[float], Any]:
            before = [images(name) for name in services]
            answer = client.post("/analyze/all/file", files={"file": ("p", webp(3))}).json()
            assert answer.pop("timings_ms")
            return [images(name) - count for name, count in zip(services, before, strict=True)], answer

        counts, answer = ask_all()
        assert (counts, answer["errors"]) == ([1, 1, 1], {})
        assert ask_all() == ([0, 0, 0], answer)
        assert (lookups("clip", "hit"), lookups("clip", "miss")) == ("1.0", "1.0")
        assert client.get("/metrics").status_code == 404  # not for the public
        assert "instance" not in json.dumps(client.get("/health").json())
        stack.kill("yolo")
        stack.wait_ready(60)
        assert ask_all() == ([0, 0, 1], answer)
        assert ask_all() == ([0, 0, 0], answer)
