"""The gateway's metrics, on a port of their own: its other one is the public's."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server


@contextmanager
def metrics_server(registry: CollectorRegistry, port: int, host: str) -> Iterator[None]:
    """`GET /metrics` as Prometheus text, answered by a thread of its own while the context lasts; no port 0.

    Raises OSError where the port cannot be had.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as exc:
        raise OSError(f"METRICS_HOST={host} METRICS_PORT={port}: {exc.strerror}; choose another port, or 0") from exc
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
