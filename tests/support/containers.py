"""The stack as containers of a real engine, under a project name of its own, driven by `docker compose` alone."""

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from socket import AF_INET
from tempfile import TemporaryFile
from typing import IO, Any

import httpx2
import psutil

from local_stack import ROOT, bind_error

KEYS = "first-key-of-the-tests, second-key-of-the-tests"
OFFLINE = ("docker-compose.yml", "docker-compose.offline.yml")
MODELS = ("clip", "blip", "yolo")
SERVICES = (*MODELS, "qdrant-svc", "gateway")
FOLDERS = {"qdrant-svc": "qdrant"}

Report = Callable[[str], None]

# From nothing: torch alone is a download of 2 GB, and its layer takes minutes to write.
_BUILD_TIMEOUT_S = 1500
_COMPOSE_TIMEOUT_S = 300
# No image holds these, and a copy without them is made in no time.
_NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "data", ".env"
)


def why_no_engine() -> str | None:
    """Why nothing can be tested here, or None when there are an engine and Compose."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            return f"{' '.join(command)}: {exc}"
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()[-200:]}"
    return None


def wait_until(what: str, true: Callable[[], bool], timeout_s: float = 120) -> None:
    """Poll until it holds; the deadline only ends a wait that would never end."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.2)


def _free_port() -> int:
    """A restarted gateway must get it again: no outgoing connection takes its port here, nor does `local_stack`."""
    return next(port for port in random.sample(range(12_000, 20_000), 50) if bind_error("127.0.0.1", port) is None)


def free_subnet() -> str:
    """For a network in which the test's image host stands, at an address that stays when the network is made anew.

    Left to itself, the engine takes the next subnet each time, and some day one outside what the gateway may fetch from
    in these tests. It never takes one of these.
    """
    assigned = [entry for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == AF_INET]
    taken = {ip_network(f"{entry.address}/24", strict=False) for entry in assigned}
    return str(random.choice([net for net in ip_network("172.16.0.0/16").subnets(new_prefix=24) if net not in taken]))


