"""A second gateway in front of the stack's services, with settings of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from local_stack import ROOT, Stack

KEY = "a-key-for-one-test"


@contextmanager
def gateway(stack: Stack, **settings: str) -> Iterator[httpx2.Client]:
    """A client of a gateway whose environment is `settings`; services are the stack's unless said otherwise."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ
    }
    environment |= {
        "API_KEY": KEY,
        "FETCH_ALLOW_NETWORKS": "127.0.0.0/8",
        "CLIP_URL": f"http://127.0.0.1:{stack.port('clip')}",
        "BLIP_URL": f"http://127.0.0.1:{stack.port('blip')}",
        "YOLO_URL": f"http://127.0.0.1:{stack.port('yolo')}",
        "QDRANT_SVC_URL": f"http://127.0.0.1:{stack.port('qdrant')}",
    } | settings
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port), "--no-server-header"]
    process = subprocess.Popen(command, cwd=ROOT / "gateway", env=environment, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(process, url)
        with httpx2.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=60, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _wait_until_it_answers(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended: {process.communicate()[1]}")
        try:
            if httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise TimeoutError("the gateway did not start")
