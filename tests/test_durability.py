"""Nothing acknowledged is lost: services killed at random under writers, a full disk, a power failure."""

import contextlib
import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from conftest import running_stack
from local_stack import Stack
from mounts import small_disk
from scenes import webp
from service_process import service_process
from visionstack.settings import MiB
from writers import DIM, Findings, Picture, Writer, working

pytestmark = [pytest.mark.security, pytest.mark.timeout(3600)]

WRITERS = 8
ROWS = {"gateway": "kill -9 of gateway", "qdrant": "kill -9 of qdrant-svc"}
TEST_SERVER, TEST_SERVER_KEY = os.environ.get("QDRANT_TEST_URL", ""), os.environ.get("QDRANT_TEST_API_KEY", "")


@pytest.fixture(params=["embedded", *(["server"] if TEST_SERVER else [])])
def writable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Stack]]:
    """The kind of its store, and a stack to kill."""
    if request.param == "embedded":
        yield "", request.getfixturevalue("stack")
    else:
        with running_stack(tmp_path, QDRANT_URL=TEST_SERVER, QDRANT_API_KEY=TEST_SERVER_KEY) as stack:
            yield ", Qdrant server", stack


def test_acknowledged_writes_survive_kills(
    writable: tuple[str, Stack], thorough: bool, record_property: Callable[[str, object], None]
) -> None:
    """SEED=… repeats the random choices of a run, though not its timing."""
    kind, stack = writable
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    rounds = 20 if thorough else 2
    victims = [*(["gateway", "qdrant"] * rounds)][: rounds - 1]
    chance.shuffle(victims)
    victims.append("qdrant")
    found = {victim: Findings() for victim in ROWS}
    collection = f"kill-{uuid.uuid4().hex[:8]}"
    with ExitStack() as clients:
        clients_of = [clients.enter_context(client(stack)) for _ in range(WRITERS)]
        api = clients_of[0]
        stack.wait_ready(120)
        create(api, {"name": collection, "vector_dim": DIM, "distance": "dot"})
        create(api, {"name": f"{collection}-pictures"})
        pictures = [Picture(data := webp(number), embedded(api, data)) for number in range(3)]
        writers = [Writer(c, number, seed, collection, pictures) for number, c in enumerate(clients_of, start=1)]
        for victim in victims:
            stop = threading.Event()
            with contextmanager(working)(writers, stop):
                wanted = sum(writer.acknowledged for writer in writers) + chance.randint(20, 300 if thorough else 80)
                while sum(writer.acknowledged for writer in writers) < wanted:
                    assert not any(writer.failures for writer in writers)
                    stop.wait(0.02)
                stop.wait(chance.random() * 0.05)
                stack.kill(victim)
            stack.wait_ready(120)
            verify(writers, found[victim])
        verify(writers, found["qdrant"], everything=True)
        failures = [failure for writer in writers for failure in writer.failures]
        for name in (collection, f"{collection}-pictures"):
            counted = api.get(f"/vectors/collections/{name}").json()["points_count"]
            assert counted == sum(writer.present(name) for writer in writers)
            api.delete(f"/vectors/collections/{name}")
        for writer in writers:
            for name in [name for name, states in writer.collections.items() if states == {True}]:
                api.delete(f"/vectors/collections/{name}")
    for victim, row in ROWS.items():
        record(record_property, row + kind, found[victim])
    assert failures == []
    assert [finding.lost + finding.wrong for finding in found.values()] == [[], []]
    assert sum(writer.acknowledged for writer in writers) >= 20 * rounds


def record(record_property: Callable[[str, object], None], row: str, findings: Findings) -> None:
    record_property(f"Durability/{row}/acknowledged writes checked", findings.checked)
    record_property(f"Durability/{row}/lost", len(findings.lost))
    record_property(f"Durability/{row}/wrong", len(findings.wrong))