class Containers:
    """One Compose project in a copy of this repository, so that a test may edit code and build again.

    `folder` receives the copy. Neither the caller's environment nor a `.env` reaches it, save `TORCH_INDEX_URL`.
    """

    def __init__(self, project: str, folder: Path, *, files: Sequence[str] = OFFLINE, **settings: str) -> None:
        self.project = project
        self.root = folder / "repository"
        shutil.copytree(ROOT, self.root, ignore=_NOT_COPIED)
        empty = folder / "empty.env"
        empty.touch()
        kept = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "TORCH_INDEX_URL")
        self.environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "COMPOSE_PROJECT_NAME": project,
            "COMPOSE_FILE": os.pathsep.join(files),
            "COMPOSE_ENV_FILES": str(empty),
            "COMPOSE_ANSI": "never",
            "BUILDKIT_PROGRESS": "plain",
            "API_KEY": KEYS,
            "RATE_LIMIT": "",
            "GATEWAY_BIND": "127.0.0.1",
            "GATEWAY_PORT": str(_free_port()),
            "RESULT_CACHE_BYTES": "0",  # a test that asks again wants to know what the services say
            # the engine's own networks, where the test's image host listens
            "FETCH_ALLOW_NETWORKS": "172.16.0.0/12",
            "LOG_FORMAT": "json",
            **settings,
        }

    # -- Compose -------------------------------------------------------------------------------------------------------

    def run(self, *command: str, timeout_s: float = _COMPOSE_TIMEOUT_S, stdin: bytes = b"", status: int = 0) -> bytes:
        """What a command in the repository's folder prints, after checking its exit status."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, input=stdin, capture_output=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        if done.returncode != status:
            shown = (done.stdout + done.stderr).decode(errors="replace")[-4000:]
            raise AssertionError(f"{' '.join(command)[:200]} ended with {done.returncode}:\n{shown}")
        return done.stdout

    def compose(self, *arguments: str, timeout_s: float = _COMPOSE_TIMEOUT_S) -> str:
        return self.run("docker", "compose", *arguments, timeout_s=timeout_s).decode()

    def build(self) -> float:
        """Build all images; returns the seconds it took."""
        started = time.monotonic()
        self.compose("build", timeout_s=_BUILD_TIMEOUT_S)
        return time.monotonic() - started

    def up(self, *arguments: str) -> None:
        """As a user would; returns once everything that was asked for is healthy."""
        self.compose("up", "-d", "--wait", *arguments, timeout_s=_BUILD_TIMEOUT_S)

    def down(self, *arguments: str) -> None:
        self.compose("down", "--remove-orphans", "--timeout", "30", *arguments)

    @contextmanager
    def removed_at_the_end(self) -> Iterator["Containers"]:
        """Nothing of an earlier run is left before, nothing of this one after."""
        self.down("--volumes", "--rmi", "local")
        try:
            yield self
        finally:
            self.down("--volumes", "--rmi", "local")

    # -- Containers ----------------------------------------------------------------------------------------------------

    def containers(self, service: str | None = None) -> list[str]:
        """Ids of the project's containers, stopped ones too."""
        return self.compose("ps", "--all", "--quiet", *([service] if service else [])).split()

    def inspect(self, container: str) -> dict[str, Any]:
        (described,) = json.loads(self.run("docker", "inspect", container))
        assert isinstance(described, dict)
        return described

    def of(self, service: str) -> dict[str, Any]:
        (container,) = self.containers(service)
        return self.inspect(container)

    def python(self, container: str, code: str, *, stdin: bytes = b"", timeout_s: float = 60) -> str:
        """What a program prints that runs in the container, as the service's user."""
        command = ("docker", "exec", "--interactive", container, "python", "-c", code)
        return self.run(*command, stdin=stdin, timeout_s=timeout_s).decode()

    @contextmanager
    def begin_python(self, container: str, code: str, stdin: bytes) -> Iterator[IO[bytes]]:
        """What the same prints, while it still runs. Leaving waits for its end, which must be a good one."""
        command = ["docker", "exec", "--interactive", container, "python", "-c", code]
        with TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            with subprocess.Popen(command, env=self.environment, stdin=given, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                try:
                    yield process.stdout
                except BaseException:
                    process.kill()
                    raise
        assert process.returncode == 0

    def layers(self, service: str) -> list[str]:
        """The digests of the layers of the service's image, from the bottom."""
        (image,) = json.loads(self.run("docker", "image", "inspect", self.of(service)["Image"]))
        return list(image["RootFS"]["Layers"])

    def kill(self, service: str) -> None:
        """End every process of the container but its first, as a crash would; returns once the engine noticed.

        `docker kill` would count as a wish to stop it, and no restart policy would bring it back.
        """
        (container,) = self.containers(service)
        before = self.inspect(container)["State"]["StartedAt"]
        command = ["docker", "exec", container, "python", "-c", "import os; os.kill(-1, 9)"]
        subprocess.run(command, env=self.environment, capture_output=True, timeout=60, check=False)
        wait_until(f"{service} starts again", lambda: self._started_anew(container, before))

    def _started_anew(self, container: str, before: str) -> bool:
        state = self.inspect(container)["State"]
        return bool(state["Running"]) and state["StartedAt"] != before

    def gateway_address(self) -> str:
        """The host's address in the network through which the gateway reaches the outside."""
        networks = self.of("gateway")["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_internet"]["Gateway"])

    # -- What the HTTP tests know as `stack` ---------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['GATEWAY_PORT']}"

    @property
    def key(self) -> str:
        return KEYS.split(",")[0]

    def wait_ready(self, timeout_s: float = 180) -> None:
        wait_until("the stack answers and says that all is well", self._is_ready, timeout_s)

    def _is_ready(self) -> bool:
        try:
            return bool(httpx2.get(f"{self.url}/health", timeout=10, trust_env=False).json()["status"] == "ok")
        except (httpx2.TransportError, ValueError):
            return False

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers={"X-API-Key": self.key}, timeout=60, trust_env=False)
