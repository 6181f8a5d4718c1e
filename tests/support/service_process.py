"""One service as a process of its own, with settings of its own, as its container runs it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx2

from local_stack import ROOT

_PASSED_ON = ("PATH", "HOME", "PYTHONPATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    process: subprocess.Popen[bytes]
    port: int
    _log: IO[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text("utf-8", errors="replace")

    def open_files(self) -> int:
        """How many descriptors the process has, sockets included."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def service_process(folder: str, environment: dict[str, str]) -> Iterator[ServiceProcess]:
    """The service of a folder once it is ready, with nothing of this process's settings but `environment`."""
    port = free_port()
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "visionstack.serve"],
            cwd=ROOT / folder,
            env=passed_on | {"HOST": "127.0.0.1", "PORT": str(port)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        service = ServiceProcess(process, port, log)
        try:
            _wait_until_ready(service)
            yield service
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _wait_until_ready(service: ServiceProcess) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if service.process.poll() is not None:
            raise RuntimeError(f"the service ended: {service.log}")
        try:
            if httpx2.get(f"{service.url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"the service did not get ready: {service.log}")
