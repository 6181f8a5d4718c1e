"""Which URLs and which addresses images may be fetched from: policy alone, without a socket.

Owns the only URL parser of the way out, and the table of addresses that are never dialled. `fetch` builds its requests
from the parts that `parse_url` returns, never from the text, so that no second parser can read another host out of it;
resolving, connecting and following redirects are its business. Everything refused here is a `UrlNotAllowed` whose
sentence names the rule.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote

import idna

from .errors import UrlNotAllowed

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MAX_URL_CHARS = 8192
_MAX_HOST_CHARS = 253
_DEFAULT_PORTS = {"http": 80, "https": 443}

# The IANA IPv4 special-purpose registry, multicast and the reserved rest, copied as text: `ipaddress` calls several of
# them global, and which ones depends on the Python version.
_REFUSED_IPV4 = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # carrier-grade NAT
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's wire server: public by every list, answered by the host beneath the machine
    "169.254.0.0/16",  # link-local, where clouds keep their metadata services
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24",  # documentation
    "192.31.196.0/24",  # AS112
    "192.52.193.0/24",  # AMT
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",  # private
    "192.175.48.0/24",  # AS112
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
)
# IPv6 the other way round: only what is handed out as global unicast, less the special blocks inside it. Loopback,
# link-local, unique local, multicast, NAT64 and every form of IPv4 written as IPv6 lie outside by construction.
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_REFUSED_IPV6 = (
    "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4
    "2620:4f:8000::/48",  # AS112
    "3fff::/20",  # documentation
)
_REFUSED = tuple(ip_network(cidr) for cidr in _REFUSED_IPV4 + _REFUSED_IPV6)
# The middle of an ISATAP address, which carries an IPv4 address behind it.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)

# What no setting opens: where clouds answer with credentials, and IPv4 addresses in another dress, which would lead
# there past the first rule.
_NEVER_OPENED = tuple(
    ip_network(cidr)
    for cidr in (
        "100.100.100.200/32",
        "168.63.129.16/32",
        "169.254.0.23/32",
        "169.254.42.42/32",
        "169.254.169.0/24",
        "169.254.170.2/32",
        "169.254.170.23/32",
        "192.0.0.192/32",
        "fd00:42::42/128",
        "fd00:ec2::/32",
        "fd20:ce::254/128",
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64, local use
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
    )
)
# A wide network never opens these along with it, only an entry for the single address does: clouds add services there.
_LINK_LOCAL = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))

# Names that mean something only inside a network; not asked of the public DNS, which may answer anything.
_PRIVATE_SUFFIXES = (
    "arpa", "cluster.local", "corp", "home", "home.arpa", "internal", "intranet", "lan", "local", "localdomain",
    "localhost", "private", "svc",
)  # fmt: skip
# Names that must not reach the DNS at all (RFC 7686, RFC 6761).
_UNRESOLVABLE_SUFFIXES = ("invalid", "onion")

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BRACKETED = re.compile(r"\[(?P<host>[0-9A-Fa-f:.]+)\](?::(?P<port>[0-9]{1,5}))?")
_NAMED = re.compile(r"(?P<host>[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
# C0, DEL, C1, and the backslash that some parsers take for a slash
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
# What RFC 3986 allows in a path or query, and `%`: what is encoded already stays as it is.
_SAFE = "!$%&'()*+,-./:;=?@[]_~"


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What an operator may set: networks to open besides the public ones, ports of public hosts, redirects."""

    allow_networks: tuple[IPNetwork, ...] = ()
    allow_ports: frozenset[int] = frozenset({80, 443, 8080, 8443})
    max_redirects: int = 3

    def opens(self, address: IPAddress) -> bool:
        """Whether `allow_networks` holds the address; any port is open there."""
        if any(address in network for network in _NEVER_OPENED) or _is_isatap(address):
            return False
        link_local = any(address in network for network in _LINK_LOCAL)
        return any(
            address in network and (not link_local or network.num_addresses == 1) for network in self.allow_networks
        )


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a URL that a request is made of, all ASCII; `address` is set where the host is an IP literal."""

    scheme: str
    host: str
    port: int
    path_and_query: str
    host_header: str
    address: IPAddress | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.path_and_query}"


def parse_url(text: str, policy: FetchPolicy) -> Target:
    """The parts of an absolute http or https URL; raises `UrlNotAllowed`.

    Stricter than browsers wherever parsers disagree. Ports and private names that only `allow_networks` could open are
    refused here when there are none, else by `check_answers`.
    """
    if len(text) > MAX_URL_CHARS:
        raise UrlNotAllowed(f"The URL is longer than {MAX_URL_CHARS} characters; send a shorter one.")
    if _FORBIDDEN.search(text):
        raise UrlNotAllowed("The URL holds a control character or a backslash; percent-encode it.")
    parts = _URL.fullmatch(text)
    if parts is None:
        raise UrlNotAllowed("This is not an absolute URL; send one that starts with https:// or http://.")
    scheme = parts["scheme"].lower()
    if scheme not in _DEFAULT_PORTS:
        raise UrlNotAllowed("The URL's scheme is not allowed; send an http or https URL.")
    authority = parts["authority"]
    if "@" in authority:
        raise UrlNotAllowed("The URL must not carry a user name or password; leave out everything up to the @.")
    host_and_port = (_BRACKETED if authority.startswith("[") else _NAMED).fullmatch(authority)
    if host_and_port is None:
        raise UrlNotAllowed("The URL's host or port is malformed; send https://host/path or https://host:port/path.")
    port = int(host_and_port["port"] or _DEFAULT_PORTS[scheme])
    if not 1 <= port <= 65535:
        raise UrlNotAllowed("The URL's port is not a number from 1 to 65535.")

    address: IPAddress | None
    if authority.startswith("["):
        try:
            address = IPv6Address(host_and_port["host"])
        except ValueError:
            raise UrlNotAllowed("The URL's IPv6 address is malformed.") from None
        host, host_header = str(address), f"[{address}]"
    else:
        host = host_header = _ascii_host(host_and_port["host"])
        address = _literal_ipv4(host, host_and_port["host"])
    if port != _DEFAULT_PORTS[scheme]:
        host_header += f":{port}"

    target = Target(scheme, host, port, _path_and_query(parts["path"], parts["query"]), host_header, address)
    if not policy.allow_networks and (closed := _closed_without_opening(target, policy)):
        raise closed
    if _is_under(host, _UNRESOLVABLE_SUFFIXES):
        raise _private_name()
    return target


def parse_location(location: str, base: Target, policy: FetchPolicy) -> Target:
    """Where a redirect from `base` leads, by the rules of RFC 3986 and all those of `parse_url`."""
    origin = f"{base.scheme}://{base.host_header}"
    path = base.path_and_query.partition("?")[0]
    if _SCHEME.match(location):
        text = location
    elif location.startswith("//"):
        text = f"{base.scheme}:{location}"
    elif location.startswith("/"):
        text = origin + location
    elif location.startswith("?"):
        text = origin + path + location
    elif location.startswith("#") or not location:
        text = origin + base.path_and_query
    else:
        text = origin + path[: path.rindex("/") + 1] + location
    return parse_url(text, policy)


def check_address(address: IPAddress, policy: FetchPolicy) -> None:
    """Raises `UrlNotAllowed` unless the address is public or opened by the policy."""
    if not (_is_public(address) or policy.opens(address)):
        raise UrlNotAllowed(
            "The URL's host is not on the public internet; send a public URL or upload the image as a file.",
            log_detail=f"refused address {address}",
        )


def check_answers(target: Target, addresses: Collection[IPAddress], policy: FetchPolicy) -> None:
    """Raises `UrlNotAllowed` unless every address that the target's host resolved to may be dialled.

    One bad answer refuses the host: a name that points both inside and outside is an attack or a mistake. A port
    outside `allow_ports` and a private name need all answers inside `allow_networks`.
    """
    if not addresses:
        raise UrlNotAllowed("The URL's host does not resolve; check its name.")
    for address in addresses:
        check_address(address, policy)
    closed = _closed_without_opening(target, policy)
    if closed and not all(policy.opens(address) for address in addresses):
        raise closed


def _closed_without_opening(target: Target, policy: FetchPolicy) -> UrlNotAllowed | None:
    """Why the target is refused outside `allow_networks` whatever it resolves to."""
    if target.port not in policy.allow_ports:
        allowed = ", ".join(map(str, sorted(policy.allow_ports)))
        return UrlNotAllowed(f"The URL's port is not allowed; the allowed ones are {allowed}.")
    if target.address is None and ("." not in target.host or _is_under(target.host, _PRIVATE_SUFFIXES)):
        return _private_name()
    return None


def _private_name() -> UrlNotAllowed:
    return UrlNotAllowed("The URL's host is not a public name; send a public URL or upload the image as a file.")


def _is_under(host: str, suffixes: tuple[str, ...]) -> bool:
    return any(host == suffix or host.endswith(f".{suffix}") for suffix in suffixes)


def _is_public(address: IPAddress) -> bool:
    if address.version == 6 and address not in _GLOBAL_IPV6:
        return False
    return not any(address in network for network in _REFUSED) and not _is_isatap(address)


def _is_isatap(address: IPAddress) -> bool:
    return address.version == 6 and int(address) >> 32 & 0xFFFF_FFFF in _ISATAP


def _ascii_host(text: str) -> str:
    """The host as it goes to the resolver, into SNI and into the Host header: lower case, IDNA applied (UTS 46)."""
    malformed = UrlNotAllowed("The URL's host name is malformed; check it.")
    if len(text) > _MAX_HOST_CHARS + 1:
        raise malformed
    try:
        name = text.lower() if text.isascii() else idna.uts46_remap(text, std3_rules=False, transitional=False)
        labels = [_ascii_label(label) for label in name.removesuffix(".").split(".")]
    except UnicodeError:  # idna's errors are of this kind
        raise malformed from None
    host = ".".join(labels)
    if len(host) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise malformed
    return host


def _ascii_label(label: str) -> str:
    # plain labels pass by IDNA, which would refuse the underscore that many buckets have
    if label.isascii() and not label.startswith("xn--"):
        return label
    return idna.alabel(label).decode("ascii")


def _literal_ipv4(host: str, text: str) -> IPv4Address | None:
    """The address where the host is one; None where it is a name.

    A host that ends in a number is an address to some resolvers, in octal, hex, short or circled digits: only four
    plain decimal numbers are taken.
    """
    if not _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        return None
    try:
        if text.isascii():
            return IPv4Address(host)
    except ValueError:
        pass
    raise UrlNotAllowed("The URL's host ends in a number; write an IPv4 address as four decimal numbers.")


def _path_and_query(path: str, query: str | None) -> str:
    try:
        target = quote(_without_dot_segments(path or "/"), safe=_SAFE)
        return target if query is None else f"{target}?{quote(query, safe=_SAFE)}"
    except UnicodeEncodeError:  # half of a surrogate pair
        raise UrlNotAllowed("The URL holds a character that does not exist in Unicode text.") from None


def _without_dot_segments(path: str) -> str:
    """RFC 3986, section 5.2.4, for a path that starts with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def parse_address(text: str) -> IPAddress:
    """The address that a resolver or a socket names, without the scope that link-local ones carry."""
    return ip_address(text.partition("%")[0])
