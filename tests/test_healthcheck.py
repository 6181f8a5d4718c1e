"""`python -S -m visionstack.healthcheck`, as the engine runs it in a container."""

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from local_stack import ROOT


def check(port: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-S", "-m", "visionstack.healthcheck"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "common"), "PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )


class Service(HTTPServer):
    status = 200


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Service)
        self.send_response(self.server.status if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_ready_is_status_0(service: Service) -> None:
    done = check(service.server_port)
    assert (done.returncode, done.stderr) == (0, "")


def test_any_other_answer_is_status_1(service: Service) -> None:
    service.status = 503
    done = check(service.server_port)
    assert (done.returncode, done.stderr) == (1, "not ready: HTTP/1.0 503 Service Unavailable\n")


def test_no_answer_is_status_1(service: Service) -> None:
    service.shutdown()
    service.server_close()
    done = check(service.server_port)
    assert done.returncode == 1
    assert done.stderr.startswith("not ready: ")
