"""Containers that come and go: replicas, kills, stops, and one service alone."""

import json
import time
from pathlib import Path

import httpx2
import pytest

from containers import OFFLINE, SERVICES, Containers
from points import assert_found, upsert
from scenes import webp

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
