"""What only containers have: fences, replicas, restarts, rebuilds under load, volumes, backups."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from containers import FOLDERS, OFFLINE, SERVICES, Containers
from scenes import webp

MODELS = ("clip", "blip", "yolo")


def vector(number: int) -> list[float]:
    """Different directions for all numbers below 512 * 512."""
    values = [0.0] * 512
    values[number % 512] += 1.0
    values[(number // 512 + number + 1) % 512] += 0.5
    return values


def upsert(api: httpx2.Client, collection: str, number: int) -> httpx2.Response:
    body = {"vector": vector(number), "id": number, "metadata": {"n": number}, "collection": collection}
    return api.post("/vectors/upsert/vector", json=body)


def assert_found(api: httpx2.Client, collection: str, number: int) -> None:
    body = {"vector": vector(number), "limit": 1, "collection": collection}
    answer = api.post("/vectors/search/vector", json=body)
    assert answer.status_code == 200, answer.text
    (hit,) = answer.json()
    assert (hit["id"], hit["metadata"]) == (number, {"n": number})
    assert hit["score"] == pytest.approx(1, abs=1e-3)


@pytest.fixture
def collection(api: httpx2.Client, request: pytest.FixtureRequest) -> Iterator[str]:
    name = re.sub(r"[^a-z]+", "-", request.node.name).strip("-")[:60]
    assert api.post("/vectors/collections", json={"name": name}).status_code == 201
    yield name
    assert api.delete(f"/vectors/collections/{name}").status_code == 200


# -- Fences ------------------------------------------------------------------------------------------------------------

_LOOK_AROUND = """
import json, os, pathlib
def write(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError as exc:
        return exc.strerror
    return "written"
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "uid": os.getuid(),
    "writes": {path: write(path) for path in ("/x", "/app/x", "/opt/venv/x", "/usr/local/x", "/tmp/x")},
    "capabilities": status["CapEff"], "bounding": status["CapBnd"], "no_new_privs": status["NoNewPrivs"],
    "first": open("/proc/1/comm").read().strip(),
}))
"""


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_fenced_in(stack: Containers, service: str) -> None:
    described = stack.of(service)
    seen = json.loads(stack.python(described["Id"], _LOOK_AROUND))
    assert seen["uid"] == 10001
    for path, outcome in seen["writes"].items():
        assert outcome == ("written" if path == "/tmp/x" else "Read-only file system"), path  # noqa: S108
    assert int(seen["capabilities"], 16) == int(seen["bounding"], 16) == 0
    assert seen["no_new_privs"].strip() == "1"
    assert seen["first"] in ("docker-init", "tini")
    host = described["HostConfig"]
    assert host["Memory"] > 0
    assert 0 < host["PidsLimit"] <= 512


def test_only_the_gateway_publishes_a_port(stack: Containers) -> None:
    for service in SERVICES:
        published = [port for port, bound in stack.of(service)["NetworkSettings"]["Ports"].items() if bound]
        assert published == (["8000/tcp"] if service == "gateway" else []), service


_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.stdin.read(), 8000), timeout=3).close()
    print("reached")
except OSError as exc:
    print(exc)
"""


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "gateway"])
def test_there_is_no_way_out_of_the_internal_network(stack: Containers, service: str) -> None:
    """The gateway stands in both networks; seen from inside, what it listens on in the other one is the outside."""
    networks = stack.of("gateway")["NetworkSettings"]["Networks"]
    within, outside = (str(networks[f"{stack.project}_{name}"]["IPAddress"]) for name in ("internal", "internet"))
    (gateway,) = stack.containers("gateway")
    assert stack.python(gateway, _CONNECT, stdin=outside.encode()).strip() == "reached"
    (container,) = stack.containers(service)
    assert set(stack.of(service)["NetworkSettings"]["Networks"]) == {f"{stack.project}_internal"}
    assert stack.python(container, _CONNECT, stdin=within.encode()).strip() == "reached"
    assert stack.python(container, _CONNECT, stdin=outside.encode()).strip() != "reached"


def test_a_service_sees_only_its_own_secrets(stack: Containers) -> None:
    for service in SERVICES:
        environment = dict(entry.split("=", 1) for entry in stack.of(service)["Config"]["Env"])
        assert ("API_KEY" in environment) == (service == "gateway"), service
        assert "HUGGINGFACE_TOKEN" not in environment or service in ("clip", "blip")


