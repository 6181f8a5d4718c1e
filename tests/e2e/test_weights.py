"""Weights from the hub: one command puts them into the volume, and nothing needs the internet afterwards.

The hub is a container of the test's own: see `weights_hub.py`.
"""

import json
import os
import pty
import shutil
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
import yaml

from containers import MODELS, Containers
from scenes import webp

_HERE = Path(__file__).parent
_HUB = "hub.yml"
_NO_INTERNET = "no-internet.yml"

_HUB_LISTENS = "import socket; socket.create_connection(('127.0.0.1', 443)).close()"

_FILES = {"clip": "open_clip_model.safetensors", "blip": "model.safetensors", "yolo": "yolo11n.pt"}

_ANALYZE = """
import sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000/analyze", sys.stdin.buffer.read(), method="POST")
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture
def project(engine: None, tmp_path: Path) -> Iterator[Containers]:
    """The stack of docker-compose.yml and a hub; nothing runs yet."""
    project = Containers(
        "vision-stack-e2e-weights", tmp_path, files=("docker-compose.yml", _HUB),
        CLIP_MODEL="hf-hub:here/clip", BLIP_MODEL="here/blip", HUGGINGFACE_TOKEN="hf_secret",
    )  # fmt: skip
    folder = project.root / "hub"
    folder.mkdir()
    shutil.copy(_HERE / "weights_hub.py", folder)
    shutil.copy(_HERE.parent / "support/model_hub.py", folder)
    authority = trustme.CA()
    certificate = authority.issue_cert("github.com")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    shutil.copytree(project.root / "demo/models", folder / "models")
    config = folder / "models/clip/open_clip_config.json"
    # beside the weights in a folder, but by its name on a hub
    config.write_text(config.read_text().replace('"hf_tokenizer_name": "local"', '"hf_tokenizer_name": "here/clip"'))
    here = "./hub:/hub:ro"
    from_hub = {"environment": {"HF_ENDPOINT": "http://hub:8000"}, "depends_on": ["hub"]}
    hub = {
        "build": {"context": ".", "dockerfile": "gateway/Dockerfile"},
        "command": ["python", "/hub/weights_hub.py", "/hub/models", "/hub/certificate.pem", "/hub/key.pem"],
        "networks": {"internet": {"aliases": ["github.com"]}},
        "volumes": [here],
        "healthcheck": {"test": ["CMD", "python", "-c", _HUB_LISTENS], "interval": "1s"},
    }
    yolo = {"environment": {"REQUESTS_CA_BUNDLE": "/hub/authority.pem"}, "volumes": [here]}
    services = {"hub": hub, "clip": from_hub, "blip": from_hub, "yolo": yolo}
    (project.root / _HUB).write_text(yaml.safe_dump({"services": services}))
    inside = "".join(f"  {name}: {{networks: !override [internal]}}\n" for name in MODELS)
    (project.root / _NO_INTERNET).write_text(f"services:\n{inside}")
    with project.removed_at_the_end():
        yield project


def test_after_one_command_nothing_needs_the_internet(project: Containers) -> None:
    project.up("--build", "hub")
    shown = on_a_terminal(project, "deploy/weights")
    for model, file in {
        "clip": "open_clip_model.safetensors",
        "blip": "model.safetensors",
        "yolo": "yolo11n.pt",
    }.items():
        part = shown.partition(f"== {model}\r\n")[2].partition("== ")[0]
        assert file in part
        assert "100%" in part, f"no progress was shown:\n{part}"
        assert "everything is there" in part

    # as docs/docker.md carries them over to another machine
    tar = ("docker", "compose", "run", "--rm", "--no-deps", "-T", "--entrypoint", "tar", "clip", "-C", "/models")
    weights = project.run(*tar, "-c", ".")
    project.down("--volumes")
    project.run(*tar, "-x", stdin=weights)
    project.environment["COMPOSE_FILE"] = os.pathsep.join(("docker-compose.yml", _NO_INTERNET))
    project.up(*MODELS)
    for model in MODELS:
        described = project.of(model)
        assert set(described["NetworkSettings"]["Networks"]) == {f"{project.project}_internal"}
        assert json.loads(project.python(described["Id"], _ANALYZE, stdin=webp(1)))


def on_a_terminal(project: Containers, *command: str) -> str:
    """What a command shows to a person: progress bars are for terminals."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 160))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                shown.append(data)
        except OSError:  # how a terminal ends
            pass

    reader = threading.Thread(target=read, daemon=True)
    with subprocess.Popen(
        command, cwd=project.root, env=project.environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        reader.start()
        status = process.wait(timeout=600)
    reader.join(10)
    os.close(ours)
    text = b"".join(shown).decode(errors="replace")
    assert status == 0, text
    return text
