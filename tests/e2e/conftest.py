"""One stack of containers for all end-to-end tests. `make e2e` names this folder; plain pytest passes it by."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from containers import Containers, why_no_engine
from image_host import ImageHost

_HERE = Path(__file__).parent
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
def engine() -> None:
    if reason := why_no_engine():
        pytest.skip(f"SKIPPED LOUDLY: no container was tested, for want of Docker with Compose ({reason})")


@pytest.fixture(scope="session")
def containers(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """The whole stack as docker-compose.offline.yml runs it: bundled models, embedded store."""
    project = Containers("vision-stack-e2e", tmp_path_factory.mktemp("e2e"))
    with project.removed_at_the_end():
        _report(f"images built in {project.build():.0f} s")
        started = time.monotonic()
        project.up("--build")
        _report(f"docker compose up -d --build --wait: {time.monotonic() - started:.0f} s")
        _report(project.run("docker", "image", "ls", f"{project.project}-*").decode())
        try:
            yield project
        finally:
            if log := os.environ.get("STACK_LOG"):
                Path(log).write_text(project.compose("logs", "--no-color", "--timestamps"))


def _report(text: str) -> None:
    """Past pytest's capture: how long things take and how large they are is part of the result."""
    os.write(2, f"\n{text}\n".encode())


@pytest.fixture
def stack(containers: Containers) -> Containers:
    """What the HTTP tests take for the running stack."""
    containers.wait_ready()  # an earlier test may have stopped something
    return containers


@pytest.fixture
def api(stack: Containers) -> Iterator[httpx2.Client]:
    with stack.client() as client:
        yield client


@pytest.fixture(scope="session")
def image_host(containers: Containers) -> Iterator[ImageHost]:
    """A web server of this machine that the gateway's container can reach."""
    with ImageHost(containers.gateway_address()) as host:
        yield host
