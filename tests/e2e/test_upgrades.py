"""`docker compose up -d --build` over a running stack: what was accepted is answered, what was acknowledged stays."""

import json
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from containers import FOLDERS, SERVICES, Containers, Report
from points import assert_found, upsert, vector
from scenes import webp

# -- One request in flight ---------------------------------------------------------------------------------------------

# Sends the head of a request and waits until the service begins to read its body, which it says by "100 Continue". Then
# it waits for the service to take no more connections, because its container is being replaced, and only then sends the
# body. Input: one line of JSON with host, head, then the body.
_LINGER = """
import json, socket, sys, time
line, body = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
asked = json.loads(line)
address = (socket.gethostbyname(asked["host"]), 8000)
connection = socket.create_connection(address, timeout=60)
connection.sendall(asked["head"].encode())
answer = connection.makefile("rb")
begun = answer.readline()
assert begun.startswith(b"HTTP/1.1 100"), begun
answer.readline()
print("begun", flush=True)
deadline = time.monotonic() + 60
while True:
    assert time.monotonic() < deadline, "it still takes connections"
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        break
    time.sleep(0.02)
connection.sendall(body)
sys.stdout.buffer.write(answer.read())
"""

_BOUNDARY = "the-picture-begins"


def request_to(stack: Containers, service: str, collection: str) -> tuple[str, str, bytes]:
    """Path, more headers and body of a request that the service answers out of its own work."""
    match service:
        case "qdrant-svc":
            body = {"vector": vector(77), "id": 77, "metadata": {"n": 77}, "collection": collection}
            return "/upsert/vector", "Content-Type: application/json\r\n", json.dumps(body).encode()
        case "gateway":
            head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="p"\r\n\r\n'
            body_bytes = head.encode() + webp(1) + f"\r\n--{_BOUNDARY}--\r\n".encode()
            headers = f"X-API-Key: {stack.key}\r\nContent-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
            return "/analyze/all/file", headers, body_bytes
        case _:
            return "/analyze", "Content-Type: image/webp\r\n", webp(1)


@pytest.mark.parametrize("service", SERVICES)
def test_a_request_in_flight_is_answered_by_the_container_that_leaves(
    stack: Containers, api: httpx2.Client, collection: str, service: str
) -> None:
    path, headers, body = request_to(stack, service, collection)
    head = f"POST {path} HTTP/1.1\r\nHost: {service}\r\n{headers}Content-Length: {len(body)}\r\n"
    head += "Expect: 100-continue\r\nConnection: close\r\n\r\n"
    (caller,) = stack.containers("clip" if service == "gateway" else "gateway")
    (before,) = stack.containers(service)
    asked = json.dumps({"host": service, "head": head}).encode()
    with stack.begin_python(caller, _LINGER, asked + b"\n" + body) as printed:
        assert printed.readline() == b"begun\n"
        stack.up("--force-recreate", "--no-deps", service)
        answer, _, content = printed.read().partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 "), (answer, content)
    assert stack.containers(service) != [before]
    if service == "gateway":
        assert json.loads(content)["errors"] == {}
    stack.wait_ready()
    if service == "qdrant-svc":
        assert_found(api, collection, 77)


# -- A rebuild under load ----------------------------------------------------------------------------------------------


class Load(threading.Thread):
    """Sends one request after another, each over a connection of its own, and counts the answers by status.

    0 stands for none: no connection, or one that broke off. Between the two there is no telling here, because on
    loopback the engine's own proxy takes every connection.
    """

    def __init__(self, stack: Containers) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self._stopped = threading.Event()
        self.answers: Counter[int] = Counter()
        self.longest_pause_s = 0.0

    def send(self, api: httpx2.Client, number: int) -> httpx2.Response:
        raise NotImplementedError

    def note(self, number: int, answer: httpx2.Response) -> int:
        """The status that the answer counts as."""
        return answer.status_code

    def run(self) -> None:
        number, last = 0, time.monotonic()
        while not self._stopped.is_set():
            try:
                with self._stack.client() as api:
                    answer = self.send(api, number)
                    # while no container has the address, its packets may leave the machine, and a proxy there answers
                    status = self.note(number, answer) if "x-request-id" in answer.headers else 0
            except httpx2.TransportError:
                status = 0
            self.answers[status] += 1
            number += 1
            if status == 200:
                self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - last)
                last = time.monotonic()
            else:
                self._stopped.wait(0.05)

    def stop(self) -> None:
        self._stopped.set()
        self.join(120)

    def __str__(self) -> str:
        counted = ", ".join(f"{status or 'no answer'}: {times}" for status, times in sorted(self.answers.items()))
        return f"{counted}; longest pause {self.longest_pause_s:.1f} s"


