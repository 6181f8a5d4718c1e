"""The guarded download against a real web server on loopback, which a seam passes off as the public internet.

The seam sits below the guard: the fetcher resolves, checks and dials public addresses as always, and only the dialled
connection ends on loopback. `test_ssrf_netns` does the same without a seam.
"""

import asyncio
import re
import socket
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import httpcore2
import pytest
import trustme

from netns.scripted_host import ScriptedHost, Serve, WebServer, png
from netns.vectors import OWN, Names, Record, Vector, complaints, is_slow, of_stage, opened_by, run
from visionstack.errors import (
    FetchFailed,
    FetchTimeout,
    ImageTooLarge,
    UnsupportedMediaType,
    UrlNotAllowed,
    VisionError,
)
from visionstack.fetch import Fetcher, Resolver, SystemResolver
from visionstack.urlguard import FetchPolicy, IPAddress

pytestmark = pytest.mark.anyio

PUBLIC = "93.184.216.34"
OTHER = "93.184.216.35"
MB = 1024 * 1024
ROOT = Path(__file__).parents[1]


# --- the seams ------------------------------------------------------------------------------------------------------


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


# --- the vectors ----------------------------------------------------------------------------------------------------

# A tenth of the vectors' seconds.
TIME_SCALE = 0.1
IN_A_CONNECTION = of_stage("connect", "redirect", "response")


