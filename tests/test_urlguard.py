"""The policy alone: every vector that is decided before a connection, the address table, and what settings open."""

from collections import Counter
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns.vectors import VECTORS, Names, Vector, of_stage, opened_by
from visionstack.errors import UrlNotAllowed
from visionstack.urlguard import (
    FetchPolicy,
    IPAddress,
    Target,
    check_address,
    check_answers,
    parse_location,
    parse_url,
)

POLICY = FetchPolicy()


def networks(*cidrs: str) -> FetchPolicy:
    return FetchPolicy(allow_networks=tuple(ip_network(cidr) for cidr in cidrs))


def addresses(*texts: str) -> list[IPAddress]:
    return [ip_address(text) for text in texts]


def allows(url: str, *answers: str, policy: FetchPolicy = POLICY) -> bool:
    """Whether the URL may be fetched when its name resolves to these addresses."""
    try:
        target = parse_url(url, policy)
        check_answers(target, [target.address] if target.address else addresses(*answers), policy)
    except UrlNotAllowed:
        return False
    return True


# --- the vectors ----------------------------------------------------------------------------------------------------

BEFORE_CONNECTING = of_stage("syntax", "dns")


def test_the_vectors_are_all_there() -> None:
    assert len(VECTORS) == 297
    assert Counter((vector["stage"], vector["level"]) for vector in BEFORE_CONNECTING) == {
        ("syntax", "must"): 143, ("syntax", "should"): 16, ("dns", "must"): 64, ("dns", "should"): 8,
    }  # fmt: skip


@pytest.mark.parametrize("vector", BEFORE_CONNECTING, ids=lambda vector: vector["id"])
def test_vector(vector: Vector) -> None:
    policy, names = FetchPolicy(allow_networks=opened_by(vector)), Names(vector)
    try:
        target = parse_url(vector["url"], policy)
        check_answers(target, [target.address] if target.address else addresses(*names.look_up(target.host)), policy)
        outcome = "allow"
    except UrlNotAllowed:
        outcome = "reject"
    assert vector["expect"] in (outcome, "safe")
    assert 400 in vector.get("status", [400])
    assert not (vector.get("no_dns_query") and names.queries)


# --- the parts of a URL ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://img.test/a.png", Target("http", "img.test", 80, "/a.png", "img.test")),
        ("HTTPS://IMG.Test", Target("https", "img.test", 443, "/", "img.test")),
        ("https://img.test.:443?x=1#top", Target("https", "img.test", 443, "/?x=1", "img.test")),
        ("http://img.test:443/", Target("http", "img.test", 443, "/", "img.test:443")),
        ("http://img.test:00080/", Target("http", "img.test", 80, "/", "img.test")),
        ("http://my_bucket.img.test/", Target("http", "my_bucket.img.test", 80, "/", "my_bucket.img.test")),
        ("https://Bücher.example/", Target("https", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example")),
        ("https://img.test/é?ü", Target("https", "img.test", 443, "/%C3%A9?%C3%BC", "img.test")),
        ("https://faß.test/", Target("https", "xn--fa-hia.test", 443, "/", "xn--fa-hia.test")),
        ("https://img。test/", Target("https", "img.test", 443, "/", "img.test")),
        ("http://1.2.3.4:8080/", Target("http", "1.2.3.4", 8080, "/", "1.2.3.4:8080", IPv4Address("1.2.3.4"))),
        (
            "http://[2606:4700:0:0::1111]:8080/",
            Target("http", "2606:4700::1111", 8080, "/", "[2606:4700::1111]:8080", ip_address("2606:4700::1111")),
        ),
        ("http://img.test/a b%20c%2Fd", Target("http", "img.test", 80, "/a%20b%20c%2Fd", "img.test")),
        ("http://img.test//a/./b/../c//d/..", Target("http", "img.test", 80, "//a/c//", "img.test")),
        ("http://img.test/../../x?../y", Target("http", "img.test", 80, "/x?../y", "img.test")),
        ("http://img.test/{a}|\"<>^`'", Target("http", "img.test", 80, "/%7Ba%7D%7C%22%3C%3E%5E%60'", "img.test")),
    ],
)  # fmt: skip
def test_parts(url: str, target: Target) -> None:
    assert parse_url(url, POLICY) == target


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("img.test/a.png", "absolute"),
        ("ftp://img.test/", "scheme"),
        ("http://u@img.test/", "user name"),
        ("http://img.test/\x85", "control character"),
        ("http://img.test/\\..\\x", "backslash"),
        ("http://img.test:/", "malformed"),
        ("http://img.test:000080/", "malformed"),
        ("http://img..test/", "malformed"),
        ("http://img.test../", "malformed"),
        ("http://./", "malformed"),
        ("http://xn--a.test/", "malformed"),
        ("http://" + "ü" * 10_000, "8192 characters"),
        ("http://" + "a." * 127 + "test/", "malformed"),
        ("http://" + "ü" * 300 + ".test/", "malformed"),
        ("http://8。8。8。8/", "four decimal numbers"),
        ("http://img.test:22/", "allowed ones are 80, 443, 8080, 8443"),
        ("http://images/", "public name"),
        ("http://img.lan/", "public name"),
        ("http://[::1%lo]/", "malformed"),
        ("http://img.test/\ud800", "Unicode"),
        ("http://\ud800.test/", "malformed"),
    ],
)
def test_the_sentence_names_the_rule(url: str, rule: str) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        parse_url(url, POLICY)
    assert rule in caught.value.detail