def test_the_models_share_one_torch_layer(stack: Containers) -> None:
    def layers(service: str) -> list[str]:
        (image,) = json.loads(stack.run("docker", "image", "inspect", stack.of(service)["Image"]))
        return list(image["RootFS"]["Layers"])

    base = shared([layers("gateway"), layers("qdrant-svc")])
    # the user and torch
    assert shared([layers(service) for service in MODELS]) >= base + 2
    (container,) = stack.containers("clip")
    assert stack.python(container, "import torch; print(torch.__file__)").strip() == "/opt/torch/torch/__init__.py"


def shared(stacks: list[list[str]]) -> int:
    """How many layers from the bottom are the same in all."""
    return next((at for at, row in enumerate(zip(*stacks, strict=False)) if len(set(row)) > 1), min(map(len, stacks)))


def test_a_picture_of_eight_thousand_pixels(api: httpx2.Client) -> None:
    """33 million pixels pass the decoder's processes, the memory limit and the tmpfs."""
    started = time.monotonic()
    answer = api.post("/analyze/all/file", files={"file": ("p.webp", webp(3, (7680, 4320)))})
    assert answer.status_code == 200, answer.text
    assert answer.json()["errors"] == {}
    assert answer.json()["image"] == {"width": 7680, "height": 4320, "format": "webp"}
    assert time.monotonic() - started < 60


# -- Replicas ----------------------------------------------------------------------------------------------------------

_PICTURES_SEEN = """
import urllib.request
for line in urllib.request.urlopen("http://127.0.0.1:8000/metrics").read().decode().splitlines():
    if line.startswith("vision_inference_images_total "):
        print(line.split()[1])
"""


def test_two_replicas_share_the_work(stack: Containers, api: httpx2.Client) -> None:
    stack.up("--no-recreate", "--scale", "clip=2")
    try:
        replicas = stack.containers("clip")
        assert len(replicas) == 2
        before = {replica: float(stack.python(replica, _PICTURES_SEEN)) for replica in replicas}
        picture = webp(1)
        idle = set(replicas)
        deadline = time.monotonic() + 60  # the gateway asks DNS again every few seconds
        sent = 0
        while idle and time.monotonic() < deadline:
            answer = api.post("/analyze/clip/file", files={"file": ("p", picture)})
            assert answer.status_code == 200, answer.text
            sent += 1
            idle = {replica for replica in idle if float(stack.python(replica, _PICTURES_SEEN)) == before[replica]}
        assert not idle, f"of {sent} pictures none reached {idle}"
    finally:
        stack.up("--no-recreate", "--scale", "clip=1")
    assert len(stack.containers("clip")) == 1
    # the gateway may still know the one that left, and must not let a client notice
    for _ in range(10):
        assert api.post("/analyze/clip/file", files={"file": ("p", picture)}).status_code == 200


# -- Ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_container_returns(stack: Containers, api: httpx2.Client, collection: str, service: str) -> None:
    assert upsert(api, collection, 7).status_code == 200
    restarts = stack.of(service)["RestartCount"]
    stack.kill(service)
    stack.wait_ready()
    assert stack.of(service)["RestartCount"] == restarts + 1
    answer = api.post("/analyze/all/file", files={"file": ("p", webp(2))})
    assert (answer.status_code, answer.json()["errors"]) == (200, {})
    assert_found(api, collection, 7)


def test_stopping_is_graceful(stack: Containers) -> None:
    try:
        for service in SERVICES[::-1]:
            started = time.monotonic()
            stack.compose("stop", service)
            state = stack.of(service)["State"]
            assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False), service
            assert time.monotonic() - started < 30, service
    finally:
        stack.up()


# -- Data --------------------------------------------------------------------------------------------------------------


def test_vectors_survive_down_and_up(stack: Containers, api: httpx2.Client, collection: str) -> None:
    for number in range(20):
        assert upsert(api, collection, number).status_code == 200
    stack.down()
    assert stack.containers() == []
    stack.up()
    for number in range(20):
        assert_found(api, collection, number)


def test_vectors_come_back_from_a_backup(
    stack: Containers, api: httpx2.Client, collection: str, tmp_path: Path
) -> None:
    for number in range(20):
        assert upsert(api, collection, number).status_code == 200
    backup = tmp_path / "vectors.tar"
    stack.run("deploy/backup", str(backup), timeout_s=300)
    # the store runs again, and what comes now is not in the backup
    assert_found(api, collection, 3)
    assert upsert(api, collection, 500).status_code == 200
    stack.compose("rm", "--stop", "--force", "qdrant-svc")
    stack.run("docker", "volume", "rm", f"{stack.project}_embedded")
    stack.run("deploy/restore", str(backup), timeout_s=300)
    stack.wait_ready()
    for number in range(20):
        assert_found(api, collection, number)
    assert api.get("/vectors/points/500", params={"collection": collection}).status_code == 404


