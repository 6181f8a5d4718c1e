"""Who leaves: clients, whose work is then not done, and a service, which finishes first what it has begun."""

import contextlib
import http.client
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import httpx2
import numpy as np
import pytest
import uvicorn
from fastapi import APIRouter, Request

from gateway_process import KEY, gateway_process
from image_host import ImageHost
from local_stack import Stack
from scenes import webp
from visionstack.images import to_ppm
from visionstack.model_service import PPM_TYPE, ModelInfo, ModelService, Pixels, create_model_app
from visionstack.settings import ModelSettings

PATIENCE_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "this never came"
        time.sleep(0.01)


def asked(port: int, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPConnection:
    """A request on its way; `close()` is the client's leaving."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, headers)
    return connection


class GatedModel:
    """Works when it is told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.sizes: list[int] = []

    def load(self) -> ModelInfo:
        return ModelInfo("gated", "cpu", "fp32")

    def warm_up(self) -> None: ...

    def predict(self, key: str, items: Sequence[Pixels]) -> Sequence[int]:
        self.sizes.append(len(items))
        assert self.gate.wait(PATIENCE_S)
        return [int(item.sum()) for item in items]


@contextmanager
def served(model: GatedModel) -> Iterator[int]:
    """The model as a service over real connections; gives its port."""

    def add_routes(router: APIRouter, service: ModelService[str, Pixels, int]) -> None:
        @router.post("/analyze")
        async def analyze(request: Request) -> int:
            return await service.predict("k", await service.picture(request))

    app = create_model_app(ModelSettings(), model, add_routes, title="t", description="")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # listens at once: a client never comes too early
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def depth_of(port: int) -> float:
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith("vision_inference_queue_depth ")]
    return float(lines[0].split()[1])


@pytest.mark.security
def test_a_model_does_no_work_for_clients_who_left(record_property: Callable[[str, object], None]) -> None:
    model, left = GatedModel(), 20
    body, headers = to_ppm(np.ones((2, 2, 3), np.uint8)), {"Content-Type": PPM_TYPE}
    with served(model) as port:
        until(lambda: httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200)
        first = asked(port, "/analyze", body, headers)
        until(lambda: model.sizes == [1])
        leavers = [asked(port, "/analyze", body, headers) for _ in range(left)]
        stayer = asked(port, "/analyze", body, headers)
        until(lambda: depth_of(port) == left + 1)
        for connection in leavers:
            connection.close()
        until(lambda: depth_of(port) == 1)
        model.gate.set()
        for connection in (first, stayer):
            assert connection.getresponse().read() == b"12"
            connection.close()
    assert model.sizes == [1, 1]
    record_property("Clients who left/in a model's queue/clients", left)
    record_property("Clients who left/in a model's queue/worked for", sum(model.sizes) - 2)


class Hanging:
    """A service that takes a request and never answers; it sees when its caller leaves."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.left = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                while connection.recv(65536):
                    self.asked.set()
                self.left.set()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.security
def test_nothing_is_fetched_or_asked_for_a_client_who_left(
    stack: Stack, image_host: ImageHost, record_property: Callable[[str, object], None]
) -> None:
    fetching, fetch_ended = threading.Event(), threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/png")
        handler.end_headers()
        fetching.set()
        with contextlib.suppress(OSError):
            handler.connection.settimeout(60)
            if not handler.connection.recv(1):
                fetch_ended.set()

    url = image_host.on("/trickle.png", trickle)
    blip = Hanging()
    with gateway_process(stack, BLIP_URL=blip.url, FETCH_TIMEOUT_S="60") as gateway:
        headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
        fetched = asked(gateway.port, "/analyze/clip", f'{{"url": "{url}"}}'.encode(), headers)
        assert fetching.wait(PATIENCE_S)
        fetched.close()
        assert fetch_ended.wait(PATIENCE_S)

        good = image_host.put("/leaving.webp", webp(5), "image/webp")
        captioned = asked(gateway.port, "/analyze/blip", f'{{"url": "{good}"}}'.encode(), headers)
        assert blip.asked.wait(PATIENCE_S)
        captioned.close()
        assert blip.left.wait(PATIENCE_S)
        until(lambda: gateway.log.count('"status": 499') == 2)
    blip.close()
    assert gateway.process.returncode == 0
    for row in ("during a download", "during a call to a service"):
        record_property(f"Clients who left/{row}/clients", 1)
        record_property(f"Clients who left/{row}/worked for", 0)


def test_a_stopping_gateway_finishes_what_it_has_and_takes_no_more(stack: Stack, image_host: ImageHost) -> None:
    fetching, release = threading.Event(), threading.Event()
    picture = webp(6)

    def wait_for_release(handler: BaseHTTPRequestHandler) -> None:
        fetching.set()
        assert release.wait(60)
        handler.send_response(200)
        handler.send_header("Content-Type", "image/webp")
        handler.send_header("Content-Length", str(len(picture)))
        handler.end_headers()
        handler.wfile.write(picture)

    url = image_host.on("/held.webp", wait_for_release)
    with (
        gateway_process(stack) as gateway,
        httpx2.Client(base_url=gateway.url, headers={"X-API-Key": KEY}, timeout=60, trust_env=False) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        with httpx2.Client(trust_env=False) as idle:
            idle.get(f"{gateway.url}/livez")  # an open connection must not hold up the end
            answer = thread.submit(client.post, "/vectors/embed", json={"url": url})
            assert fetching.wait(PATIENCE_S)
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(gateway.port))
            assert gateway.process.poll() is None
            release.set()
            assert answer.result().status_code == 200
            assert gateway.process.wait(PATIENCE_S) == 0
        assert "Cancel" not in gateway.log


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