def verify(writers: list[Writer], into: Findings, *, everything: bool = False) -> None:
    with ThreadPoolExecutor(len(writers)) as pool:
        for _ in pool.map(lambda writer: writer.verify(into, everything=everything), writers):
            pass


def client(stack: Stack) -> httpx2.Client:
    return httpx2.Client(base_url=stack.url, headers={"X-API-Key": stack.key}, timeout=60, trust_env=False)


def create(api: httpx2.Client, body: dict[str, object], path: str = "/vectors/collections") -> None:
    assert api.post(path, json=body).status_code == 201


def embedded(api: httpx2.Client, data: bytes) -> list[float]:
    vector: list[float] = api.post("/vectors/embed/file", files={"file": ("p", data)}).json()["vector"]
    return vector


def test_a_full_disk_is_told_and_costs_nothing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The disk fills up under eight writers, is full to the last byte, has room again; then a kill."""
    settings = {"QDRANT_PATH": str(tmp_path / "disk" / "qdrant"), "CLIP_URL": "http://127.0.0.1:9"}
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk", 144))
        service = stack.enter_context(service_process("qdrant", settings))
        api = stack.enter_context(httpx2.Client(base_url=service.url, timeout=60, trust_env=False))
        create(api, {"name": "full", "vector_dim": DIM, "distance": "dot"}, "/collections")
        others, rest = disk / "others", disk / "rest"
        others.write_bytes(bytes(40 * MiB))
        stored: dict[int, str] = {}
        refusals: list[httpx2.Response] = []

        def write(writer: int) -> None:
            """Until the disk is full for this writer too."""
            with httpx2.Client(base_url=service.url, timeout=60, trust_env=False) as mine:
                for number in range(5000):
                    id, text = writer * 10_000 + number, random.Random(number).randbytes(30_000).hex()
                    response = put(mine, id, text)
                    if response.status_code != 200:
                        refusals.append(response)
                        return
                    stored[id] = text

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(write, range(WRITERS)))
        fill(rest)
        refusals += [put(api, next(iter(stored)), "replaced"), api.post("/delete", json=a_point(stored))]
        refusals.append(api.post("/collections", json={"name": "another", "vector_dim": 2}))
        for response in refusals:
            assert (response.status_code, response.json()["code"]) == (503, "service_unavailable")
            assert "disk is full" in response.json()["detail"]
            assert int(response.headers["retry-after"]) > 0
        assert [read(api, id) for id in stored] == list(stored.values())
        filtered = {"vector": [1.0] * DIM, "filter_metadata": {"t": "nothing"}, "collection": "full"}
        assert api.post("/search/vector", json=filtered).json() == []

        others.unlink()
        rest.unlink()
        assert put(api, 1, "after").status_code == 200
        stored[1] = "after"
        assert service.process.poll() is None
        service.process.kill()
        service.process.wait()
        again = stack.enter_context(service_process("qdrant", settings))
        api = stack.enter_context(httpx2.Client(base_url=again.url, timeout=60, trust_env=False))
        lost = [id for id, text in stored.items() if read(api, id) != text]
    row = "Durability/disk full"
    record_property(f"{row}/acknowledged writes checked", len(stored))
    record_property(f"{row}/lost", len(lost))
    record_property(f"{row}/wrong", 0)
    assert lost == []


def fill(path: Path) -> None:
    """The disk of `path`, to its last byte."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))


def put(api: httpx2.Client, id: int, text: str) -> httpx2.Response:
    body = {"vector": [1.0] * DIM, "id": id, "metadata": {"text": text}, "collection": "full"}
    return api.post("/upsert/vector", json=body)


def a_point(stored: dict[int, str]) -> dict[str, object]:
    return {"ids": [next(iter(stored))], "collection": "full"}


def read(api: httpx2.Client, id: int) -> str:
    text: str = api.get("/points", params={"id": str(id), "collection": "full"}).json()["metadata"]["text"]
    return text
