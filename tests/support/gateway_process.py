"""A second gateway in front of the stack's services, with settings of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from local_stack import Stack
from service_process import ServiceProcess, service_process

KEY = "a-key-for-one-test"


@contextmanager
def gateway_process(stack: Stack, **settings: str) -> Iterator[ServiceProcess]:
    """A gateway whose environment is `settings`; services are the stack's unless said otherwise."""
    environment = {
        "API_KEY": KEY,
        "FETCH_ALLOW_NETWORKS": "127.0.0.0/8",
        "RESULT_CACHE_BYTES": "0",
        "CLIP_URL": f"http://127.0.0.1:{stack.port('clip')}",
        "BLIP_URL": f"http://127.0.0.1:{stack.port('blip')}",
        "YOLO_URL": f"http://127.0.0.1:{stack.port('yolo')}",
        "QDRANT_SVC_URL": f"http://127.0.0.1:{stack.port('qdrant')}",
    }
    with service_process("gateway", environment | settings) as process:
        yield process


@contextmanager
def gateway(stack: Stack, **settings: str) -> Iterator[httpx2.Client]:
    """A client of such a gateway."""
    with (
        gateway_process(stack, **settings) as process,
        httpx2.Client(base_url=process.url, headers={"X-API-Key": KEY}, timeout=60, trust_env=False) as client,
    ):
        yield client
