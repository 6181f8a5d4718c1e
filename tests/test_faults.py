"""Every kind of broken connection between every pair of services, under every endpoint of the gateway.

What counts: only answers of the contract, none later than the request's deadline and half a second, nothing left open,
and everything as before once the fault is gone. The gateway and qdrant-svc are processes of their own with short
time-outs; the models are the stack's. The Qdrant server at the end of qdrant-svc's connection is `qdrant_wire`'s.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from fault_proxy import NO_FAULT, Fault, FaultProxy
from gateway_process import KEY, gateway_process
from image_host import ImageHost
from local_stack import Stack
from problems import assert_problem
from qdrant_wire import qdrant_server
from scenes import webp
from service_process import ServiceProcess, service_process
from visionstack.schemas import Problem

pytestmark = [pytest.mark.anyio, pytest.mark.security, pytest.mark.timeout(420)]

Record = Callable[[str, object], None]

DEADLINE_S = 3.0
LATE_S = DEADLINE_S + 0.5
# A pool may need one connection more than it did last time.
POOL_FILES = 1

PAIRS = (
    "gateway to clip",
    "gateway to blip",
    "gateway to yolo",
    "gateway to qdrant-svc",
    "gateway to image host",
    "qdrant-svc to clip",
    "qdrant-svc to Qdrant",
)
FAULTS = (
    Fault("latency", delay_s=0.7),
    Fault("down", refuse=True),
    Fault("bandwidth", bytes_per_s=20_000, piece_bytes=4096, both_ways=True),
    Fault("slow close", close_delay_s=30, end_after=40),
    Fault("time-out", silent=True),
    Fault("reset", reset_after=0),
    Fault("slicer", piece_bytes=16, delay_s=0.001),
    Fault("limited data", end_after=200),
)
# what an endpoint may answer when a service or the image's host fails
CODES = {
    502: {"fetch_failed", "upstream_error"},
    503: {"overloaded", "service_unavailable"},
    504: {"fetch_timeout", "upstream_timeout"},
}


@dataclass
class System:
    """The gateway, and a proxy on each way between two services."""

    gateway: ServiceProcess
    vectors: ServiceProcess
    proxies: dict[str, FaultProxy]
    picture: str
    files: dict[str, int] = field(default_factory=dict)
    calls: dict[str, tuple[str, str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        body = {"url": self.picture}
        upsert = body | {"id": "one", "metadata": {"n": 1}}
        self.calls = {
            "analyze/all": ("POST", "/analyze/all", body),
            "analyze/clip": ("POST", "/analyze/clip", body),
            "analyze/blip": ("POST", "/analyze/blip", body | {"max_length": 5}),
            "analyze/yolo": ("POST", "/analyze/yolo", body),
            "embed": ("POST", "/vectors/embed", body),
            "embed/text": ("POST", "/vectors/embed/text", {"text": "a red circle"}),
            "upsert": ("POST", "/vectors/upsert", upsert),
            "upsert/batch": ("POST", "/vectors/upsert/batch", {"items": [upsert, upsert | {"id": "two"}]}),
            "search": ("POST", "/vectors/search", body),
            "search/text": ("POST", "/vectors/search/text", {"text": "a red circle"}),
            "collections": ("GET", "/vectors/collections", None),
            "point": ("GET", "/vectors/points/by-original-id/one", None),
            "health": ("GET", "/health", None),
        }


@pytest.fixture(scope="module")
def system(stack: Stack, image_host: ImageHost) -> Iterator[System]:
    with ExitStack() as running:

        def proxy(port: int) -> FaultProxy:
            return running.enter_context(FaultProxy(port))

        proxies = {
            "qdrant-svc to Qdrant": proxy(running.enter_context(qdrant_server())),
            "qdrant-svc to clip": proxy(stack.port("clip")),
            "gateway to clip": proxy(stack.port("clip")),
            "gateway to blip": proxy(stack.port("blip")),
            "gateway to yolo": proxy(stack.port("yolo")),
            "gateway to image host": proxy(image_host.port),
        }
        vectors = running.enter_context(
            service_process(
                "qdrant",
                {
                    "QDRANT_URL": proxies["qdrant-svc to Qdrant"].url,
                    "CLIP_URL": proxies["qdrant-svc to clip"].url,
                    "STORE_TIMEOUT_S": "1",
                    "CLIP_TIMEOUT_S": "1",
                },
            )
        )
        proxies["gateway to qdrant-svc"] = proxy(vectors.port)
        gateway = running.enter_context(
            gateway_process(
                stack,
                CLIP_URL=proxies["gateway to clip"].url,
                BLIP_URL=proxies["gateway to blip"].url,
                YOLO_URL=proxies["gateway to yolo"].url,
                QDRANT_SVC_URL=proxies["gateway to qdrant-svc"].url,
                CLIP_TIMEOUT_S="1.5",
                BLIP_TIMEOUT_S="1.5",
                YOLO_TIMEOUT_S="1.5",
                QDRANT_TIMEOUT_S="2",
                FETCH_TIMEOUT_S="1.5",
                REQUEST_TIMEOUT_S=str(DEADLINE_S),
                BATCH_TIMEOUT_S=str(DEADLINE_S),
                RESULT_CACHE_BYTES="0",
                RATE_LIMIT="",
            )
        )
        image_host.put("/faults.webp", webp(3), "image/webp")
        yield System(gateway, vectors, proxies, f"{proxies['gateway to image host'].url}/faults.webp")


@dataclass
class Tally:
    cases: int = 0
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


async def ask_all(system: System, client: httpx2.AsyncClient) -> dict[str, tuple[httpx2.Response, float]]:
    """Every endpoint at once: the answers, and after how many seconds they came."""

    async def ask(method: str, path: str, body: Any) -> tuple[httpx2.Response, float]:
        started = time.perf_counter()
        response = await client.request(method, path, json=body)
        return response, time.perf_counter() - started

    answers = await asyncio.gather(*(ask(*call) for call in system.calls.values()))
    return dict(zip(system.calls, answers, strict=True))


def judge(endpoint: str, response: httpx2.Response) -> None:
    """Raises `AssertionError` for what the contract does not know."""
    if endpoint == "health":
        assert response.status_code in (200, 503)
        assert (response.json()["status"] == "unavailable") == (response.status_code == 503)
        return
    if response.status_code != 200:
        assert response.status_code in CODES, response.text
        code = response.json()["code"]
        assert code in CODES[response.status_code], response.text
        assert_problem(response, response.status_code, code)
        return
    answer = response.json()
    problems = []
    if endpoint == "analyze/all":
        problems = list(answer["errors"].values())
        assert {part for part in ("clip", "blip", "yolo") if answer[part] is None} == set(answer["errors"])
    elif endpoint == "upsert/batch":
        problems = [item["error"] for item in answer if "error" in item]
    for problem in problems:
        assert Problem.model_validate(problem).code in CODES[problem["status"]]


def is_whole(answers: dict[str, tuple[httpx2.Response, float]]) -> bool:
    if any(response.status_code != 200 for response, _ in answers.values()):
        return False
    health = answers["health"][0].json()
    return (
        health["status"] == "ok"
        and all(service["circuit"] == "closed" for service in health["services"].values())
        and answers["analyze/all"][0].json()["errors"] == {}
        and not any("error" in item for item in answers["upsert/batch"][0].json())
    )


async def until_whole(system: System, client: httpx2.AsyncClient) -> None:
    for _ in range(60):
        if is_whole(answers := await ask_all(system, client)):
            return
        await asyncio.sleep(0.3)
    pytest.fail(f"no recovery: {[(name, response.text[:300]) for name, (response, _) in answers.items()]}")


async def open_files(system: System, client: httpx2.AsyncClient) -> dict[str, int]:
    """How many files each process has open once its pools hold as few connections as they can."""
    for proxy in system.proxies.values():
        proxy.set(NO_FAULT)  # the pooled connections end, and pools let go of those at their next use
    for method, path, body in system.calls.values():
        await client.request(method, path, json=body)
    return {"gateway": system.gateway.open_files(), "qdrant-svc": system.vectors.open_files()}


async def leaks(system: System, client: httpx2.AsyncClient) -> list[str]:
    """Which process has more files open than before the first fault."""
    for _ in range(5):
        now = await open_files(system, client)
        if not any(now[name] > count + POOL_FILES for name, count in system.files.items()):
            return []
    return [f"{name}: {count} files before, {now[name]} after" for name, count in system.files.items()]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
async def test_a_broken_connection_breaks_no_promise(
    system: System, thorough: bool, fault: Fault, record_property: Record
) -> None:
    number = FAULTS.index(fault)
    # by default each pair meets a fault, each fault a pair
    pairs = PAIRS if thorough else (PAIRS[number % len(PAIRS)],)
    tally = Tally()
    limits = httpx2.Limits(max_keepalive_connections=0)  # its own connections are not to be counted
    async with httpx2.AsyncClient(
        base_url=system.gateway.url, headers={"X-API-Key": KEY}, timeout=30, limits=limits, trust_env=False
    ) as client:
        await until_whole(system, client)
        system.files = system.files or await open_files(system, client)
        for pair in pairs:
            system.proxies[pair].set(fault)
            for _ in range(3 if thorough else 1):
                for endpoint, (response, seconds) in (await ask_all(system, client)).items():
                    tally.cases += 1
                    case = f"{pair}, {endpoint}: {response.status_code} after {seconds:.2f} s"
                    if seconds > LATE_S:
                        tally.late.append(case)
                    try:
                        judge(endpoint, response)
                    except (AssertionError, KeyError, ValueError) as exc:
                        tally.wrong.append(f"{case}: {exc}")
            system.proxies[pair].set(NO_FAULT)
            await until_whole(system, client)
            tally.leaks += [f"{pair}: {leak}" for leak in await leaks(system, client)]
    row = f"Faults/{fault.name}"
    record_property(f"{row}/cases", tally.cases)
    record_property(f"{row}/answered by contract", tally.cases - len(tally.wrong))
    record_property(f"{row}/late", len(tally.late))
    record_property(f"{row}/leaks", len(tally.leaks))
    assert (tally.wrong, tally.late, tally.leaks) == ([], [], [])