def test_a_broken_backup_deletes_nothing(
    stack: Containers, api: httpx2.Client, collection: str, tmp_path: Path
) -> None:
    assert upsert(api, collection, 1).status_code == 200
    broken = tmp_path / "vectors.tar"
    broken.write_bytes(b"not an archive" * 1000)
    with pytest.raises(AssertionError, match="ended with 2"):
        stack.run("deploy/restore", str(broken))
    assert_found(api, collection, 1)


class Writer(threading.Thread):
    """Upserts one point after another and remembers which were acknowledged."""

    def __init__(self, stack: Containers, collection: str) -> None:
        super().__init__(daemon=True)
        self._stack, self._collection = stack, collection
        self._stopped = threading.Event()
        self.acknowledged: list[int] = []
        self.refused = 0
        self.longest_pause_s = 0.0

    def run(self) -> None:
        number, last = 0, time.monotonic()
        with self._stack.client() as api:
            while not self._stopped.is_set():
                try:
                    done = upsert(api, self._collection, number).status_code == 200
                except httpx2.TransportError:
                    done = False
                if done:
                    self.acknowledged.append(number)
                    self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - last)
                    last = time.monotonic()
                else:
                    self.refused += 1
                    self._stopped.wait(0.05)
                number += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join(120)


@pytest.mark.parametrize("service", ["qdrant-svc", "all"])
def test_a_rebuild_drops_no_acknowledged_vector(
    stack: Containers, api: httpx2.Client, collection: str, service: str, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = ["common/visionstack/__init__.py"] if service == "all" else [f"{FOLDERS[service]}/main.py"]
    images = {name: stack.of(name)["Image"] for name in SERVICES}
    writer = Writer(stack, collection)
    writer.start()
    try:
        for path in changed:
            with (stack.root / path).open("a") as source:
                source.write(f"\n# one more line at {time.time_ns()}\n")
        started = time.monotonic()
        built = stack.build()
        stack.up("--build")
        took = time.monotonic() - started
        stack.wait_ready()
        known = len(writer.acknowledged)
        deadline = time.monotonic() + 60
        while len(writer.acknowledged) < known + 20 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        writer.stop()
    new = {name for name in SERVICES if stack.of(name)["Image"] != images[name]}
    assert new == (set(SERVICES) if service == "all" else {service})
    assert len(writer.acknowledged) >= known + 20 > 20
    lost = [
        number
        for number in writer.acknowledged
        if api.get(f"/vectors/points/{number}", params={"collection": collection}).status_code != 200
    ]
    assert lost == []
    with capfd.disabled():
        print(
            f"\n{service}: one line changed, built in {built:.1f} s, up again in {took:.1f} s; "
            f"{len(writer.acknowledged)} upserts acknowledged, none lost, {writer.refused} refused meanwhile, "
            f"longest pause {writer.longest_pause_s:.1f} s"
        )
    assert built < 60


# -- One service alone -------------------------------------------------------------------------------------------------

_ANALYZE = """
import sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000/analyze?limit=3", sys.stdin.buffer.read(), method="POST")
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def test_one_service_alone(engine: None, containers: Containers, tmp_path: Path) -> None:
    """`docker compose up -d --build clip` brings up clip and nothing else."""
    alone = Containers("vision-stack-e2e-alone", tmp_path, files=OFFLINE)
    with alone.removed_at_the_end():
        alone.up("--build", "clip")
        (container,) = alone.containers()
        assert alone.inspect(container)["Config"]["Labels"]["com.docker.compose.service"] == "clip"
        tags = json.loads(alone.python(container, _ANALYZE, stdin=webp(1)))
        assert len(tags) == 3


def test_without_a_key_compose_says_what_to_do(engine: None, tmp_path: Path) -> None:
    nothing = Containers("vision-stack-e2e-keyless", tmp_path, API_KEY="")
    with pytest.raises(AssertionError, match=r"set API_KEY in \.env"):
        nothing.compose("up", "-d")


def test_the_published_qdrant_image(engine: None) -> None:
    pytest.skip("SKIPPED LOUDLY: these tests run the embedded store; the published Qdrant image was not run")
