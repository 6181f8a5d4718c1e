"""Keeps a set of server processes running: start, readiness, restart with backoff, an orderly stop, no orphans.

It knows processes and `/readyz`, and nothing of what they serve; `local_stack.py` says which they are.
"""

import contextlib
import http.client
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LogSink = Callable[[str, str], None]

# The name under which the supervisor's own words reach the log sink.
OWN_NAME = "stack"

_TICK_S = 0.1
_PROBE_EVERY_S = 0.2
_PROBE_TIMEOUT_S = 1.0
FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 30.0
# A service that has run so long starts its backoff anew.
_STEADY_S = 60.0
_GRACE_AFTER_FAILURE_S = 5.0
_PROGRESS_EVERY_S = 2.0
_REASON_LINES = 5

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class StartFailed(Exception):
    """A service ended before it was ever ready; the text names it and gives its last words."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One server process. `host` and `port` are where its `/readyz` is asked."""

    name: str
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    port: int
    host: str = "127.0.0.1"


@dataclass(slots=True)
class _Service:
    spec: ServiceSpec
    backoff_s: float
    process: subprocess.Popen[bytes] | None = None
    reader: threading.Thread | None = None
    started_at: float = 0.0
    probed_at: float = 0.0
    ready: bool = False
    ever_ready: bool = False
    restart_at: float = 0.0
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_REASON_LINES))


