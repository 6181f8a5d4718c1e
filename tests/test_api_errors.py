"""Every error code of the contract, provoked over real HTTP on real processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx2
import pytest
from PIL import Image

from gateway_process import KEY, gateway
from image_host import ImageHost
from local_stack import ROOT, Stack
from peer_server import nobody
from problems import assert_problem
from scenes import encoded, picture, webp

PROTECTED = [
    ("POST", "/analyze/clip"), ("POST", "/analyze/blip/file"), ("POST", "/analyze/all"), ("POST", "/vectors/upsert"),
    ("POST", "/vectors/search/vector"), ("GET", "/vectors/collections"), ("GET", "/vectors/points/1"),
    ("POST", "/vectors/delete"), ("DELETE", "/vectors/collections/images"), ("POST", "/vectors/embed/text"),
]  # fmt: skip


@pytest.fixture(scope="module")
def impatient(stack: Stack) -> Iterator[httpx2.Client]:
    with gateway(stack, RECEIVE_TIMEOUT_S="0.5", FETCH_TIMEOUT_S="0.5", BLIP_TIMEOUT_S="0.7") as client:
        yield client


@pytest.fixture(scope="module")
def narrow(stack: Stack) -> Iterator[httpx2.Client]:
    with gateway(stack, MAX_IMAGE_PIXELS="250000", MAX_IMAGE_BYTES="60000", MAX_JSON_BYTES="2000") as client:
        yield client


def upload(client: httpx2.Client, path: str, data: bytes, **form: Any) -> httpx2.Response:
    return client.post(path, files={"file": ("picture", data)}, data=form)


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize("key", [None, "", "wrong", "first-key-of-the-tests ,", "ü" * 8])
def test_unauthorized(stack: Stack, method: str, path: str, key: str | None) -> None:
    headers = {} if key is None else {b"X-API-Key": key.encode()}
    response = httpx2.request(method, stack.url + path, headers=headers, trust_env=False)
    if response.status_code != 429:  # this many wrong keys from one address
        assert_problem(response, 401, "unauthorized")


def test_every_key_works(stack: Stack) -> None:
    for key in ("first-key-of-the-tests", "second-key-of-the-tests"):
        response = httpx2.get(f"{stack.url}/vectors/collections", headers={"X-API-Key": key}, trust_env=False)
        assert response.status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a.png", "file:///etc/passwd", "http://user:pw@example.com/a.png", "http://example.com:22/a.png",
        "http://10.0.0.1/a.png", "http://[::1]/a.png", "http://169.254.169.254/latest/meta-data/", "http://192.168.1.1/",
        "http://no-such-host.invalid/a.png", "not a url", "", "http://0x7f.1/", "http://2130706433/",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/analyze/clip", "/analyze/all", "/vectors/upsert", "/vectors/search", "/vectors/embed"]
)
def test_url_not_allowed(api: httpx2.Client, path: str, url: str) -> None:
    assert_problem(api.post(path, json={"url": url}), 400, "url_not_allowed")


def test_loopback_is_refused_unless_opened(stack: Stack, image_host: ImageHost) -> None:
    url = image_host.put("/loopback.webp", webp(1), "image/webp")
    before = len(image_host.requests)
    with gateway(stack, FETCH_ALLOW_NETWORKS="") as client:
        assert_problem(client.post("/analyze/clip", json={"url": url}), 400, "url_not_allowed")
        assert_problem(client.post("/analyze/clip", json={"url": "http://localhost/a.png"}), 400, "url_not_allowed")
    assert len(image_host.requests) == before


@pytest.mark.parametrize("location", ["http://10.0.0.1/a.png", "file:///etc/passwd", "http://169.254.169.254/"])
def test_a_redirect_passes_the_same_guard(api: httpx2.Client, image_host: ImageHost, location: str) -> None:
    url = image_host.redirect("/to-inside.png", location)
    assert_problem(api.post("/analyze/clip", json={"url": url}), 400, "url_not_allowed")


def test_receive_timeout(impatient: httpx2.Client) -> None:
    address = impatient.base_url.host, impatient.base_url.port or 80
    with socket.create_connection(address, timeout=20) as connection:
        head = f"POST /analyze/clip HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        answer = b""
        while b"receive_timeout" not in answer and (more := connection.recv(65536)):
            answer += more
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"receive_timeout"' in answer


def test_image_too_large_in_pixels_and_bytes(narrow: httpx2.Client, image_host: ImageHost) -> None:
    many_pixels = encoded(Image.new("RGB", (501, 500), "white"), "PNG")
    for response in (
        upload(narrow, "/analyze/all/file", many_pixels),
        narrow.post("/analyze/all", json={"url": image_host.put("/pixels.png", many_pixels)}),
    ):
        assert "250000" in assert_problem(response, 413, "image_too_large")["detail"]
    assert upload(narrow, "/analyze/clip/file", encoded(Image.new("RGB", (500, 500)), "PNG")).status_code == 200
    valid = encoded(Image.new("RGB", (100, 100)), "JPEG")
    exact, over = (valid + bytes(size - len(valid)) for size in (60000, 60001))
    assert upload(narrow, "/analyze/clip/file", exact).status_code == 200
    for response in (
        upload(narrow, "/analyze/clip/file", over),
        narrow.post("/analyze/clip", json={"url": image_host.put("/bytes.jpg", over, "image/jpeg")}),
    ):
        assert "60000" in assert_problem(response, 413, "image_too_large")["detail"]


def test_body_too_large(narrow: httpx2.Client) -> None:
    response = narrow.post("/analyze/clip", json={"url": "http://example.com/" + "x" * 2000})
    assert "2000" in assert_problem(response, 413, "body_too_large")["detail"]
    assert_problem(upload(narrow, "/analyze/clip/file", bytes(3_000_000)), 413, "body_too_large")


def test_unsupported_media_type(api: httpx2.Client, image_host: ImageHost) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    for data in (svg, b"hello", encoded(picture(1), "BMP"), encoded(picture(1), "TIFF"), b"%PDF-1.4"):
        assert_problem(upload(api, "/analyze/all/file", data), 415, "unsupported_media_type")
        url = image_host.put("/claims.png", data, "image/png")
        assert_problem(api.post("/vectors/upsert", json={"url": url}), 415, "unsupported_media_type")
    page = image_host.put("/page.html", webp(1), "text/html; charset=utf-8")
    assert_problem(api.post("/analyze/clip", json={"url": page}), 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/analyze/clip/file", "/analyze/all/file", "/vectors/upsert/file"])
def test_invalid_image(api: httpx2.Client, path: str) -> None:
    for data in (webp(1)[:2000], encoded(picture(1), "JPEG")[:5000], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b""):
        assert_problem(upload(api, path, data), 422, "invalid_image")


def test_invalid_request(api: httpx2.Client) -> None:
    for response, field in (
        (api.post("/analyze/clip", json={}), "url"),
        (api.post("/analyze/clip", content=b"{", headers={"Content-Type": "application/json"}), "body"),
        (api.post("/analyze/clip", data={"url": "x"}), "body"),
        (api.post("/analyze/clip/file", data={"limit": "5"}), "file"),
        (api.post("/analyze/clip/file", files={"file": (None, b"text")}), "file"),
        (api.post("/analyze/clip/file", files=[("file", ("a", webp(1))), ("file", ("b", webp(1)))]), "file"),
        (api.post("/analyze/clip/file", json={"url": "x"}), "file"),
    ):
        assert assert_problem(response, 422, "invalid_request")["errors"][0]["field"] == field


def test_unknown_addresses_and_methods(api: httpx2.Client) -> None:
    assert_problem(api.get("/nowhere"), 404, "not_found")
    assert_problem(api.post("/analyze/clip/"), 404, "not_found")
    assert_problem(api.get("/analyze/clip"), 405, "method_not_allowed")
    assert_problem(api.get("/metrics"), 404, "not_found")


def test_rate_limited(stack: Stack) -> None:
    with gateway(stack, RATE_LIMIT="3/hour", FAILED_KEY_LIMIT="2/hour") as client:
        statuses = [client.get("/vectors/collections").status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert_problem(client.get("/vectors/collections"), 429, "rate_limited")
        wrong = {"X-API-Key": "wrong"}
        assert [client.get("/vectors/collections", headers=wrong).status_code for _ in range(3)] == [401, 401, 429]
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(("status", "named"), [(404, "404"), (500, "500"), (206, "206")])
def test_fetch_failed_names_the_hosts_status(
    api: httpx2.Client, image_host: ImageHost, status: int, named: str
) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    url = image_host.on("/fails.png", respond)
    assert named in assert_problem(api.post("/analyze/clip", json={"url": url}), 502, "fetch_failed")["detail"]


def test_fetch_failed_when_the_host_breaks_off(api: httpx2.Client, image_host: ImageHost) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/webp")
        handler.send_header("Content-Length", str(len(webp(1))))
        handler.end_headers()
        handler.wfile.write(webp(1)[:1000])

    assert_problem(api.post("/analyze/clip", json={"url": image_host.on("/half.webp", half)}), 502, "fetch_failed")
    with nobody() as url:
        assert_problem(api.post("/analyze/clip", json={"url": url}), 502, "fetch_failed")


def test_fetch_timeout(impatient: httpx2.Client, image_host: ImageHost) -> None:
    leave = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/webp")
        handler.end_headers()
        while not leave.wait(0.05):
            handler.wfile.write(b"x")

    response = impatient.post("/analyze/clip", json={"url": image_host.on("/drip.webp", drip)})
    leave.set()
    assert_problem(response, 504, "fetch_timeout")


@contextmanager
def stopped(stack: Stack, service: str) -> Iterator[None]:
    """The service's process is frozen: it accepts connections and says nothing."""
    pid = stack.pid(service)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_upstream_timeout_and_the_part_of_a_slow_service(stack: Stack, impatient: httpx2.Client) -> None:
    with stopped(stack, "blip"):
        assert_problem(upload(impatient, "/analyze/blip/file", webp(1)), 504, "upstream_timeout")
        response = upload(impatient, "/analyze/all/file", webp(1))
    assert response.status_code == 200
    answer = response.json()
    assert answer["blip"] is None
    assert answer["errors"]["blip"]["code"] == "upstream_timeout"
    assert answer["clip"]
    assert answer["yolo"] is not None
    assert answer["timings_ms"]["total"] < 10_000  # of 0.7 s for blip, and not of the 90 that a request may take


