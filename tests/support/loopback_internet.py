"""A real web server on loopback, which a seam passes off as the public internet.

The seam sits below the guard: the fetcher resolves, checks and dials public addresses as always, and only the dialled
connection ends on loopback. `test_ssrf_netns` does the same without a seam.
"""

import asyncio
import functools
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_address
from typing import Any

import httpcore2
import pytest
import trustme

from netns.scripted_host import Serve, WebServer
from netns.vectors import Names
from visionstack.errors import VisionError
from visionstack.fetch import Fetcher, Resolver
from visionstack.urlguard import FetchPolicy, IPAddress

PUBLIC = "93.184.216.34"
OTHER = "93.184.216.35"
MB = 1024 * 1024


class Claims(httpcore2.AsyncNetworkStream):
    """A connection that says it reached `peer`."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, peer: tuple[str, int] | None) -> None:
        self._stream = stream
        self._peer = peer
        self.read = stream.read  # type: ignore[method-assign]
        self.write = stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]
        self.start_tls = stream.start_tls  # type: ignore[method-assign]

    def get_extra_info(self, info: str) -> Any:
        return self._peer if info == "server_addr" else self._stream.get_extra_info(info)


class Internet(httpcore2.AsyncNetworkBackend):
    """Ends every dialled connection on loopback: `ports` says where. Keeps what was dialled."""

    def __init__(self, ports: dict[int, int], *, refusing: Iterable[str] = (), silent: Iterable[str] = ()) -> None:
        self.dialled: list[tuple[str, int]] = []
        self.peer: tuple[str, int] | None = None
        self._ports = ports
        self._refusing = set(refusing)
        self._silent = set(silent)
        self._real = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        self.dialled.append((host, port))
        if host in self._silent:
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.Event().wait()
            except TimeoutError as exc:
                raise httpcore2.ConnectTimeout from exc
        if host in self._refusing or port not in self._ports:
            raise httpcore2.ConnectError(ConnectionRefusedError())
        stream = await self._real.connect_tcp("127.0.0.1", self._ports[port], timeout)
        return Claims(stream, self.peer or (host, port))


def resolver_of(names: Names) -> Resolver:
    async def resolve(host: str) -> Sequence[IPAddress]:
        answers = names.look_up(host)
        if names.fails(host) or not answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [ip_address(answer) for answer in answers]

    return resolve


def always(*answers: str) -> Resolver:
    async def resolve(host: str) -> Sequence[IPAddress]:
        return [ip_address(answer) for answer in answers]

    return resolve


def fetcher(
    network: httpcore2.AsyncNetworkBackend,
    *,
    resolver: Resolver | None = None,
    policy: FetchPolicy | None = None,
    max_bytes: int = MB,
    timeout_s: float = 10.0,
    **more: Any,
) -> Fetcher:
    return Fetcher(
        policy or FetchPolicy(),
        max_bytes=max_bytes,
        timeout_s=timeout_s,
        resolver=resolver or always(PUBLIC),
        network=network,
        **more,
    )


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Internet]:
    """An internet whose every web server is this function."""
    server = WebServer(serve)
    port = await server.listen()
    try:
        yield Internet({80: port, 8080: port})
    finally:
        await server.close()


def answering(*parts: bytes) -> AbstractAsyncContextManager[Internet]:
    """Sends these bytes and closes."""

    async def serve(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return serving(serve)


def image(*headers: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: image/png", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop run until this holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


async def refused(fetch: Fetcher, error: type[VisionError], url: str = "http://img.test/a.png", **more: Any) -> str:
    """The public sentence of the error that the fetch ends with."""
    with pytest.raises(error) as caught:
        await fetch.fetch(url, **more)
    assert type(caught.value) is error
    return caught.value.detail


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def tls_server(host: str, *, only_tls_1_0: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(host).configure_cert(context)
    if only_tls_1_0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context
