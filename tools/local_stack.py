"""The five services as one local stack: which processes there are, where they listen and what environment each gets.

Without other settings it runs the bundled models and the embedded store, so that nothing is downloaded.
"""

import contextlib
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from supervisor import FIRST_BACKOFF_S, LogSink, ServiceSpec, Supervisor

ROOT = Path(__file__).resolve().parent.parent

MODEL_SERVICES = ("clip", "blip", "yolo")
SERVICES = (*MODEL_SERVICES, "qdrant", "gateway")

# Each variable that chooses a model, and what is set with it when it is not set. The first value must exist.
BUNDLED_MODELS: Mapping[str, Mapping[str, str]] = {
    "CLIP_MODEL": {"CLIP_MODEL": "demo/models/clip", "CLIP_TAGS_FILE": "demo/models/tags.txt"},
    "BLIP_MODEL": {"BLIP_MODEL": "demo/models/blip"},
    "YOLO_MODEL": {"YOLO_MODEL": "demo/models/yolo.pt"},
}

# Who may see a secret; nobody else's environment holds it.
_SECRETS: Mapping[str, tuple[str, ...]] = {
    "API_KEY": ("gateway",),
    "API_KEY_FILE": ("gateway",),
    "HUGGINGFACE_TOKEN": ("clip", "blip"),
    "HF_TOKEN": ("clip", "blip"),
    "QDRANT_API_KEY": ("qdrant",),
}
# Values that name a file or folder are meant from the project's root, but a service runs in its own folder.
_PATHS = ("API_KEY_FILE", "BLIP_MODEL", "CLIP_MODEL", "CLIP_PRETRAINED", "CLIP_TAGS_FILE", "YOLO_MODEL", "HF_HOME")
# Where services keep what they write, below the data folder.
_DATA: Mapping[str, str] = {"QDRANT_PATH": "qdrant", "WEIGHTS_DIR": "weights", "CACHE_DIR": "cache"}

# Outside the range from which systems take the source ports of outgoing connections: such a connection could sit on a
# service's port while the service restarts.
_INTERNAL_PORTS = range(20_000, 32_000)


class StackNotRunnable(Exception):
    """The stack cannot start as configured; the text says what to do."""


class Stack:
    """The whole stack as processes of this machine. Use it as a context manager, or call `stop()`.

    `environment` holds the settings, as the shell and `.env` would (default: this process's environment); an empty
    value counts as unset. Without `API_KEY` a random key is made, see `key`. `data_dir` holds what the services keep,
    unless the environment names other places. `gateway_port=0` takes a free port. `sink(service, line)` gets every log
    line. A service that ends is started again after `backoff_s`.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        sink: LogSink,
        data_dir: Path = ROOT / "data",
        host: str = "127.0.0.1",
        gateway_port: int = 0,
        root: Path = ROOT,
        backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        given = os.environ if environment is None else environment
        self._environment = dict(given)
        self._root = root
        self._ports = _free_ports(host, gateway_port)
        self._local_host = _reachable(host)
        self._complete_environment(data_dir)
        specs = [self._spec(name, host if name == "gateway" else "127.0.0.1") for name in SERVICES]
        self._supervisor = Supervisor(specs, sink, front="gateway", backoff_s=backoff_s)

    @property
    def url(self) -> str:
        """The gateway's address from this machine, without a slash at its end."""
        return f"http://{self._local_host}:{self._ports['gateway']}"

    @property
    def key(self) -> str:
        """One valid API key."""
        keys = self._environment.get("API_KEY", "")
        if not keys and (path := self._environment.get("API_KEY_FILE")):
            with contextlib.suppress(OSError):  # the gateway will say it better
                keys = Path(path).read_text("utf-8").replace("\n", ",").strip(",")
        return keys.split(",")[0].strip()

    def start(self) -> None:
        """Start all services; returns at once."""
        self._supervisor.start()

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Until all services are ready. Raises `supervisor.StartFailed` or `TimeoutError`."""
        self._supervisor.wait_ready(timeout_s)

    def wait_stopped(self) -> None:
        """Until all processes have ended."""
        self._supervisor.wait_stopped()

    def stop(self, grace_s: float = 20.0) -> None:
        """Stop all services, the gateway first; what is left after `grace_s` is killed."""
        self._supervisor.stop(grace_s)

    def kill(self, service: str, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """End one service and return once that is noticed; it starts again, and `wait_ready` waits for that."""
        self._supervisor.kill(service, with_signal)

    def pid(self, service: str) -> int | None:
        return self._supervisor.pid(service)

    def port(self, service: str) -> int:
        return self._ports[service]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.stop()

    def _complete_environment(self, data_dir: Path) -> None:
        if not self._is_set("API_KEY") and not self._is_set("API_KEY_FILE"):
            self._environment["API_KEY"] = secrets.token_urlsafe(32)
        models = self._environment.get("MODELS") or "demo"
        if models not in ("demo", "full"):
            raise StackNotRunnable(f"MODELS is {models!r}; it must be demo or full.")
        if models == "demo":
            for variable, values in BUNDLED_MODELS.items():
                if not self._is_set(variable):
                    self._use_bundled(values)
        for name in _PATHS:
            if self._is_set(name) and (path := self._root / self._environment[name]).exists():
                self._environment[name] = str(path)
        for name, folder in _DATA.items():
            self._environment[name] = str(self._root / (self._environment.get(name) or data_dir / folder))
        for name in (*MODEL_SERVICES, "qdrant"):
            variable = "QDRANT_SVC_URL" if name == "qdrant" else f"{name.upper()}_URL"
            self._environment[variable] = f"http://127.0.0.1:{self._ports[name]}"
        self._set_default("LOG_FORMAT", "console")
        self._set_default("CPU_SHARED_BY", str(len(MODEL_SERVICES)))
        # numpy's own threads spin, and the models want the cores
        self._set_default("OPENBLAS_NUM_THREADS", "1")
        self._environment["PYTHONUNBUFFERED"] = "1"
        # compiling torch and its like anew takes three quarters of a start
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def _use_bundled(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            if not (self._root / value).exists():
                raise StackNotRunnable(
                    f"The bundled model {value} is missing. Run `make demo-models` to train the bundled models, "
                    "or use the real ones with MODELS=full."
                )
            self._set_default(name, value)

    def _is_set(self, name: str) -> bool:
        return bool(self._environment.get(name))

    def _set_default(self, name: str, value: str) -> None:
        if not self._is_set(name):
            self._environment[name] = value

    def _spec(self, name: str, host: str) -> ServiceSpec:
        environment = {
            variable: value for variable, value in self._environment.items() if name in _SECRETS.get(variable, SERVICES)
        }
        port = self._ports[name]
        environment |= {"HOST": host, "PORT": str(port)}
        command = [sys.executable, "-m", "visionstack.serve"]
        return ServiceSpec(name, command, self._root / name, environment, port, _reachable(host))


def bind_error(host: str, port: int) -> OSError | None:
    """Why a server could not listen there, or None if it could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        return exc
    return None


def _free_ports(host: str, gateway_port: int) -> dict[str, int]:
    found = [port for port in random.sample(_INTERNAL_PORTS, 50) if bind_error("127.0.0.1", port) is None]
    ports = dict(zip(SERVICES, found, strict=False))
    if gateway_port:
        ports["gateway"] = gateway_port
    return ports


def _reachable(host: str) -> str:
    """An address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