def test_service_unavailable_when_nothing_listens(stack: Stack) -> None:
    dead = "http://127.0.0.1:9"
    with gateway(stack, CLIP_URL=dead, BLIP_URL=dead, YOLO_URL=dead) as client:
        for path in ("/analyze/clip/file", "/analyze/all/file", "/vectors/embed/file"):
            assert_problem(upload(client, path, webp(1)), 503, "service_unavailable")
        health = client.get("/health")
        assert health.status_code == 200
        assert health.json()["status"] == "degraded"
        assert health.json()["services"]["clip"]["status"] == "unavailable"
    with gateway(stack, CLIP_URL=dead, BLIP_URL=dead, YOLO_URL=dead, QDRANT_SVC_URL=dead) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unavailable")


def test_upstream_error_when_a_service_talks_nonsense(stack: Stack, image_host: ImageHost) -> None:
    # the image host answers a POST with 501 and a page
    with gateway(stack, CLIP_URL=image_host.url("")) as client:
        assert_problem(upload(client, "/analyze/clip/file", webp(1)), 502, "upstream_error")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "API_KEY is not set"),
        ({"API_KEY": ""}, "API_KEY is not set"),
        ({"API_KEY": "your_api_key_here"}, "placeholder"),
        ({"API_KEY": "k", "MAX_IMAGE_PIXELS": "many"}, "MAX_IMAGE_PIXELS"),
        ({"API_KEY": "k", "RATE_LIMIT": "fast"}, "RATE_LIMIT"),
        ({"API_KEY": "k", "FETCH_ALLOW_NETWORKS": "10.0.0.0/33"}, "FETCH_ALLOW_NETWORKS"),
        ({"API_KEY": "k", "FETCH_ALLOW_PORTS": "80,x"}, "FETCH_ALLOW_PORTS"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_clear_line(settings: dict[str, str], says: str) -> None:
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ} | settings
    done = subprocess.run(
        [sys.executable, "-c", "import main"],
        cwd=ROOT / "gateway",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2
    assert says in lines[1]