class Upserts(Load):
    """Upserts one point after another and remembers which were acknowledged."""

    def __init__(self, stack: Containers, collection: str) -> None:
        super().__init__(stack)
        self._collection = collection
        self.acknowledged: list[int] = []

    def send(self, api: httpx2.Client, number: int) -> httpx2.Response:
        return upsert(api, self._collection, number)

    def note(self, number: int, answer: httpx2.Response) -> int:
        if answer.status_code == 200:
            self.acknowledged.append(number)
        return answer.status_code


class Analyses(Load):
    """Has pictures analysed and counts the answers in which a part is missing as 503."""

    def __init__(self, stack: Containers) -> None:
        super().__init__(stack)
        self._picture = webp(1)

    def send(self, api: httpx2.Client, number: int) -> httpx2.Response:
        return api.post("/analyze/all/file", files={"file": ("p", self._picture)})

    def note(self, number: int, answer: httpx2.Response) -> int:
        if answer.status_code == 200 and answer.json()["errors"]:
            assert {part["status"] for part in answer.json()["errors"].values()} <= {502, 503, 504}
            return 503
        return answer.status_code


@pytest.mark.parametrize("service", ["qdrant-svc", "all"])
def test_a_rebuild_drops_no_acknowledged_vector(
    stack: Containers, api: httpx2.Client, collection: str, service: str, report: Report
) -> None:
    changed = "common/visionstack/__init__.py" if service == "all" else f"{FOLDERS[service]}/main.py"
    images = {stack.of(name)["Image"] for name in SERVICES}
    layers = {name: stack.layers(name) for name in SERVICES}
    upserts, analyses = Upserts(stack, collection), Analyses(stack)
    upserts.start()
    analyses.start()
    try:
        add_a_line(stack.root / changed)
        built_s = stack.build()
        started = time.monotonic()
        # as docs/docker.md has it for one service; Compose 2.26 would replace what depends on it, too
        stack.up("--build", *([] if service == "all" else ["--no-deps", service]))
        up_s = time.monotonic() - started
        stack.wait_ready()
        before = len(upserts.acknowledged)
        deadline = time.monotonic() + 60
        while len(upserts.acknowledged) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        upserts.stop()
        analyses.stop()
    report(
        f"a line of {changed} changed: built in {built_s:.1f} s, up again after another {up_s:.1f} s\n"
        f"  upserts meanwhile: {upserts}\n  analyses meanwhile: {analyses}"
    )
    assert len(upserts.acknowledged) >= before + 20 > 20
    lost = [
        number
        for number in upserts.acknowledged
        if api.get(f"/vectors/points/{number}", params={"collection": collection}).status_code != 200
    ]
    assert lost == []
    # refused, which a client may try again, and never failed; only the gateway's own replacement leaves no answer
    refused = {502, 503} if service == "qdrant-svc" else {0, 502, 503}
    assert set(upserts.answers) <= {200, *refused}
    assert set(analyses.answers) <= ({200} if service == "qdrant-svc" else {200, *refused})
    for name in SERVICES:
        new = stack.layers(name)
        if service not in ("all", name):
            assert new == layers[name]
        else:
            # from the shared code on; Python, torch and packages are the same
            assert new != layers[name]
            assert new[:-3] == layers[name][:-3]
    replaced = images - {stack.of(name)["Image"] for name in SERVICES}
    stack.run("docker", "image", "rm", *replaced)


def add_a_line(path: Path) -> None:
    with path.open("a") as source:
        source.write(f"\n# one more line at {time.time_ns()}\n")