def tls_server(ca: trustme.CA, host: str, *, only_tls_1_0: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(host).configure_cert(context)
    if only_tls_1_0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


def test_the_vectors_are_all_there() -> None:
    assert len(IN_A_CONNECTION) == 66


EVERY_VECTOR = [*of_stage("syntax", "dns"), *IN_A_CONNECTION, *OWN]


@pytest.mark.parametrize("vector", EVERY_VECTOR, ids=lambda vector: vector["id"])
async def test_vector(
    vector: Vector, ca: trustme.CA, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = FetchPolicy(allow_networks=opened_by(vector))
    for name, value in vector.get("env", {}).items():
        monkeypatch.setenv(name, value)
    names = Names(vector)
    resolver = resolver_of(names)
    if hosts := vector.get("hosts_file"):
        hosts_file = tmp_path / "hosts"
        hosts_file.write_text("".join(f"{address}\t{name}\n" for name, address in hosts.items()))
        resolver = SystemResolver(hosts_file=hosts_file)
    host = ScriptedHost(vector.get("http", ()), time_scale=TIME_SCALE)
    http = await host.listen()
    name = re.sub(r"https?://|[:/?].*", "", vector["url"]) if vector["url"].startswith("https://") else "img.test"
    context = tls_server(ca, name.rstrip(".") or "img.test", only_tls_1_0="1.0" in vector.get("tls", ""))
    https = await host.listen(tls=context)
    internet = Internet({80: http, 8080: http, 443: https}, refusing=vector.get("connect", ()))
    fetch = fetcher(
        internet,
        resolver=resolver,
        policy=policy,
        max_bytes=25 * MB,
        timeout_s=10 * TIME_SCALE if is_slow(vector) else 10,
        ssl_context=trusting,
    )
    try:
        record = await run(vector, fetch.fetch)
    finally:
        await host.close()
    record.connections, record.queries = internet.dialled, names.queries
    record.requests, record.sni = host.requests, host.sni
    assert complaints(vector, record, time_scale=1.0) == []


def test_a_vector_can_fail() -> None:
    vector = next(vector for vector in IN_A_CONNECTION if vector["id"] == "redirect-02")
    fine = Record(status=400, code="url_not_allowed", connections=[(PUBLIC, 80)])
    assert complaints(vector, fine) == []
    assert complaints(vector, Record(size=77))
    assert complaints(vector, Record(status=400, code="url_not_allowed", connections=[("169.254.169.254", 80)]))


# --- resolve, check, dial -------------------------------------------------------------------------------------------


async def test_a_name_is_resolved_once_per_hop_and_the_checked_address_is_dialled() -> None:
    names = Names({"url": "http://a.test/", "dns": [[PUBLIC], ["127.0.0.1"]], "dns_hosts": {"b.test": [[OTHER]]}})
    redirect = {"url": "http://a.test/a", "status": 302, "headers": {"Location": "http://b.test:8080/b"}}
    host = ScriptedHost([redirect])
    port = await host.listen()
    internet = Internet({80: port, 8080: port})
    fetch = fetcher(internet, resolver=resolver_of(names))
    assert await fetch.fetch("http://a.test/a") == png(64, 64)
    assert names.queries == ["a.test", "b.test"]
    assert internet.dialled == [(PUBLIC, 80), (OTHER, 8080)]
    assert [re.findall("Host: (.*)\r", request) for request in host.requests] == [["a.test"], ["b.test:8080"]]

    await refused(fetch, UrlNotAllowed, "http://a.test/a")  # the second answer
    assert len(internet.dialled) == 2
    await host.close()


async def test_a_literal_is_not_resolved() -> None:
    names = Names()
    async with answering(image("Content-Length: 1", body=b"x")) as internet:
        assert await fetcher(internet, resolver=resolver_of(names)).fetch("http://93.184.216.99/") == b"x"
    assert names.queries == []
    assert internet.dialled == [("93.184.216.99", 80)]


async def test_one_bad_answer_of_many_refuses_before_any_connection() -> None:
    internet = Internet({})
    await refused(fetcher(internet, resolver=always(PUBLIC, "10.0.0.5")), UrlNotAllowed)
    assert internet.dialled == []


async def test_the_next_address_is_tried_when_one_refuses_or_stays_silent() -> None:
    async with answering(image("Content-Length: 1", body=b"x")) as internet:
        internet._refusing, internet._silent = {"93.184.216.1"}, {"2606:4700:4700::1111"}
        resolver = always("93.184.216.1", "2606:4700:4700::1111", PUBLIC)
        started = time.monotonic()
        assert await fetcher(internet, resolver=resolver).fetch("http://img.test/") == b"x"
    assert 0.9 < time.monotonic() - started < 2.5
    assert [address for address, _ in internet.dialled] == ["93.184.216.1", "2606:4700:4700::1111", PUBLIC]


async def test_of_very_many_addresses_sixteen_are_tried() -> None:
    answers = [f"93.184.216.{last}" for last in range(1, 201)]
    internet = Internet({})
    await refused(fetcher(internet, resolver=always(*answers)), FetchFailed)
    assert [address for address, _ in internet.dialled] == answers[:16]


@pytest.mark.parametrize("peer", ["127.0.0.1", OTHER, "::ffff:93.184.216.34"])
async def test_a_connection_that_ends_elsewhere_is_given_up_before_a_request(peer: str) -> None:
    host = ScriptedHost()
    internet = Internet({80: await host.listen()})
    internet.peer = (peer, 80)
    await refused(fetcher(internet), UrlNotAllowed)
    await host.close()
    assert host.requests == []


async def test_what_is_opened_is_still_resolved_once_checked_and_dialled_by_address() -> None:
    policy = FetchPolicy(allow_networks=(ip_network("192.168.50.0/24"),))
    names = Names({"url": "http://nas.lan:9000/", "dns": [["192.168.50.10"], ["192.168.51.10"]]})
    host = ScriptedHost()
    internet = Internet({9000: await host.listen()})
    fetch = fetcher(internet, resolver=resolver_of(names), policy=policy)
    assert await fetch.fetch("http://nas.lan:9000/") == png(64, 64)
    await refused(fetch, UrlNotAllowed, "http://nas.lan:9000/")
    await host.close()
    assert internet.dialled == [("192.168.50.10", 9000)]


async def test_no_connection_serves_two_requests() -> None:
    host = ScriptedHost([{"url": "http://img.test/a", "status": 307, "headers": {"Location": "/b"}}])
    internet = Internet({80: await host.listen()})
    fetch = fetcher(internet)
    for _ in range(2):
        await fetch.fetch("http://img.test/a")
    await host.close()
    assert host.connections == len(host.requests) == len(internet.dialled) == 4


# --- what goes out --------------------------------------------------------------------------------------------------


async def test_the_request_carries_nothing_but_its_five_headers() -> None:
    host = ScriptedHost(
        [{"url": "http://img.test/a?b=c", "status": 302, "headers": {"Location": "/d#e", "Set-Cookie": "s=1"}}]
    )
    internet = Internet({80: await host.listen()})
    await fetcher(internet).fetch("http://img.test/a?b=c#frag")
    await host.close()
    for request, target in zip(host.requests, ["/a?b=c", "/d"], strict=True):
        first, *headers = request.removesuffix("\r\n\r\n").split("\r\n")
        assert first == f"GET {target} HTTP/1.1"
        assert [header.partition(":")[0] for header in headers] == [
            "Host", "User-Agent", "Accept", "Accept-Encoding", "Connection",
        ]  # fmt: skip
        assert "Accept-Encoding: identity" in headers


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, host = ScriptedHost(), ScriptedHost()
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{await proxy.listen()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    policy = FetchPolicy(allow_networks=(ip_network("127.0.0.1/32"),))
    # no seam: the fetcher as the gateway makes it
    fetch = Fetcher(policy, max_bytes=MB, timeout_s=5)
    assert await fetch.fetch(f"http://127.0.0.1:{await host.listen()}/") == png(64, 64)
    await fetch.aclose()
    await host.close()
    await proxy.close()
    assert (proxy.connections, host.connections) == (0, 1)


async def test_tls_is_checked_against_the_name_that_was_asked_for(ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    host = ScriptedHost()
    internet = Internet({443: await host.listen(tls=tls_server(ca, "img.test"))})
    fetch = fetcher(internet, ssl_context=trusting)
    assert await fetch.fetch("https://IMG.test/") == png(64, 64)
    assert host.sni == ["img.test"]
    assert "Host: img.test\r\n" in host.requests[0]

    detail = await refused(fetch, FetchFailed, "https://other.test/")
    assert "TLS" in detail
    assert len(host.requests) == 1

    untrusting = fetcher(internet)
    await refused(untrusting, FetchFailed, "https://img.test/")
    await host.close()
    assert len(host.requests) == 1


async def test_tls_to_an_address_is_checked_against_the_address(ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    host = ScriptedHost()
    internet = Internet({443: await host.listen(tls=tls_server(ca, PUBLIC))})
    fetch = fetcher(internet, ssl_context=trusting)
    assert await fetch.fetch(f"https://{PUBLIC}/") == png(64, 64)
    assert host.sni == [None]
    await refused(fetch, FetchFailed, "https://93.184.216.35/")
    await host.close()


async def test_certificates_named_by_ssl_cert_file_are_trusted(
    ca: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    host = ScriptedHost()
    internet = Internet({443: await host.listen(tls=tls_server(ca, "img.test"))})
    assert await fetcher(internet).fetch("https://img.test/") == png(64, 64)
    await host.close()


# --- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
async def test_exactly_the_limit_passes_and_one_byte_more_is_refused_by_name(chunked: bool) -> None:
    def answer(size: int) -> bytes:
        if chunked:
            return image("Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size)))
        return image(f"Content-Length: {size}", body=bytes(size))

    async with answering(answer(50_000)) as internet:
        assert await fetcher(internet, max_bytes=50_000).fetch("http://img.test/") == bytes(50_000)
    async with answering(answer(50_001)) as internet:
        assert "50000 bytes" in await refused(fetcher(internet, max_bytes=50_000), ImageTooLarge)


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async with answering(image(), b"ab", b"c") as internet:
        assert await fetcher(internet).fetch("http://img.test/") == b"abc"
    async with answering(image(body=bytes(50_001))) as internet:
        await refused(fetcher(internet, max_bytes=50_000), ImageTooLarge)


async def test_an_announced_length_over_the_limit_is_refused_unread() -> None:
    finished = asyncio.Event()

    async def serve(_: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(image("Content-Length: 1000001"))
        assert await reader.read() == b""  # the client hung up, with no byte of the body sent
        finished.set()

    async with serving(serve) as internet:
        await refused(fetcher(internet, max_bytes=1_000_000), ImageTooLarge)
        await asyncio.wait_for(finished.wait(), 5)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(image("Content-Length: 10", body=b"123456789"), id="short"),
        pytest.param(image("Transfer-Encoding: chunked", body=b"3\r\nabc\r\n"), id="chunks-without-end"),
        pytest.param(image("Transfer-Encoding: chunked", body=b"5\r\nabc"), id="chunk-cut"),
        pytest.param(image("Content-Length: 3", "Content-Length: 4", body=b"abcd"), id="two-lengths"),
        pytest.param(image("Content-Length: +3", body=b"abc"), id="odd-length"),
        pytest.param(image("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), id="odd-transfer-encoding"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Type: ima", id="head-cut"),
        pytest.param(b"HTTP/2 200\r\n\r\n", id="http-2"),
        pytest.param(image("Content-Length: 3", "Content-Encoding: gzip", body=b"abc"), id="gzip"),
        pytest.param(image("Content-Length: 3", "Content-Encoding: identity, br", body=b"abc"), id="identity-br"),
        pytest.param(image("Content-Length: 3", status="206 Partial", body=b"abc"), id="partial"),
        pytest.param(image("Content-Length: 0", status="302 Found"), id="redirect-to-nowhere"),
        pytest.param(image("Location: /a", "Location: /b", status="302 Found"), id="redirect-to-two-places"),
        pytest.param(image("Location: /b", status="300 Choices"), id="choices"),
        pytest.param(image(*(f"X-{n}: x" for n in range(100)), body=b"x"), id="101-headers"),
        pytest.param(image("X: " + "x" * 65_000, "Y: " + "y" * 600, body=b"x"), id="head-over-64-KiB"),
    ],
)
async def test_an_improper_answer_is_a_failed_fetch(answer: bytes) -> None:
    async with answering(answer) as internet:
        await refused(fetcher(internet, policy=FetchPolicy(max_redirects=0)), FetchFailed)


async def test_a_hundred_headers_of_sixty_kilobytes_pass() -> None:
    headers = [f"X-{n}: {'x' * 600}" for n in range(98)]
    async with answering(
        b"HTTP/1.1 103 Early Hints\r\n\r\n", image("Content-Length: 1", *headers, body=b"x")
    ) as internet:
        assert await fetcher(internet).fetch("http://img.test/") == b"x"


@pytest.mark.parametrize(
    ("head", "forever", "sentence"),
    [
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", "more than an image needs", id="informational"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", "more than an image needs", id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000, "more than an image needs", id="header"),
        pytest.param(image("Transfer-Encoding: chunked"), b"1\r\nx\r\n", "too many pieces", id="tiny-chunks"),
        pytest.param(
            image("Transfer-Encoding: chunked"),
            b"100;" + b"e" * 16_000 + b"\r\n" + bytes(256) + b"\r\n",
            "more than an image needs",
            id="padded-chunks",
        ),
    ],
)
async def test_an_answer_without_end_is_cut_off(head: bytes, forever: bytes, sentence: str) -> None:
    async def serve(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(forever * (1 + 10_000 // len(forever)))
            await writer.drain()

    async with serving(serve) as internet:
        assert sentence in await refused(fetcher(internet, max_bytes=MB), FetchFailed)


async def test_a_reset_connection_is_a_failed_fetch() -> None:
    host = ScriptedHost([{"url": "http://img.test/", "headers": {"Content-Length": "9", "Content-Type": "image/png"},
                          "body": "text:abc,then-reset"}])  # fmt: skip
    internet = Internet({80: await host.listen()})
    await refused(fetcher(internet), FetchFailed, "http://img.test/")
    await host.close()


@pytest.mark.parametrize(
    "types", [["image/svg+xml"], ["text/html"], ["image"], ["application/octet-stream"], ["image/png, text/html"], []]
)
async def test_other_types_are_refused(types: list[str]) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + "".join(f"Content-Type: {value}\r\n" for value in types).encode()
    async with answering(head + b"Content-Length: 1\r\n\r\nx") as internet:
        await refused(fetcher(internet), UnsupportedMediaType)


@pytest.mark.parametrize("value", ["image/jpeg", "IMAGE/JPG ; q=1", "image/avif", "image/webp", "image/gif;charset=x"])
async def test_image_types_are_taken_in_any_spelling(value: str) -> None:
    async with answering(
        f"HTTP/1.1 200 OK\r\nContent-Type: {value}\r\nContent-Length: 1\r\n\r\nx".encode()
    ) as internet:
        assert await fetcher(internet).fetch("http://img.test/") == b"x"


async def test_sentences_hold_nothing_of_the_remote_side_but_its_status() -> None:
    secret = image("X-Secret: s3cr3t", status="500 s3cr3t", body=b"s3cr3t")
    async with answering(secret) as internet:
        detail = await refused(fetcher(internet), FetchFailed)
    assert "500" in detail
    assert "s3cr3t" not in detail
    for resolver in (always("10.0.0.5"), always(PUBLIC)):
        with pytest.raises(VisionError) as caught:
            await fetcher(Internet({}), resolver=resolver).fetch("http://img.test/")
        assert not re.search(r"\d+\.\d+\.\d+|img\.test", str(caught.value.problem()))


# --- redirects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed_and_a_fourth_is_not(status: int) -> None:
    hops = [{"url": f"http://img.test/{n}", "status": status, "headers": {"Location": str(n + 1)}} for n in range(4)]
    host = ScriptedHost(hops)
    internet = Internet({80: await host.listen()})
    fetch = fetcher(internet)
    assert await fetch.fetch("http://img.test/1") == png(64, 64)
    assert len(host.requests) == 4
    assert "more than 3 times" in await refused(fetch, UrlNotAllowed, "http://img.test/0")
    assert len(host.requests) == 8
    await refused(fetcher(internet, policy=FetchPolicy(max_redirects=0)), UrlNotAllowed, "http://img.test/3")
    await host.close()


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/", "http://inside.test/", "http://img.test:22/", "ftp://img.test/", "http://qdrant/"],
)
async def test_a_redirect_is_held_to_every_rule(location: str) -> None:
    names = Names({"url": "http://img.test/", "dns": [[PUBLIC]], "dns_hosts": {"inside.test": [["10.0.0.5"]]}})
    redirect = image(f"Location: {location}", status="302 Found")
    async with answering(redirect) as internet:
        detail = await refused(fetcher(internet, resolver=resolver_of(names)), UrlNotAllowed)
    assert detail.startswith("The URL redirects to one that is not allowed. The URL's ")
    assert internet.dialled == [(PUBLIC, 80)]


# --- time -----------------------------------------------------------------------------------------------------------


async def in_time(fetch: Fetcher, limit_s: float, url: str = "http://img.test/a.png", **more: Any) -> None:
    started = time.monotonic()
    await refused(fetch, FetchTimeout, url, **more)
    assert limit_s * 0.9 < time.monotonic() - started < limit_s + 0.5


async def test_one_deadline_covers_every_phase() -> None:
    async def hang(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def drip(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(image("Content-Length: 100000"))
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def redirect(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(image("Location: /again", status="302 Found"))

    await in_time(fetcher(Internet({}), resolver=hang, timeout_s=0.3), 0.3)
    await in_time(fetcher(Internet({}, silent=[PUBLIC]), timeout_s=0.3), 0.3)
    for serve in (hang, drip, redirect):
        async with serving(serve) as internet:
            fetch = fetcher(internet, timeout_s=0.3, policy=FetchPolicy(max_redirects=20))
            await in_time(fetch, 0.3)
            await in_time(fetch, 0.1, timeout_s=0.1)  # the caller's own, shorter
            await in_time(fetch, 0.3, timeout_s=99)  # never longer than the fetcher's
    await in_time(fetch, 0, timeout_s=0)


async def test_a_tls_handshake_that_never_answers_ends_in_time(ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        internet = Internet({443: server.sockets[0].getsockname()[1]})
        await in_time(fetcher(internet, timeout_s=0.3, ssl_context=trusting), 0.3, "https://img.test/")


async def test_lookups_and_connections_have_limits_of_their_own() -> None:
    async def hang(_: str) -> Sequence[IPAddress]:
        await asyncio.Event().wait()
        return []

    await asyncio.gather(
        in_time(fetcher(Internet({}), resolver=hang, timeout_s=60), 3),
        in_time(fetcher(Internet({}, silent=[PUBLIC]), timeout_s=60), 3),
        in_time(fetcher(Internet({}, silent=[PUBLIC, OTHER, "93.184.216.36"]),
                        resolver=always(PUBLIC, OTHER, "93.184.216.36"), timeout_s=60), 3),
    )  # fmt: skip


async def test_a_cancelled_fetch_closes_its_connection_and_gives_back_its_turn() -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def serve(_: str, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        hung_up.set()

    async with serving(serve) as internet:
        fetch = fetcher(internet, max_fetches=1)
        task = asyncio.create_task(fetch.fetch("http://img.test/"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(hung_up.wait(), 5)
    async with answering(image("Content-Length: 1", body=b"x")) as fetch._network:
        assert await fetch.fetch("http://img.test/") == b"x"


# --- turns ----------------------------------------------------------------------------------------------------------


class Crowd:
    """A web server that answers only once released, and knows how many requests per host it holds at once."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.most_of_all = 0
        self.release = asyncio.Semaphore(0)

    async def serve(self, head: str, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = re.findall("Host: (.*)\r", head)[0]
        self.held[host] = self.held.get(host, 0) + 1
        self.most[host] = max(self.most.get(host, 0), self.held[host])
        self.most_of_all = max(self.most_of_all, sum(self.held.values()))
        await self.release.acquire()
        self.held[host] -= 1
        writer.write(image("Content-Length: 1", body=b"x"))


async def test_no_host_gets_more_than_its_turns_nor_all_hosts_more_than_all() -> None:
    crowd = Crowd()
    async with serving(crowd.serve) as internet:
        fetch = fetcher(internet, max_fetches=5, max_per_host=2)
        urls = [f"http://{host}.test/" for host in ("a", "b", "c") for _ in range(6)]
        tasks = [asyncio.create_task(fetch.fetch(url)) for url in urls]
        await until(lambda: sum(crowd.held.values()) == 5)
        assert max(crowd.held.values()) == 2
        for _ in urls:
            await until(lambda: bool(sum(crowd.held.values())))
            crowd.release.release()
        assert await asyncio.gather(*tasks) == [b"x"] * 18
    assert max(crowd.most.values()) == 2
    assert crowd.most_of_all == 5
    assert fetch._slots._hosts == {}
    assert not fetch._slots._users


async def test_waiting_for_a_turn_counts_and_one_hosts_queue_holds_up_no_other() -> None:
    crowd = Crowd()
    async with serving(crowd.serve) as internet:
        fetch = fetcher(internet, max_fetches=2, max_per_host=1)
        first = asyncio.create_task(fetch.fetch("http://a.test/"))
        await until(lambda: bool(crowd.held))
        waiting = [asyncio.create_task(in_time(fetch, 0.3, "http://a.test/", timeout_s=0.3)) for _ in range(5)]
        await asyncio.sleep(0)
        other = asyncio.create_task(fetch.fetch("http://b.test/"))
        await until(lambda: crowd.held.get("b.test") == 1)
        await asyncio.gather(*waiting)
        for task in (first, other):
            crowd.release.release()
            crowd.release.release()
            assert await task == b"x"
    assert crowd.most == {"a.test": 1, "b.test": 1}


# --- the system's resolver ------------------------------------------------------------------------------------------


async def test_the_hosts_file_answers_for_names_as_they_are(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# note\n\n10.0.0.5\tnas.lan NAS.test. # 2\n::5 nas.lan\nnonsense nas.lan\n10.0.0.6 other.test\n")
    resolve = SystemResolver(hosts_file=hosts)
    assert list(await resolve("nas.lan")) == [ip_address("10.0.0.5"), ip_address("::5")]
    assert list(await resolve("nas.test")) == [ip_address("10.0.0.5")]
    assert SystemResolver(hosts_file=tmp_path / "none")._in_hosts_file("nas.lan") == []


async def test_a_name_that_does_not_resolve_is_not_allowed() -> None:
    detail = await refused(fetcher(Internet({}), resolver=resolver_of(Names())), UrlNotAllowed)
    assert "does not resolve" in detail


class SlowResolver(SystemResolver):
    """Looks up nothing until told to."""

    def __init__(self, max_lookups: int) -> None:
        super().__init__(max_lookups=max_lookups)
        self.begun: list[str] = []
        self.go_on = threading.Event()

    def _look_up(self, host: str) -> list[IPAddress]:
        self.begun.append(host)
        self.go_on.wait(10)
        if host.startswith("bad"):
            raise UnicodeError("no")
        return [ip_address(PUBLIC)]


async def test_lookups_are_bounded_and_an_abandoned_one_keeps_its_place_until_it_ends() -> None:
    resolve = SlowResolver(2)
    abandoned = [asyncio.create_task(resolve("a.test")), asyncio.create_task(resolve("b.test"))]
    await until(lambda: len(resolve.begun) == 2)
    for task in abandoned:
        task.cancel()
    waiting = [asyncio.create_task(resolve("c.test")), asyncio.create_task(resolve("bad.test"))]
    for _ in range(20):
        await asyncio.sleep(0)
    assert resolve.begun == ["a.test", "b.test"]
    resolve.go_on.set()
    assert await waiting[0] == [ip_address(PUBLIC)]
    with pytest.raises(OSError, match="no"):
        await waiting[1]
    assert len(resolve.begun) == 4


def test_a_lookup_that_outlives_its_loop_harms_nothing() -> None:
    resolve = SlowResolver(1)

    async def abandon() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await resolve("a.test")

    asyncio.run(abandon())
    resolve.go_on.set()
    for thread in threading.enumerate():
        if thread.name == "resolve":
            assert thread.daemon
            thread.join(5)  # an exception in it would fail this test as a warning


# --- there is no other way out --------------------------------------------------------------------------------------


def test_no_other_module_of_the_gateway_holds_an_http_client() -> None:
    clients = re.compile(
        r"^\s*(?:import|from) (?:httpx2?|httpcore2?|requests|urllib3|aiohttp|pycurl|urllib\.request|http\.client)\b",
        re.M,
    )
    files = [*ROOT.glob("common/visionstack/*.py"), *ROOT.glob("gateway/**/*.py")]
    assert len(files) > 10
    assert {file.name for file in files if clients.search(file.read_text())} <= {
        "fetch.py",
        "peers.py",
        "hub.py",
        "weights.py",  # in its own process and without a network
    }
