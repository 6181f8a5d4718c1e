"""The processes of a measurement: the stack's services, the peers' servers, and children that answer calls.

Services run as a user would run them, `uvicorn main:app` in their folder, with the settings of `.env.example` and the
models given. Everything listens on loopback, and its log goes to a file that an error names.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from calls import request

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
DATA = ROOT / "data/bench"

# the first start of clip computes the vectors of its vocabulary
_START_TIMEOUT_S = 900.0


class PeerMissing(Exception):
    """A peer's environment could not be made, or does not start here; the text says why."""


class _Process:
    def __init__(self, name: str, command: Sequence[str], folder: Path, settings: Mapping[str, str]) -> None:
        self.name = name
        self._command, self._folder = list(command), folder
        self._environment = clean_environment() | dict(settings)
        self._log = DATA / "logs" / f"{name}.log"
        self.started_at = 0.0

    def _start(self, *, piped: bool) -> subprocess.Popen[str]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.started_at = time.monotonic()
        with self._log.open("w") as log:
            return subprocess.Popen(  # noqa: S603
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class Server(_Process):
    """A server process. `with` waits until `probe` answers 200 and ends it with everything that it started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        folder: Path = BENCH,
        settings: Mapping[str, str] | None = None,
        probe: str = "/readyz",
    ) -> None:
        super().__init__(name, command, folder, settings or {})
        self.port, self._probe = port, probe
        self.ready_after_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        self._process = self._start(piped=False)
        try:
            self._wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._end()

    def pause(self) -> None:
        """Hold all its processes: a server that looks for work all the time takes a share of the cores from others."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def _wait_ready(self) -> None:
        while not _answers(self.port, self._probe):
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended before it was ready:\n{self._last_words()}")
            if time.monotonic() - self.started_at > _START_TIMEOUT_S:
                raise RuntimeError(f"{self.name} was not ready after {_START_TIMEOUT_S:g} s:\n{self._last_words()}")
            time.sleep(0.1)
        self.ready_after_s = time.monotonic() - self.started_at

    def _end(self) -> None:
        family = _family(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        self._process.terminate()
        _, left = psutil.wait_procs(family, timeout=15)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


class Child(_Process):
    """A program of this folder that answers calls (see `calls.answer`), in the stack's or in a peer's environment."""

    def __init__(
        self,
        program: str,
        *,
        python: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        paths = [str(ROOT / name) for name in ("common", "clip", "blip", "yolo", "qdrant")] if python is None else []
        path = os.pathsep.join([str(BENCH), *paths])
        command = [str(python or sys.executable), str(BENCH / program)]
        super().__init__(Path(program).stem, command, ROOT, {"PYTHONPATH": path} | dict(settings or {}))

    def __enter__(self) -> Self:
        self._process = self._start(piped=True)
        return self

    def call(self, function: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            return request(self._process.stdin, self._process.stdout, function, arguments)
        except RuntimeError as exc:
            raise RuntimeError(f"{self.name}: {exc}\n{self._last_words()}") from None

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def service(name: str, **settings: str) -> Server:
    """One service of the stack by itself, with the whole machine to its disposal."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "main:app", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--no-server-header", "--no-access-log", "--timeout-keep-alive", "75"]
    settings = {"CACHE_DIR": str(DATA / "cache"), "OPENBLAS_NUM_THREADS": "1", "LOG_FORMAT": "json"} | settings
    return Server(name, command, port=port, folder=ROOT / name, settings=settings)


def status_of(server: Server) -> dict[str, Any]:
    """What a service of the stack says of itself: model, device, precision."""
    with urllib.request.urlopen(f"{server.url}/readyz", timeout=10) as response:  # noqa: S310 - our own loopback
        found: dict[str, Any] = json.load(response)
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def peer_python(name: str) -> Path:
    """The interpreter of the environment of `peers/NAME.txt`, made if it is not there. Raises `PeerMissing`."""
    folder, pins = BENCH / ".envs" / name, BENCH / "peers" / f"{name}.txt"
    python, stamp = folder / "bin/python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return python
    uv = [sys.executable, "-m", "uv"]
    index = ["--index", os.environ["TORCH_INDEX_URL"]] if os.environ.get("TORCH_INDEX_URL") else []
    run_program([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
    run_program([*uv, "pip", "install", "--quiet", "--python", str(python), *index, "--requirement", str(pins)])
    stamp.write_text(pins.read_text())
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions that an environment has of those packages that it has."""
    code = (
        "import importlib.metadata as m, json, sys; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    found: dict[str, str] = json.loads(run_program([str(python), "-c", code]))
    return {name: found[name] for name in packages if name in found}


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and its children in MB: pages that several share count once."""
    total = 0
    for process in _family(pid):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 1e6


def own_memory_mb(pid: int) -> float:
    """Anonymous memory of a process and its children in MB: what they asked for, without the pages of mapped files.

    The kernel keeps those as long as it likes and takes them back when it needs to, so that they say nothing of growth.
    """
    total = 0
    for process in _family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Anonymous:"):
                    total += int(line.split()[1]) * 1024
    return total / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its live children have used, to the microsecond."""
    total = 0
    for process in _family(pid):
        for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
    return total / 1e9


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def run_program(command: Sequence[str]) -> str:
    """What it writes to stdout. Raises `PeerMissing` with its last words where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)  # noqa: S603
    except subprocess.SubprocessError as exc:
        output = getattr(exc, "stderr", "") or str(exc)
        raise PeerMissing(f"{' '.join(command[:5])}: {str(output).strip()[-400:]}") from exc
    return done.stdout


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def clean_environment() -> dict[str, str]:
    """Nothing of the caller's but what any program needs, so that no setting leaks into a measurement."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {name: os.environ[name] for name in kept if name in os.environ} | offline


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