def test_a_presigned_url_of_3000_characters_passes_and_8193_do_not() -> None:
    base = "https://img.test/a?sig="
    assert len(parse_url(base + "x" * (3000 - len(base)), POLICY).path_and_query) == 3000 - len("https://img.test")
    parse_url(base + "x" * (8192 - len(base)), POLICY)
    with pytest.raises(UrlNotAllowed):
        parse_url(base + "x" * (8193 - len(base)), POLICY)


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("https://b.test/x", "https://b.test/x"),
        ("//b.test/x", "http://b.test/x"),
        ("/x?y", "http://a.test:8080/x?y"),
        ("c.png", "http://a.test:8080/p/q/c.png"),
        ("../c.png", "http://a.test:8080/p/c.png"),
        (".", "http://a.test:8080/p/q/"),
        ("?z", "http://a.test:8080/p/q/r?z"),
        ("#f", "http://a.test:8080/p/q/r?s=/t/u"),
        ("", "http://a.test:8080/p/q/r?s=/t/u"),
        ("@b.test/", "http://a.test:8080/p/q/@b.test/"),
    ],
)
def test_location(location: str, leads_to: str) -> None:
    base = parse_url("http://a.test:8080/p/q/r?s=/t/u", POLICY)
    assert str(parse_location(location, base, POLICY)) == leads_to


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http:/x", "http:\\\\127.0.0.1/", "//u@b.test/", "a:b", "/\\127.0.0.1", "//[::1"]
)
def test_location_is_held_to_the_same_rules(location: str) -> None:
    with pytest.raises(UrlNotAllowed):
        parse_location(location, parse_url("http://a.test/", POLICY), POLICY)


_URL_LIKE = st.text(st.sampled_from("htps:/?#@[]%\\.-_0123456789abxn。１①ßü\u200d \t\x00\ud800A"), max_size=60)


@settings(deadline=None)
@given(st.one_of(st.text(), _URL_LIKE, _URL_LIKE.map(lambda text: "http://" + text)))
def test_any_text_is_refused_or_gives_parts_that_go_on_the_wire_and_parse_to_themselves(text: str) -> None:
    try:
        target = parse_url(text, POLICY)
    except UrlNotAllowed:
        return
    request = h11.Request(method="GET", target=target.path_and_query, headers=[("Host", target.host_header)])
    assert request.target.decode() == target.path_and_query
    assert parse_url(str(target), POLICY) == target


# --- addresses ------------------------------------------------------------------------------------------------------

# Addresses that published guards let through, each through at least one.
_MISSED_ELSEWHERE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.5", "100.64.0.1", "127.0.0.1", "168.63.129.16", "169.254.169.254", "192.0.0.192",  # noqa: S104
    "192.0.2.1", "192.88.99.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:7f00:1", "::ffff:0:7f00:1", "64:ff9b::7f00:1",
    "64:ff9b::808:808", "64:ff9b:1:7f00:0:100::", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:db8::1", "3fff::1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:7f00:1", "fc00::1", "fe80::1", "fec0::1",
    "ff02::1", "ff0e::1", "100::1", "5f00::1", "4000::1",
]  # fmt: skip

