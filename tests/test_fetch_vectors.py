"""The fetcher against every shared vector of a forged request, on loopback."""

import re
from pathlib import Path

import pytest

from loopback_internet import MB, PUBLIC, Internet, fetcher, resolver_of, tls_server, trusting
from netns.scripted_host import ScriptedHost
from netns.vectors import OWN, Names, Record, Vector, complaints, is_slow, of_stage, opened_by, run
from visionstack.fetch import SystemResolver
from visionstack.urlguard import FetchPolicy

pytestmark = pytest.mark.anyio

# A tenth of the vectors' seconds.
TIME_SCALE = 0.1
IN_A_CONNECTION = of_stage("connect", "redirect", "response")


def test_the_vectors_are_all_there() -> None:
    assert len(IN_A_CONNECTION) == 66


EVERY_VECTOR = [*of_stage("syntax", "dns"), *IN_A_CONNECTION, *OWN]


@pytest.mark.parametrize("vector", EVERY_VECTOR, ids=lambda vector: vector["id"])
async def test_vector(vector: Vector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    context = tls_server(name.rstrip(".") or "img.test", only_tls_1_0="1.0" in vector.get("tls", ""))
    https = await host.listen(tls=context)
    internet = Internet({80: http, 8080: http, 443: https}, refusing=vector.get("connect", ()))
    fetch = fetcher(
        internet,
        resolver=resolver,
        policy=policy,
        max_bytes=25 * MB,
        timeout_s=10 * TIME_SCALE if is_slow(vector) else 10,
        ssl_context=trusting(),
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
