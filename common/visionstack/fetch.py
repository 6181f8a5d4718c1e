"""The one way in which the stack fetches a caller's URL; no other code opens a connection to the outside.

The name is resolved once, every answer is checked, and the connection goes to a checked address, while Host, SNI and the
certificate check keep the name. Each redirect passes the same way. Nothing of ours is sent along: no key, no cookie, no
referrer; proxies from the environment are not used, as behind one the check of addresses would mean nothing.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin

import httpcore2

from .errors import FetchFailed, FetchTimeout, ImageTooLarge, UnsupportedMediaType, UrlNotAllowed
from .urlguard import FetchPolicy, IPAddress, Target, check_addresses, parse_url

Resolve = Callable[[str, int], Awaitable[list[IPAddress]]]

_DNS_TIMEOUT_S = 3.0
_CONNECT_TIMEOUT_S = 3.0
_MAX_ADDRESSES = 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS_SENT = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "vision-stack", "Connection": "close"}
_MAX_HEADERS = 100
_REFUSED_TYPES = frozenset({"image/svg+xml", "image/svg"})


class Fetcher:
    """Fetches images under a `FetchPolicy`.

    `resolve` and `backend` are the seams of tests: name lookup, and what opens connections to checked addresses.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        max_bytes: int,
        timeout_s: float,
        max_concurrent: int = 32,
        max_per_host: int = 4,
        resolve: Resolve | None = None,
        backend: httpcore2.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        # getaddrinfo cannot be cancelled: slow name servers may hold these threads, and no others of the process
        self._lookups = ThreadPoolExecutor(16, thread_name_prefix="dns")
        self._resolve = resolve or self._system_resolve
        self._backend = backend or httpcore2.AnyIOBackend()
        self._ssl_context = ssl_context or ssl.create_default_context()
        self._slots = asyncio.Semaphore(max_concurrent)
        self._hosts: defaultdict[str, _HostSlots] = defaultdict(lambda: _HostSlots(asyncio.Semaphore(max_per_host)))

    async def aclose(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, url: str, *, timeout_s: float | None = None) -> bytes:
        """The bytes of the image at a URL; whether they are one is the decoder's to say.

        Raises `UrlNotAllowed`, `FetchFailed`, `FetchTimeout`, `ImageTooLarge` or `UnsupportedMediaType`. The time, at
        most `timeout_s` seconds, covers everything: waiting for a slot, DNS, redirects and the body.
        """
        limit_s = min(timeout_s or self._timeout_s, self._timeout_s)
        target = parse_url(url, self._policy)
        try:
            async with asyncio.timeout(limit_s), self._slots:
                for _ in range(self._policy.max_redirects + 1):
                    answer = await self._get(target)
                    if isinstance(answer, bytes):
                        return answer
                    target = parse_url(answer, self._policy)
        except (TimeoutError, httpcore2.TimeoutException) as exc:
            raise FetchTimeout(
                f"The image did not arrive within {limit_s:g} seconds; try again or upload the file.",
                log_detail=repr(exc),
            ) from exc
        except (httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError, OSError) as exc:
            raise FetchFailed(
                "The image's host could not be reached or broke off; check the URL or try again.", log_detail=repr(exc)
            ) from exc
        raise UrlNotAllowed(f"The URL redirects more than {self._policy.max_redirects} times.")

    async def _get(self, target: Target) -> bytes | str:
        """The body, or the absolute URL that the host redirects to."""
        async with self._host_slot(target.host):
            addresses = [target.address] if target.address is not None else await self._addresses(target)
            backend = _PinnedBackend(self._backend, addresses, target.port, self._policy)
            async with (
                # a pool of its own: no connection is ever used for a second request
                httpcore2.AsyncConnectionPool(ssl_context=self._ssl_context, network_backend=backend) as pool,
                pool.stream(
                    b"GET",
                    httpcore2.URL(
                        scheme=target.scheme.encode(),
                        host=target.host.encode(),
                        port=target.port,
                        target=target.path.encode(),
                    ),
                    headers=[(b"Host", target.host_header.encode())]
                    + [(name.encode(), value.encode()) for name, value in _HEADERS_SENT.items()],
                    extensions={"timeout": {"connect": _CONNECT_TIMEOUT_S}},
                ) as response,
            ):
                headers = _headers(response)
                if response.status in _REDIRECTS:
                    if not (location := headers.get("location")):
                        raise FetchFailed("The image's host redirects to nowhere; check the URL.")
                    return urljoin(target.url, location)
                self._check_head(response.status, headers)
                return await self._read(response.aiter_stream())

    def _check_head(self, status: int, headers: dict[str, str]) -> None:
        if status != 200:
            raise FetchFailed(f"The image's host answered with status {status}; check the URL.")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not media_type.startswith("image/") or media_type in _REFUSED_TYPES:
            raise UnsupportedMediaType("The URL does not answer with an image; send the address of the image itself.")
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise FetchFailed("The image's host answered with a content encoding that was not asked for.")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()

    async def _read(self, chunks: AsyncIterator[bytes]) -> bytes:
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > self._max_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> ImageTooLarge:
        return ImageTooLarge(f"The image may hold at most {self._max_bytes} bytes; send a smaller file.")

    async def _addresses(self, target: Target) -> list[IPAddress]:
        unresolved = UrlNotAllowed("The URL's host name does not resolve; check its spelling.")
        try:
            async with asyncio.timeout(_DNS_TIMEOUT_S):
                addresses = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError) as exc:
            if isinstance(exc, TimeoutError):
                raise
            raise unresolved from exc
        if not addresses:
            raise unresolved
        check_addresses(addresses, target.port, self._policy)
        return addresses[:_MAX_ADDRESSES]

    async def _system_resolve(self, host: str, port: int) -> list[IPAddress]:
        infos = await asyncio.get_running_loop().run_in_executor(
            self._lookups, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [ipaddress.ip_address(address) for address in dict.fromkeys(str(info[4][0]) for info in infos)]

    @asynccontextmanager
    async def _host_slot(self, host: str) -> AsyncIterator[None]:
        """One of the few fetches at a time that a host gets from us."""
        slots = self._hosts[host]
        slots.users += 1
        try:
            async with slots.semaphore:
                yield
        finally:
            slots.users -= 1
            if not slots.users:
                del self._hosts[host]


@dataclass(slots=True)
class _HostSlots:
    semaphore: asyncio.Semaphore
    users: int = field(default=0)


class _PinnedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the checked addresses, whatever name the caller of `connect_tcp` gives."""

    def __init__(
        self, backend: httpcore2.AsyncNetworkBackend, addresses: list[IPAddress], port: int, policy: FetchPolicy
    ) -> None:
        self._backend = backend
        self._addresses = addresses
        self._port = port
        self._policy = policy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        error: Exception | None = None
        for address in self._addresses:
            try:
                stream = await self._backend.connect_tcp(str(address), self._port, timeout=timeout)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                error = exc
                continue
            # Belt and braces: what the socket says it is connected to must pass too.
            peer = stream.get_extra_info("server_addr")
            if peer is None or ipaddress.ip_address(peer[0]) != address:
                await stream.aclose()
                raise UrlNotAllowed("The URL's host is not on the public internet; send a public address.")
            return stream
        raise error or httpcore2.ConnectError("no address")

    async def connect_unix_socket(self, *_: object, **__: object) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("not a network address")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def _headers(response: httpcore2.Response) -> dict[str, str]:
    if len(response.headers) > _MAX_HEADERS:
        raise FetchFailed("The image's host answered with too many headers.")
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