# Both ends of every refused range, and what lies just outside it.
_EDGES = [
    "0.0.0.0-0.255.255.255", "10.0.0.0-10.255.255.255", "100.64.0.0-100.127.255.255", "127.0.0.0-127.255.255.255",
    "168.63.129.16-168.63.129.16", "169.254.0.0-169.254.255.255", "172.16.0.0-172.31.255.255",
    "192.0.0.0-192.0.0.255", "192.0.2.0-192.0.2.255", "192.31.196.0-192.31.196.255", "192.52.193.0-192.52.193.255",
    "192.88.99.0-192.88.99.255", "192.168.0.0-192.168.255.255", "192.175.48.0-192.175.48.255",
    "198.18.0.0-198.19.255.255", "198.51.100.0-198.51.100.255", "203.0.113.0-203.0.113.255",
    "224.0.0.0-255.255.255.255", "::-1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001::-2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "2002::-2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8000::-2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
    "3fff::-3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]  # fmt: skip


def is_allowed(address: IPAddress, policy: FetchPolicy = POLICY) -> bool:
    try:
        check_address(address, policy)
    except UrlNotAllowed:
        return False
    return True


@pytest.mark.parametrize("text", _MISSED_ELSEWHERE)
def test_address_is_refused(text: str) -> None:
    assert not is_allowed(ip_address(text))


@pytest.mark.parametrize("edge", _EDGES)
def test_range_is_refused_to_its_edges_and_no_further(edge: str) -> None:
    first, last = (ip_address(text) for text in edge.split("-"))
    assert not is_allowed(first)
    assert not is_allowed(last)
    highest = 2**first.max_prefixlen - 1
    if int(first) > 0:
        assert is_allowed(type(first)(int(first) - 1)) or first.packed[0] in (240, 224)
    if int(last) < highest:
        assert is_allowed(type(last)(int(last) + 1))


def test_one_bad_answer_refuses_the_name() -> None:
    public = [f"93.184.216.{last}" for last in range(1, 20)]
    assert allows("http://img.test/", *public)
    assert not allows("http://img.test/", *public, "10.0.0.5")
    assert not allows("http://img.test/")


# --- what an operator opens -----------------------------------------------------------------------------------------


def test_opened_networks_are_open_exactly() -> None:
    policy = networks("192.168.50.0/24", "fd00:1::/64")
    assert allows("http://192.168.50.1/", policy=policy)
    assert allows("http://[fd00:1::7]/", policy=policy)
    assert allows("http://img.test/", "192.168.50.1", "93.184.216.34", policy=policy)
    assert allows("http://img.test/", "93.184.216.34", policy=policy)
    for closed in ("192.168.49.255", "192.168.51.0", "[::ffff:192.168.50.1]", "[fd00:1:0:1::]", "127.0.0.1"):
        assert not allows(f"http://{closed}/", policy=policy)


def test_any_port_is_open_there_and_only_there() -> None:
    policy = networks("192.168.50.0/24")
    assert allows("http://192.168.50.1:9000/", policy=policy)
    assert allows("http://img.test:9000/", "192.168.50.1", "192.168.50.2", policy=policy)
    assert not allows("http://img.test:9000/", "192.168.50.1", "93.184.216.34", policy=policy)
    assert not allows("http://93.184.216.34:9000/", policy=policy)
    assert not allows("http://img.test:0/", "192.168.50.1", policy=policy)


def test_private_names_are_open_where_all_their_addresses_are() -> None:
    policy = networks("192.168.50.0/24")
    assert allows("http://images:9000/", "192.168.50.1", policy=policy)
    assert allows("http://images.lan/", "192.168.50.1", policy=policy)
    assert not allows("http://images.lan/", "93.184.216.34", policy=policy)
    assert not allows("http://qdrant/", "172.18.0.5", policy=policy)
    assert not allows("http://images.onion/", "192.168.50.1", policy=policy)


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.42.42",
        "169.254.0.23",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "169.254.169.123",
        "169.254.7.7",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
        "fe80::1",
        "::ffff:169.254.169.254",
        "::ffff:0:a9fe:a9fe",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "2001:0:a9fe:a9fe::",
        "fe80::5efe:a9fe:a9fe",
        "fd00::200:5efe:a9fe:a9fe",
    ],
)
def test_metadata_addresses_stay_closed_under_the_widest_networks(text: str) -> None:
    everything = networks("0.0.0.0/0", "::/0")
    assert is_allowed(ip_address("10.0.0.5"), everything)
    assert is_allowed(ip_address("fd00::5"), everything)
    assert not is_allowed(ip_address(text), everything)


def test_link_local_is_opened_only_by_single_addresses() -> None:
    assert not is_allowed(ip_address("169.254.7.7"), networks("169.254.0.0/16"))
    assert is_allowed(ip_address("169.254.7.7"), networks("169.254.7.7/32"))
    assert not is_allowed(ip_address("169.254.169.254"), networks("169.254.169.254/32"))


def test_ports_are_the_operators() -> None:
    policy: dict[str, Any] = {"allow_ports": frozenset({81})}
    assert allows("http://img.test:81/", "93.184.216.34", policy=FetchPolicy(**policy))
    assert not allows("http://img.test/", "93.184.216.34", policy=FetchPolicy(**policy))
