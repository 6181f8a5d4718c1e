"""The store of docker-compose.yml itself: the published Qdrant image, from a registry or already on this machine."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from containers import MODELS, SERVICES, Containers
from local_stack import ROOT
from points import assert_found, upsert

_BUNDLED = "bundled.yml"
_MODELS = {
    "clip": {"CLIP_MODEL": "/demo/clip", "CLIP_TAGS_FILE": "/demo/tags.txt"},
    "blip": {"BLIP_MODEL": "/demo/blip"},
    "yolo": {"YOLO_MODEL": "/demo/yolo.pt"},
}
_POINTS = 20


@pytest.fixture(scope="module")
def image(engine: None) -> str:
    name: str = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["qdrant"]["image"]
    for command in (["docker", "image", "inspect", name], ["docker", "pull", "--quiet", name]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode == 0:
            return name
    pytest.skip(f"SKIPPED LOUDLY: the stack with a Qdrant server was not run: {done.stderr.strip()[-200:]}")


@pytest.fixture
def project(image: str, tmp_path: Path) -> Iterator[Containers]:
    """docker-compose.yml as it is, save for the bundled models."""
    project = Containers("vision-stack-e2e-qdrant", tmp_path, files=("docker-compose.yml", _BUNDLED))
    mounted = ["./demo/models:/demo:ro"]
    services = {name: {"environment": _MODELS[name], "volumes": mounted} for name in MODELS}
    (project.root / _BUNDLED).write_text(yaml.safe_dump({"services": services}))
    with project.removed_at_the_end():
        project.up("--build")
        yield project


def test_vectors_survive_a_kill_and_come_back_from_a_backup(project: Containers, tmp_path: Path) -> None:
    assert project.of("qdrant")["HostConfig"]["ReadonlyRootfs"]
    assert not any(project.of("qdrant")["NetworkSettings"]["Ports"].values())
    with project.client() as api:
        fill(api)
        project.compose("kill", "qdrant")
        project.up("--no-recreate")
        project.wait_ready()
        assert_all_found(api)

        backup = tmp_path / "vectors.tar"
        project.run("deploy/backup", str(backup))
        project.down()
        project.run("docker", "volume", "rm", f"{project.project}_vectors")
        project.run("deploy/restore", str(backup))
        project.up("--no-recreate", *SERVICES)
        project.wait_ready()
        assert_all_found(api)


def fill(api: httpx2.Client) -> None:
    assert api.post("/vectors/collections", json={"name": "kept"}).status_code == 201
    for number in range(_POINTS):
        assert upsert(api, "kept", number).status_code == 200


def assert_all_found(api: httpx2.Client) -> None:
    for number in range(_POINTS):
        assert_found(api, "kept", number)
