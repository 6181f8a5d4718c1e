"""`ssrf_vectors.json`: loading, the name server's answers it scripts, and whether an outcome is the one it asks for.

Shared by the tests on loopback and those in a network namespace. Nothing here knows the policy under test: addresses
that may be dialled are named here a second time, as text.
"""

import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from visionstack.errors import VisionError
from visionstack.images import ImageLimits, decode

Vector = dict[str, Any]

VECTORS: list[Vector] = json.loads(Path(__file__).with_name("..").joinpath("ssrf_vectors.json").read_text("utf-8"))

# What the file leaves open, in its own form: guards that fail these pass all of its vectors.
OWN: list[Vector] = [
    {
        "id": "own-mixed",
        "url": "http://mixed.test/",
        "why": "the bad answer comes last in every order a resolver may sort them into",
        "dns": [["93.184.216.34", "10.0.0.5"]],
        "expect": "reject", "stage": "dns", "status": [400], "code": ["url_not_allowed"],
    },
    {
        "id": "own-search-domain",
        "url": "http://missing.test/",
        "why": "a search domain answers for a missing name, with a public address even",
        "dns": [[]], "dns_hosts": {"missing.test.corp.test": [["93.184.216.35"]]},
        "expect": "reject", "stage": "dns", "status": [400], "code": ["url_not_allowed"],
    },
    {
        "id": "own-hosts-file",
        "url": "http://known-here.test/",
        "why": "a name that only the hosts file knows",
        "dns": [[]], "hosts_file": {"known-here.test": "93.184.216.35"},
        "expect": "allow", "stage": "connect",
    },
    {
        "id": "own-opened",
        "url": "http://192.168.50.10:8080/",
        "why": "a network that the operator opened",
        "env": {"FETCH_ALLOW_NETWORKS": "192.168.50.0/24"},
        "expect": "allow", "stage": "connect",
    },
    *(
        {
            "id": f"own-metadata-{number}",
            "url": f"http://{host}/latest/meta-data/",
            "why": "metadata stays closed when everything is opened",
            "env": {"FETCH_ALLOW_NETWORKS": "0.0.0.0/0,::/0"},
            "expect": "reject", "stage": "connect", "status": [400], "code": ["url_not_allowed"],
        }
        for number, host in enumerate(("169.254.169.254", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]"))
    ),
]  # fmt: skip

# The internet of the vectors: their image hosts, and one IPv6 address.
PUBLIC = (ip_network("93.184.216.0/24"), ip_network("2606:4700:4700::1111/128"))
_LIMITS = ImageLimits(25 * 1024 * 1024, 50_000_000, ("jpeg", "png", "webp", "gif", "avif"), 5.0)
_PATIENCE_S = 12.0


def of_stage(*stages: str) -> list[Vector]:
    return [vector for vector in VECTORS if vector["stage"] in stages]


def opened_by(vector: Vector) -> tuple[IPv4Network | IPv6Network, ...]:
    """The networks in the vector's FETCH_ALLOW_NETWORKS."""
    cidrs = vector.get("env", {}).get("FETCH_ALLOW_NETWORKS", "").split(",")
    return tuple(ip_network(cidr) for cidr in cidrs if cidr)


def is_slow(vector: Vector) -> bool:
    """Whether the vector's hosts take seconds by design."""
    return any("delay_s" in answer or "drip" in answer for answer in vector.get("http", ()))


class Names:
    """A lying name server's zone: each lookup of a name and record type steps on to that name's next answer."""

    def __init__(self, *vectors: Vector) -> None:
        self.queries: list[str] = []
        self._failing: set[str] = set()
        self._answers: dict[str, list[list[str]]] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        for vector in vectors:
            for name, answers in vector.get("dns_hosts", {}).items():
                self._answers[name.lower()] = answers
            if "dns" in vector:
                name = (urlsplit(vector["url"]).hostname or "").rstrip(".")
                self._answers[name] = vector["dns"]
                if "dns_error" in vector:
                    self._failing.add(name)

    def fails(self, name: str) -> bool:
        return name in self._failing

    def look_up(self, name: str, record: str = "any") -> list[str]:
        """The addresses to answer with now; none where the name does not exist."""
        name = name.lower()
        self.queries.append(name)
        answers = self._answers.get(name, [[]])
        step = min(self._asked[name, record], len(answers) - 1)
        self._asked[name, record] += 1
        return answers[step]


@dataclass
class Record:
    """What one vector led to: the answer, and what the world around the fetcher saw of it."""

    size: int | None = None
    status: int | None = None
    code: str | None = None
    detail: str = ""
    seconds: float = 0.0
    connections: list[tuple[str, int]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sni: list[str | None] = field(default_factory=list)


async def run(vector: Vector, fetch: Callable[[str], Awaitable[bytes]]) -> Record:
    """Fetch and decode as the gateway does; the answer's half of the record."""
    record = Record()
    started = time.monotonic()
    try:
        for _ in range(vector.get("repeat", 1)):
            record.size = len(await fetch_decodable(vector["url"], fetch))
    except VisionError as error:
        record.size, record.status, record.code = None, error.status, error.code
        record.detail = json.dumps(error.problem())
    except Exception as error:
        record.size, record.status, record.code = None, 500, "internal_error"
        record.detail = repr(error)
    record.seconds = time.monotonic() - started
    return record


async def fetch_decodable(url: str, fetch: Callable[[str], Awaitable[bytes]]) -> bytes:
    data = await fetch(url)
    decode(data, _LIMITS)
    return data


def escapes(vector: Vector, record: Record) -> list[tuple[str, int]]:
    """The connections that the vector must not lead to: those to no public address, and those it names."""
    literal = urlsplit(vector["url"]).hostname if vector["expect"] == "allow" else None
    return [
        (address, port)
        for address, port in record.connections
        if (
            not any(ip_address(address) in network for network in PUBLIC)
            and (literal is None or address != literal.strip("[]"))
        )
        or {address, f"{address}:{port}"} & set(vector.get("must_not_connect", ()))
    ]


def complaints(vector: Vector, record: Record, *, time_scale: float = 1.0) -> list[str]:
    """Every way in which the record is not what the vector asks for; empty is a pass."""
    found = []
    answer = f"{record.status} {record.code} {record.detail}"
    if vector["expect"] == "allow" and record.size is None:
        found.append(f"should be fetched, was {answer}")
    if vector["expect"] == "reject" and (
        record.status not in vector["status"] or record.code not in vector["code"] or record.size is not None
    ):
        found.append(f"should be {vector['status']} {vector['code']}, was {answer} ({record.size} bytes)")
    if record.status == 500:
        found.append(f"is not a clean error: {answer}")
    if record.seconds > vector.get("max_seconds", _PATIENCE_S) * time_scale:
        found.append(f"took {record.seconds:.1f} s")

    found += [f"connected to {address}:{port}" for address, port in escapes(vector, record)]
    if vector.get("no_dns_query") and record.queries:
        found.append(f"asked the name server for {record.queries}")
    found += [f"answer holds {text!r}" for text in vector.get("response_must_not_contain", ()) if text in record.detail]

    for request in record.requests:
        names = {line.partition(":")[0].lower() for line in request.split("\r\n")[1:]}
        found += [f"sent {name}" for name in vector.get("must_not_send", ()) if name.lower() in names]
        if (forbidden := vector.get("raw_request_must_not_contain")) and forbidden in request:
            found.append(f"sent {forbidden!r}")
    if expected := vector.get("expect_request"):
        if not any(f"\r\nHost: {expected['Host']}\r\n" in request for request in record.requests):
            found.append(f"Host was not {expected['Host']}: {record.requests}")
        if expected["SNI"] not in record.sni:
            found.append(f"SNI was {record.sni}")
    return found
