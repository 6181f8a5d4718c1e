"""The guarded download: the one way in which the stack fetches what a caller's URL names.

`urlguard` decides; this module makes deciding and connecting one step. Every hop resolves its host once, checks every
answer, dials a checked address itself and asks the socket whom it reached. A connection is made for one request and
never reused. Proxies, cookies, credentials and compression do not exist here. Whatever goes wrong leaves as a
`VisionError` whose sentence holds nothing of the remote side but its status number.
"""
# ruff: noqa: ASYNC109 - the signatures with a time-out are httpcore's

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpcore2

from . import __version__
from .errors import FetchFailed, FetchTimeout, ImageTooLarge, UnsupportedMediaType, UrlNotAllowed
from .inflight import hold, time_left
from .urlguard import FetchPolicy, IPAddress, Target, check_answers, parse_address, parse_location, parse_url

Resolver = Callable[[str], Awaitable[Sequence[IPAddress]]]
"""From an ASCII host name to all its addresses; raises `OSError` where there is none."""

_DNS_TIMEOUT_S = 3.0
_CONNECT_TIMEOUT_S = 3.0
# A silent address must not cost the others their turn (a host whose IPv6 is broken, above all).
_NEXT_ADDRESS_AFTER_S = 1.0
_MAX_DIALLED = 16
_MAX_LOOKUPS = 64

_MAX_HEADERS = 100
_MAX_HEAD_BYTES = 64 * 1024
# What one read brings is parsed without a pause for anybody else; as tiny chunks it takes long.
_READ_BYTES = 16 * 1024
_MIN_PIECES, _MEAN_PIECE_BYTES = 16_384, 512
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# The accepted formats under all the names that servers give them; which it is, the bytes say later.
_MEDIA_TYPES = frozenset({
    "image/apng", "image/avif", "image/avif-sequence", "image/gif", "image/jpeg", "image/jpg", "image/pjpeg",
    "image/png", "image/vnd.mozilla.apng", "image/webp", "image/x-png",
})  # fmt: skip


class SystemResolver:
    """The machine's resolver, `/etc/hosts` included, with every name taken as absolute.

    A search domain would let its owner answer for any misspelt name. Each lookup has a thread of its own, because
    `getaddrinfo` cannot be cancelled: a slow one must hold up neither others nor the end of the process.
    """

    def __init__(self, *, max_lookups: int = _MAX_LOOKUPS, hosts_file: Path = Path("/etc/hosts")) -> None:
        self._slots = asyncio.Semaphore(max_lookups)
        self._hosts_file = hosts_file

    async def __call__(self, host: str) -> Sequence[IPAddress]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[IPAddress]] = loop.create_future()

        def finish(addresses: list[IPAddress], error: OSError | None) -> None:
            self._slots.release()  # only now: an abandoned lookup still has its thread
            if answer.done():
                return
            if error is None:
                answer.set_result(addresses)
            else:
                answer.set_exception(error)

        def look_up() -> None:
            addresses: list[IPAddress] = []
            error: OSError | None = None
            try:
                addresses = self._look_up(host)
            except (OSError, UnicodeError) as exc:
                error = exc if isinstance(exc, OSError) else OSError(str(exc))
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(finish, addresses, error)

        await self._slots.acquire()
        try:
            threading.Thread(target=look_up, name="resolve", daemon=True).start()
        except RuntimeError as exc:  # no more threads
            self._slots.release()
            raise OSError(str(exc)) from exc
        return await answer

    def _look_up(self, host: str) -> list[IPAddress]:
        # getaddrinfo does not find an absolute name in the hosts file
        if known := self._in_hosts_file(host):
            return known
        infos = socket.getaddrinfo(f"{host}.", None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(parse_address(str(info[4][0])) for info in infos))

    def _in_hosts_file(self, host: str) -> list[IPAddress]:
        found: list[IPAddress] = []
        try:
            lines = self._hosts_file.read_text("utf-8", errors="replace").splitlines()
        except OSError:
            return found
        for line in lines:
            address, *names = line.partition("#")[0].split() or [""]
            if host in (name.lower().removesuffix(".") for name in names):
                with contextlib.suppress(ValueError):
                    found.append(parse_address(address))
        return found


