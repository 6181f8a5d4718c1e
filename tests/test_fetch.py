"""How the fetcher resolves, checks and dials, what it sends, and that it is the only way out."""

import re
import time
from ipaddress import ip_network
from pathlib import Path

import pytest

from loopback_internet import (
    MB,
    OTHER,
    PUBLIC,
    Internet,
    always,
    answering,
    authority,
    fetcher,
    image,
    refused,
    resolver_of,
    tls_server,
    trusting,
)
from netns.scripted_host import ScriptedHost, png
from netns.vectors import Names
from visionstack.errors import FetchFailed, UrlNotAllowed
from visionstack.fetch import Fetcher
from visionstack.urlguard import FetchPolicy

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]


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
    assert 0.9 < time.monotonic() - started < 8  # a second for the silent one, and not the ten of the whole download
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


async def test_tls_is_checked_against_the_name_that_was_asked_for() -> None:
    host = ScriptedHost()
    internet = Internet({443: await host.listen(tls=tls_server("img.test"))})
    fetch = fetcher(internet, ssl_context=trusting())
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


async def test_tls_to_an_address_is_checked_against_the_address() -> None:
    host = ScriptedHost()
    internet = Internet({443: await host.listen(tls=tls_server(PUBLIC))})
    fetch = fetcher(internet, ssl_context=trusting())
    assert await fetch.fetch(f"https://{PUBLIC}/") == png(64, 64)
    assert host.sni == [None]
    await refused(fetch, FetchFailed, "https://93.184.216.35/")
    await host.close()


async def test_certificates_named_by_ssl_cert_file_are_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    host = ScriptedHost()
    internet = Internet({443: await host.listen(tls=tls_server("img.test"))})
    assert await fetcher(internet).fetch("https://img.test/") == png(64, 64)
    await host.close()


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
