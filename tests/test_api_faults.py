"""Model services killed under load: the others go on, the dead one returns. Lost writes: test_durability.py."""

import threading
from typing import Any

import httpx2
import pytest

from local_stack import Stack
from scenes import webp
from writers import CONTRACT_CODES


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
