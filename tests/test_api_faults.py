"""Services killed under load: the others go on, the dead one returns, nothing acknowledged is lost."""

import threading
import time
import uuid
from typing import Any

import httpx2
import pytest

from local_stack import Stack
from scenes import webp

CONTRACT_CODES = {502: {"upstream_error"}, 503: {"service_unavailable", "overloaded"}, 504: {"upstream_timeout"}}


@pytest.mark.parametrize("service", ["clip", "blip", "yolo"])
def test_a_killed_model_costs_only_its_part_and_comes_back(stack: Stack, api: httpx2.Client, service: str) -> None:
    data = webp(30)
    answers: list[dict[str, Any]] = []
    stop = threading.Event()

    def load() -> None:
        with httpx2.Client(base_url=stack.url, headers={"X-API-Key": stack.key}, timeout=60, trust_env=False) as client:
            while not stop.is_set():
                response = client.post("/analyze/all/file", files={"file": ("p", data)})
                assert response.status_code == 200, response.text
                answers.append(response.json())

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    stack.kill(service)
    marked = len(answers)
    while len(answers) < marked + 6:
        assert any(thread.is_alive() for thread in threads)
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join(60)
    parts = {"clip", "blip", "yolo"}
    without = [answer for answer in answers if answer[service] is None]
    assert without
    for answer in answers:
        for part in parts:
            if answer[part] is None:
                assert part == service
                error = answer["errors"][part]
                assert error["code"] in CONTRACT_CODES[error["status"]]
            else:
                assert part not in answer["errors"]
    stack.wait_ready(60)
    response = api.post("/analyze/all/file", files={"file": ("p", data)})
    assert response.json()["errors"] == {}


def test_acknowledged_writes_survive_kills_of_the_store(stack: Stack, api: httpx2.Client) -> None:
    collection = f"kill-{uuid.uuid4().hex[:8]}"
    assert api.post("/vectors/collections", json={"name": collection, "vector_dim": 8}).status_code == 201
    acknowledged: dict[str, float] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def write(writer: int) -> None:
        number = 0
        with httpx2.Client(base_url=stack.url, headers={"X-API-Key": stack.key}, timeout=60, trust_env=False) as client:
            while not stop.is_set():
                number += 1
                id, value = f"{writer}-{number}", writer + number / 1000
                vector = [1.0, value, 0, 0, 0, 0, 0, 0]
                body = {"vector": vector, "id": id, "metadata": {"value": value}, "collection": collection}
                response = client.post("/vectors/upsert/vector", json=body)
                if response.status_code == 200:
                    with lock:
                        acknowledged[id] = value
                else:
                    assert response.json()["code"] in CONTRACT_CODES[response.status_code], response.text
                    stop.wait(0.05)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = len(acknowledged)
        while len(acknowledged) < before + 40:
            assert any(thread.is_alive() for thread in threads)
            stop.wait(0.05)
        stack.kill("qdrant")
        stack.wait_ready(60)
    stop.set()
    for thread in threads:
        thread.join(60)
    lost = []
    for id, value in acknowledged.items():
        params = {"collection": collection, "with_vector": "true"}
        response = patiently_get(api, f"/vectors/points/by-original-id/{id}", params)
        if response.status_code != 200 or response.json()["metadata"] != {"value": value, "_original_id": id}:
            lost.append((id, response.text))
    assert not lost, f"{len(lost)} of {len(acknowledged)} lost"
    assert len(acknowledged) >= 120
    api.delete(f"/vectors/collections/{collection}")


def patiently_get(api: httpx2.Client, path: str, params: dict[str, str]) -> httpx2.Response:
    """As clients should: after a 503, again when Retry-After says; the breaker closes a moment after a restart."""
    for _ in range(10):
        response = api.get(path, params=params)
        if response.status_code != 503:
            break
        time.sleep(int(response.headers["retry-after"]))
    return response
