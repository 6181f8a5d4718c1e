"""One stack of containers for all end-to-end tests. `make e2e` names this folder; plain pytest passes it by."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from containers import OFFLINE, Containers, Report, free_subnet, why_no_engine
from image_host import ImageHost

_HERE = Path(__file__).parent
_SUBNET = "subnet.yml"
# Includes the fixtures, the first test's the build of all images.
_TIMEOUT_S = 1800


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = any(Path(argument.split("::")[0]).resolve().is_relative_to(_HERE) for argument in config.args)
    return None if asked else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Prints past pytest's capture: how long things take and how large they are is part of the result."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    return say


@pytest.fixture(scope="session")
def engine(report: Report) -> None:
    if reason := why_no_engine():
        pytest.skip(f"SKIPPED LOUDLY: no container was tested, for want of Docker with Compose ({reason})")


@pytest.fixture(scope="session")
def containers(engine: None, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """The whole stack as docker-compose.offline.yml runs it: bundled models, embedded store."""
    project = Containers("vision-stack-e2e", tmp_path_factory.mktemp("e2e"), files=(*OFFLINE, _SUBNET))
    (project.root / _SUBNET).write_text(
        f"networks: {{internet: {{ipam: {{config: [{{subnet: {free_subnet()}}}]}}}}}}\n", encoding="utf-8"
    )
    with project.removed_at_the_end():
        report(f"docker compose build: {project.build():.0f} s")
        started = time.monotonic()
        project.up("--build")
        report(f"docker compose up -d --build --wait: {time.monotonic() - started:.0f} s")
        try:
            yield project
        finally:
            if log := os.environ.get("STACK_LOG"):
                Path(log).write_text(project.compose("logs", "--no-color", "--timestamps"))


@pytest.fixture
def stack(containers: Containers) -> Containers:
    """What the HTTP tests take for the running stack."""
    containers.wait_ready()  # an earlier test may have stopped something
    return containers


@pytest.fixture
def api(stack: Containers) -> Iterator[httpx2.Client]:
    with stack.client() as client:
        yield client


@pytest.fixture
def collection(api: httpx2.Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new collection that is named after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name).strip("-")[:60]
    assert api.post("/vectors/collections", json={"name": name}).status_code == 201
    yield name
    assert api.delete(f"/vectors/collections/{name}").status_code == 200


@pytest.fixture(scope="session")
def image_host(containers: Containers) -> Iterator[ImageHost]:
    """A web server of this machine that the gateway's container can reach."""
    with ImageHost(containers.gateway_address()) as host:
        yield host
