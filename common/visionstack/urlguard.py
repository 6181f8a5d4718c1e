"""Which URLs and addresses the stack may fetch from. Pure policy: no sockets, no lookups; `fetch` applies it.

One strict parser turns the text into parts, and the request is built from the parts alone, so that no second parser can
read another host out of the same text. Addresses are judged by a table of our own, written from the IANA special-purpose
registries: the standard library's `is_global` and `is_private` differ between versions and miss whole ranges.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote

import idna

from .errors import UrlNotAllowed

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_LENGTH = 8192

_DEFAULT_PORTS = {"http": 80, "https": 443}

_REFUSED_IPV4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's wire server: public to every registry, reachable only inside Azure
    )
)
# Outside of it lie mapped, compatible and translated IPv4, NAT64, unique local, link-local, site-local and multicast.
_GLOBAL_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo, benchmarking, ORCHID and other protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
# An interface id of this form carries an IPv4 address (ISATAP).
_ISATAP_IDS = (0x00005EFE, 0x02005EFE)

# Where clouds hand out credentials. No setting opens these.
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "168.63.129.16/32",
        "fe80::/10",
        "fd00:ec2::/32",
        "fd20:ce::/64",
        "fd00:42::42/128",
    )
)
_NEVER_NAMES = ("metadata.google.internal", "metadata.goog", "instance-data.ec2.internal", "metadata.tencentyun.com")
# Names that only mean something inside somebody's network.
_LOCAL_SUFFIXES = (
    "localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "private", "home.arpa", "arpa",
    "onion", "invalid", "svc", "cluster.local",
)  # fmt: skip

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::([0-9]{1,5}))?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BAD_IN_AUTHORITY = re.compile(r"[\s\\%@]")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched: `allow_networks` opens exactly its networks, any port there; elsewhere `allow_ports` hold."""

    allow_networks: tuple[IPNetwork, ...] = ()
    allow_ports: frozenset[int] = frozenset({80, 443, 8080, 8443})
    max_redirects: int = 3


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in the parts that a request is built from. `host` is ASCII, without brackets; `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str
    address: IPAddress | None
    """The host, where it is an address."""

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.path}"


def parse_url(text: str, policy: FetchPolicy) -> Target:
    """The parts of an acceptable URL. Raises `UrlNotAllowed` with the rule that it breaks.

    A port outside `allow_ports` is accepted here only where `allow_networks` could open it; `check_addresses` decides.
    """
    if len(text) > MAX_URL_LENGTH:
        raise UrlNotAllowed(f"The URL is longer than {MAX_URL_LENGTH} characters.")
    if _CONTROL.search(text) or text != text.strip():
        raise UrlNotAllowed("The URL has control characters or blanks around it; remove them.")
    parts = _URL.fullmatch(text)
    if parts is None:
        raise UrlNotAllowed("This is not a complete URL; send one such as https://example.com/picture.jpg.")
    scheme, authority, path, query = parts.groups()
    scheme = scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise UrlNotAllowed("Only http and https URLs are fetched.")
    if "@" in authority:
        raise UrlNotAllowed("The URL must not carry a user name or password.")
    if _BAD_IN_AUTHORITY.search(authority) or (match := _AUTHORITY.fullmatch(authority)) is None:
        raise UrlNotAllowed("The URL's host cannot be read; send a plain host name, with a port if needed.")
    ipv6_text, name, port_text = match.groups()
    port = int(port_text) if port_text else _DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65535:
        raise UrlNotAllowed("The URL's port must lie between 1 and 65535.")
    if port not in policy.allow_ports and not policy.allow_networks:
        raise _port_refused(policy)
    host, address = _ipv6(ipv6_text) if ipv6_text is not None else _host(name, policy)
    if address is not None:
        check_addresses([address], port, policy)
    target = quote(path or "/", safe=_PATH_SAFE) + (f"?{quote(query, safe=_PATH_SAFE + '?')}" if query else "")
    return Target(scheme, host, port, target, address)


def check_addresses(addresses: list[IPAddress], port: int, policy: FetchPolicy) -> None:
    """Raises `UrlNotAllowed` unless every address may be reached: one bad answer is reason to distrust the others."""
    opened = [any(address in network for network in policy.allow_networks) for address in addresses]
    for address, is_opened in zip(addresses, opened, strict=True):
        if any(address in network for network in _NEVER) or not (is_opened or is_public(address)):
            raise UrlNotAllowed("The URL's host is not on the public internet; send a public address.")
    if port not in policy.allow_ports and not all(opened):
        raise _port_refused(policy)


def is_public(address: IPAddress) -> bool:
    """Whether the address is one that the whole internet reaches in the same way."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_IPV4)
    return (
        address in _GLOBAL_UNICAST_IPV6
        and address.scope_id is None
        and not any(address in network for network in _REFUSED_IPV6)
        and (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP_IDS
    )


def _port_refused(policy: FetchPolicy) -> UrlNotAllowed:
    ports = ", ".join(str(port) for port in sorted(policy.allow_ports))
    return UrlNotAllowed(f"Images are fetched from the ports {ports} only.")


def _ipv6(text: str) -> tuple[str, IPAddress]:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise UrlNotAllowed("The URL's IPv6 address cannot be read.") from None
    return str(address), address


def _host(name: str, policy: FetchPolicy) -> tuple[str, IPAddress | None]:
    host = _ascii_host(name)
    labels = host.split(".")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        try:
            if not name.isascii():
                raise ValueError
            address = ipaddress.IPv4Address(host)
        except ValueError:
            raise UrlNotAllowed("The URL's IPv4 address must be written as four decimal numbers.") from None
        return host, address
    if host in _NEVER_NAMES:
        raise UrlNotAllowed("The URL's host is not on the public internet; send a public address.")
    # An operator who opens a network has names for it, and where they lead is checked all the same.
    if not policy.allow_networks and (
        len(labels) == 1 or any(host == suffix or host.endswith("." + suffix) for suffix in _LOCAL_SUFFIXES)
    ):
        raise UrlNotAllowed("The URL's host is a local name; send the name of a public host.")
    return host, None


def _ascii_host(name: str) -> str:
    """The name in lower-case ASCII (UTS 46, non-transitional), without a trailing dot."""
    unreadable = UrlNotAllowed("The URL's host name is not valid.")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True, transitional=False).decode()
        except idna.IDNAError:
            raise unreadable from None
    host = name.lower().removesuffix(".")
    if not host or len(host) > 253:
        raise unreadable
    for label in host.split("."):
        if not _LABEL.fullmatch(label):
            raise unreadable
        if label.startswith("xn--"):
            try:
                idna.decode(label)
            except (idna.IDNAError, UnicodeError):
                raise unreadable from None
    return host