class Supervisor:
    """Runs the services until `stop()`; each line that they write goes to `sink` with the service's name.

    One thread owns all processes. `front` names the service that is stopped first, so that what it has in flight can
    still be finished by the others. One that ends is started again after `backoff_s`, and after twice as long each time
    that it soon ends again.
    """

    def __init__(
        self,
        specs: Sequence[ServiceSpec],
        sink: LogSink,
        *,
        front: str | None = None,
        backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        self._services = {spec.name: _Service(spec, backoff_s) for spec in specs}
        self._backoff_s = backoff_s
        self._sink = sink
        self._front = front
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        # not Thread.join(): an exception out of a signal handler makes Python 3.11 take the thread for ended
        self._over = threading.Event()
        self._kill_at = float("inf")
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start every service; returns at once."""
        self._thread.start()

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Until every service is ready. Raises `StartFailed`, or `TimeoutError`, which names those that are not."""
        with self._changed:
            if not self._changed.wait_for(self._ready_or_over, timeout_s):
                missing = ", ".join(name for name, service in self._services.items() if not service.ready)
                raise TimeoutError(f"not ready yet: {missing}")
        if self._failure is not None:
            raise StartFailed(self._failure)
        if self._stopping.is_set():
            raise StartFailed("the services were stopped")

    def wait_stopped(self) -> None:
        """Until every process has ended: after `stop()`, or when a start failed."""
        self._over.wait()

    def stop(self, grace_s: float = 20.0) -> None:
        """SIGTERM, and SIGKILL for what is still there after `grace_s`; returns when all have ended.

        A second call may shorten the grace.
        """
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)
        self._stopping.set()
        if self._thread.ident is not None:
            self._over.wait()

    def kill(self, name: str, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one service; returns when its end has been noticed and it no longer counts as ready."""
        process = self._services[name].process
        if process is None:
            return
        process.send_signal(with_signal)
        with self._changed:
            self._changed.wait_for(lambda: self._services[name].process is not process)

    def pid(self, name: str) -> int | None:
        """The process id, or None while the service waits for its restart."""
        process = self._services[name].process
        return None if process is None else process.pid

    def port(self, name: str) -> int:
        return self._services[name].spec.port

    def _ready_or_over(self) -> bool:
        return self._stopping.is_set() or all(service.ready for service in self._services.values())

    def _say(self, text: str) -> None:
        self._sink(OWN_NAME, text)

    # What follows runs in the supervisor's thread, save `_read`.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                for service in self._services.values():
                    self._tend(service)
                self._stopping.wait(_TICK_S)
        except Exception as exc:
            self._fail(f"the supervisor failed: {exc!r}")
            raise
        finally:
            self._end_all()
            self._over.set()

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._kill_at = min(self._kill_at, time.monotonic() + _GRACE_AFTER_FAILURE_S)
        self._stopping.set()

    def _tend(self, service: _Service) -> None:
        now = time.monotonic()
        if service.process is None:
            if now >= service.restart_at:
                self._spawn(service)
        elif (status := service.process.poll()) is not None:
            self._ended(service, status)
        elif not service.ready and now - service.probed_at >= _PROBE_EVERY_S:
            service.probed_at = now
            if _is_ready(service.spec):
                self._became_ready(service)

    def _spawn(self, service: _Service) -> None:
        spec = service.spec
        service.last_lines.clear()
        service.started_at = time.monotonic()
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(Path(__file__).with_name("exec_child.py")), str(os.getpid()), *spec.command],
            cwd=spec.directory,
            env=dict(spec.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # a terminal's Ctrl-C is for the supervisor alone, which stops the services in order
            start_new_session=True,
        )
        assert process.stdout is not None
        service.process = process
        service.reader = threading.Thread(
            target=self._read, args=(service, process.stdout), name=f"log-{spec.name}", daemon=True
        )
        service.reader.start()

    def _became_ready(self, service: _Service) -> None:
        seconds = time.monotonic() - service.started_at
        self._say(f"{service.spec.name} is ready{' again' if service.ever_ready else ''} ({seconds:.1f} s)")
        with self._changed:
            service.ready = service.ever_ready = True
            self._changed.notify_all()

    def _ended(self, service: _Service, status: int) -> None:
        ran_s = time.monotonic() - service.started_at
        self._reap(service)
        how = _how_it_ended(status)
        name = service.spec.name
        if not service.ever_ready:
            last = "".join(f"\n    {line}" for line in service.last_lines)
            self._fail(f"{name} {how} before it was ready{':' if last else '.'}{last}")
            return
        if ran_s >= _STEADY_S:
            service.backoff_s = self._backoff_s
        service.restart_at = time.monotonic() + service.backoff_s
        self._say(f"{name} {how}; starting it again in {service.backoff_s:g} s")
        service.backoff_s = min(_MAX_BACKOFF_S, service.backoff_s * 2)

    def _reap(self, service: _Service) -> None:
        assert service.process is not None
        _kill_group(service.process)  # what it started must not outlive it
        service.process.wait()
        if service.reader is not None:
            service.reader.join(1.0)  # its last lines
        with self._changed:
            service.process, service.ready = None, False
            self._changed.notify_all()

    def _end_all(self) -> None:
        services = list(self._services.values())
        front = [service for service in services if service.spec.name == self._front]
        rest = [service for service in services if service.spec.name != self._front]
        begun = time.monotonic()
        self._end(front, lambda: (begun + self._kill_at) / 2)
        self._end(rest, lambda: self._kill_at)
        with self._changed:
            self._changed.notify_all()

    def _end(self, services: Sequence[_Service], kill_at: Callable[[], float]) -> None:
        running = [service for service in services if service.process is not None]
        for service in running:
            assert service.process is not None
            service.process.terminate()
        while running:
            for service in list(running):
                assert service.process is not None
                if time.monotonic() >= kill_at() and service.process.poll() is None:
                    self._say(f"{service.spec.name} does not end; killing it")
                    _kill_group(service.process)
                    service.process.wait()
                if service.process.poll() is not None:
                    self._reap(service)
                    running.remove(service)
            time.sleep(_TICK_S / 2 if running else 0)

    def _read(self, service: _Service, stream: IO[bytes]) -> None:
        """Pass on what a process writes, line by line; of a progress bar one line every two seconds."""
        shown_at = float("-inf")
        # a progress bar ends its lines with a carriage return, and Python's universal newlines would hide that
        with io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="") as lines:
            for line in lines:
                text = _CONTROL.sub("", line).rstrip()
                if not text:
                    continue
                if line.endswith("\r") or "%|" in text:
                    if time.monotonic() - shown_at < _PROGRESS_EVERY_S:
                        continue
                    shown_at = time.monotonic()
                service.last_lines.append(text)
                self._sink(service.spec.name, text)


def _is_ready(spec: ServiceSpec) -> bool:
    connection = http.client.HTTPConnection(spec.host, spec.port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and whatever it started; it leads its own group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