class Fetcher:
    """Downloads images; at most `max_fetches` at once, `max_per_host` of them from one host, the others wait.

    `resolver`, `network` and `ssl_context` are the seams to the outside world; the policy holds whatever they are.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        max_bytes: int,
        timeout_s: float,
        resolver: Resolver | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_fetches: int = 32,
        max_per_host: int = 4,
    ) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolver = resolver or SystemResolver()
        self._network = network or httpcore2.AnyIOBackend()
        self._ssl_context = ssl_context or ssl.create_default_context()
        self._slots = _Slots(max_fetches, max_per_host)

    async def fetch(self, url: str, *, timeout_s: float | None = None) -> bytes:
        """The image's bytes as the host sent them, not looked into.

        `timeout_s` (seconds, at most the fetcher's own) covers everything: waiting for a turn, every redirect's
        lookup and connection, the last byte. Raises `UrlNotAllowed`, `FetchFailed`, `FetchTimeout`, `ImageTooLarge`,
        `UnsupportedMediaType`, `Overloaded`.
        """
        limit_s = time_left(self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s))
        target = parse_url(url, self._policy)
        try:
            async with asyncio.timeout(limit_s):
                return await self._follow(target)
        except TimeoutError:
            raise FetchTimeout(
                f"The image did not arrive within {limit_s:.3g} seconds; try again or upload it as a file."
            ) from None

    async def aclose(self) -> None:
        """Nothing is kept from one fetch to the next, so nothing is left to close; owners need not know that."""

    async def _follow(self, target: Target) -> bytes:
        answer = await self._ask(target)
        for _ in range(self._policy.max_redirects):
            if isinstance(answer, bytes):
                return answer
            with _behind_redirect():
                target = parse_location(answer, target, self._policy)
                answer = await self._ask(target)
        if isinstance(answer, bytes):
            return answer
        raise UrlNotAllowed(
            f"The URL redirects more than {self._policy.max_redirects} times; send the one that it ends at."
        )

    async def _ask(self, target: Target) -> bytes | str:
        """One request over a connection of its own: the image, or the location that the host redirects to."""
        wire = _Wire(_MAX_HEAD_BYTES + _READ_BYTES)
        network = _GuardedNetwork(target, self._policy, self._resolver, self._network, wire)
        connection = httpcore2.AsyncHTTPConnection(
            origin=httpcore2.Origin(target.scheme.encode(), target.host.encode(), target.port),
            ssl_context=self._ssl_context,
            network_backend=network,
        )
        request = httpcore2.Request(
            "GET",
            httpcore2.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path_and_query),
            headers=[
                ("Host", target.host_header),
                ("User-Agent", f"vision-stack/{__version__}"),
                ("Accept", "image/*"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ],
            extensions={"timeout": {"connect": _CONNECT_TIMEOUT_S}},
        )
        async with self._slots.turn(target.host):
            try:
                with _translated(target):
                    response = await connection.handle_async_request(request)
                    if len(response.headers) > _MAX_HEADERS or _head_bytes(response) > _MAX_HEAD_BYTES:
                        raise FetchFailed("The image's host sent too many headers.")
                    if response.status in _REDIRECTS:
                        return _location(response)
                    return await self._image(response, wire)
            finally:
                await network.aclose()

    async def _image(self, response: httpcore2.Response, wire: "_Wire") -> bytes:
        """The body, or the reason not to read it."""
        if response.status != 200:
            raise FetchFailed(f"The image's host answered with status {response.status}; check the URL.")
        if any(coding.lower() not in ("", "identity") for coding in _values(response, b"content-encoding")):
            # decompression has no bound, and an image gains nothing from it
            raise FetchFailed("The image's host sends the image compressed for transfer, which is not accepted.")
        types = [value.partition(";")[0].strip().lower() for value in _values(response, b"content-type")]
        if not types or not _MEDIA_TYPES.issuperset(types):
            raise UnsupportedMediaType(
                "The URL does not answer with an image of an accepted type; send the URL of the image file itself."
            )
        too_large = ImageTooLarge(f"The image may hold at most {self._max_bytes} bytes; send a smaller file.")
        # one valid number, and no more bytes than it says: h11 has seen to it
        declared = max((int(length) for length in _values(response, b"content-length")), default=None)
        if declared is not None:
            if declared > self._max_bytes:
                raise too_large
            hold(declared)

        wire.allow(2 * self._max_bytes)
        most_pieces = max(_MIN_PIECES, self._max_bytes // _MEAN_PIECE_BYTES)
        received, pieces = 0, []
        async with contextlib.aclosing(response.aiter_stream()) as stream:
            async for piece in stream:
                received += len(piece)
                if received > self._max_bytes:
                    raise too_large
                if declared is None:
                    hold(len(piece))
                pieces.append(piece)
                if len(pieces) > most_pieces:
                    raise FetchFailed("The image's host sends the image in too many pieces.")
        return b"".join(pieces)


class _GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """The connection of one hop: resolves, checks and dials in one step, whatever host it is asked for."""

    def __init__(
        self,
        target: Target,
        policy: FetchPolicy,
        resolver: Resolver,
        network: httpcore2.AsyncNetworkBackend,
        wire: "_Wire",
    ) -> None:
        self._target = target
        self._policy = policy
        self._resolver = resolver
        self._network = network
        self._wire = wire
        self._stream: httpcore2.AsyncNetworkStream | None = None

    async def aclose(self) -> None:
        """Close the socket whatever became of it: httpcore forgets it when a TLS handshake is cancelled."""
        if self._stream is not None:
            await self._stream.aclose()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._addresses()
        check_answers(self._target, addresses, self._policy)
        self._stream, dialled = await self._dial(addresses[:_MAX_DIALLED])
        # the socket's own word on whom it reached: 0.0.0.0, for one, ends at loopback
        peer = self._stream.get_extra_info("server_addr")
        if peer is None or parse_address(peer[0]) != dialled:
            raise UrlNotAllowed(
                "The URL's host cannot be reached at its own address.", log_detail=f"dialled {dialled}, reached {peer}"
            )
        return _CountedStream(self._stream, self._wire)

    async def _addresses(self) -> Sequence[IPAddress]:
        if self._target.address is not None:
            return (self._target.address,)
        try:
            async with asyncio.timeout(_DNS_TIMEOUT_S):
                return await self._resolver(self._target.host)
        except TimeoutError:
            raise FetchTimeout("The name of the image's host did not resolve in time; try again.") from None
        except OSError as exc:
            raise UrlNotAllowed(
                "The URL's host does not resolve; check its name.", log_detail=f"{self._target.host}: {exc}"
            ) from exc

    async def _dial(self, addresses: Sequence[IPAddress]) -> tuple[httpcore2.AsyncNetworkStream, IPAddress]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CONNECT_TIMEOUT_S
        failure: Exception = httpcore2.ConnectTimeout()
        for position, address in enumerate(addresses, 1):
            left = deadline - loop.time()
            if left <= 0:
                break
            timeout = left if position == len(addresses) else min(left, _NEXT_ADDRESS_AFTER_S)
            try:
                return await self._network.connect_tcp(str(address), self._target.port, timeout=timeout), address
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                failure = exc
        raise failure


class _Wire:
    """How many more bytes a connection may deliver, framing included: what a byte limit on the body cannot see."""

    def __init__(self, allowed: int) -> None:
        self._left = allowed

    def allow(self, more: int) -> None:
        self._left += more

    def received(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise FetchFailed("The image's host sends more than an image needs.")


class _CountedStream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream, wire: _Wire) -> None:
        self._stream = stream
        self._wire = wire

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(min(max_bytes, _READ_BYTES), timeout)
        self._wire.received(len(data))
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _CountedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._wire)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Slots:
    """Turns to fetch. A host's own limit comes first, so that waiting for one host takes no turn from the others."""

    def __init__(self, total: int, per_host: int) -> None:
        self._total = asyncio.Semaphore(total)
        self._per_host = per_host
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        slots = self._hosts.setdefault(host, asyncio.Semaphore(self._per_host))
        self._users[host] += 1
        try:
            async with slots, self._total:
                yield
        finally:
            self._users[host] -= 1
            if not self._users[host]:
                del self._users[host], self._hosts[host]


@contextmanager
def _behind_redirect() -> Iterator[None]:
    try:
        yield
    except UrlNotAllowed as error:
        raise UrlNotAllowed(
            f"The URL redirects to one that is not allowed. {error.detail}", log_detail=error.log_detail
        ) from error


@contextmanager
def _translated(target: Target) -> Iterator[None]:
    """What connecting, TLS and HTTP raise, as the stack's own errors."""
    try:
        yield
    except httpcore2.TimeoutException as exc:
        raise FetchTimeout(log_detail=f"{target.host}: {exc!r}") from exc
    except httpcore2.ConnectError as exc:
        detail = "The image's host cannot be reached; check the URL or try again."
        if isinstance(exc.__cause__, ssl.SSLError):
            detail = "The image's host offers no valid TLS connection; check the URL."
        raise FetchFailed(detail, log_detail=f"{target.host}: {exc!r}") from exc
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as exc:
        raise FetchFailed(
            "The image's host broke off, or did not answer in proper HTTP; try again.",
            log_detail=f"{target.host}: {exc!r}",
        ) from exc


def _location(response: httpcore2.Response) -> str:
    locations = set(_values(response, b"location"))
    if len(locations) != 1:
        raise FetchFailed(f"The image's host answered with status {response.status} and no place to go to.")
    try:
        return locations.pop().encode("latin-1").decode()
    except UnicodeDecodeError:
        raise UrlNotAllowed("The URL redirects to one that is not valid Unicode.") from None


def _values(response: httpcore2.Response, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in response.headers if key.lower() == name]


def _head_bytes(response: httpcore2.Response) -> int:
    return sum(len(name) + len(value) + 4 for name, value in response.headers)
