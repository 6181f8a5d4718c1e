"""Random damage to pictures and random URLs: seconds of it in `make test`, ten minutes each in `make security`.

A failure prints its seed; `FUZZ_SEED` in the environment repeats it.
"""

# ruff: noqa: RUF001 - letters that look like others are the point

import os
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from pictures import encoded, exif_orientation, gif, gif_frame, gradient, photo, png_chunk, small_files, webp_animated
from visionstack.decoder import Decoder
from visionstack.errors import ImageTooLarge, InvalidImage, UnsupportedMediaType, UrlNotAllowed
from visionstack.images import ImageLimits
from visionstack.urlguard import FetchPolicy, Target, check_answers, parse_location, parse_url

LIMITS = ImageLimits(
    max_bytes=1_000_000, max_pixels=4_000_000, formats=("jpeg", "png", "webp", "gif", "avif"), decode_timeout_s=5.0
)
TEN_MINUTES_S = 600.0
Record = Callable[[str, object], None]


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(2**32))
    print(f"FUZZ_SEED={seed}")
    return random.Random(seed)


# --- pictures ---------------------------------------------------------------------------------------------------------

# Ends that a limit of ours brings about; whatever else ends a decoder process is a crash.
_CPU_LIMIT, _KILLED = -27, -9


def corpus() -> list[bytes]:
    return [
        *small_files().values(),
        encoded(photo(64, 48), "JPEG", progressive=True, exif=exif_orientation(3)),
        encoded(photo(64, 48), "PNG"),
        encoded(gradient(64, 48).convert("CMYK"), "JPEG"),
        gif((40, 30), gif_frame(3, 4), gif_frame(1, 1, 20, 20)),
        webp_animated(64, 64),
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", bytes(13)),
    ]


def damaged(dice: random.Random, files: list[bytes]) -> bytes:
    """A file after one to eight random changes."""
    data = bytearray(dice.choice(files))
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1:
                data[at : at + dice.randint(1, 4)] = dice.choice(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xd9", b"\xff\xda"]
                )
            case 2:
                del data[at : at + dice.randint(1, 64)]
            case 3:
                data[at:at] = dice.randbytes(dice.randint(1, 32))
            case 4:
                piece = data[at : at + dice.randint(1, 200)]
                data[at:at] = piece * dice.randint(1, 50)
            case 5:
                other = dice.choice(files)
                start = dice.randrange(len(other))
                data[at:] = other[start:]
            case 6:
                data = data[:at]
    return bytes(data[:200_000])


@pytest.mark.security
@pytest.mark.anyio
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="decoder processes are limited as Linux does")
async def test_damaged_pictures_crash_nothing(
    dice: random.Random, thorough: bool, record_property: Record, anyio_backend: str
) -> None:
    files, answers, crashes = corpus(), Counter[str](), []
    decoder = Decoder(replace(LIMITS, decode_timeout_s=2.0), workers=1)
    await decoder.start()
    end = time.monotonic() + (TEN_MINUTES_S if thorough else 4)
    try:
        while time.monotonic() < end:
            data = damaged(dice, files)
            try:
                picture = await decoder.decode(data)
                assert picture.pixels.size <= 3 * LIMITS.max_pixels
                answers["200"] += 1
            except (ImageTooLarge, UnsupportedMediaType, InvalidImage) as error:
                answers[str(error.status)] += 1
                status = re.search(r"exit status (-?\d+)", error.log_detail or "")
                if status and int(status[1]) not in (_CPU_LIMIT, _KILLED):
                    crashes.append((error.log_detail, data.hex()))
    finally:
        await decoder.close()
    row = "Fuzzing/pictures"
    record_property(f"{row}/seconds", round(TEN_MINUTES_S) if thorough else 4)
    record_property(f"{row}/tried", answers.total())
    record_property(f"{row}/crashes or wrong", len(crashes))
    assert crashes == []
    assert answers["200"] > 10
    assert answers["422"] > 10


# --- URLs -------------------------------------------------------------------------------------------------------------

_PARTS: dict[str, tuple[str, ...]] = {
    "scheme": ("http", "https", "HTTP", "hTTps", "ftp", "file", "gopher", "data", "", "http+unix", "//", "jar:http"),
    "slashes": ("://", ":/", ":", ":///", ":\\\\", "//", "", "://\t", "%3A//"),
    "user": ("", "", "", "", "", "user@", "user:pw@", "@", "127.0.0.1@", "img.test%40", "a\\@", "img.test:80@"),
    "host": (
        "img.test", "IMG.Test.", "img.test..", "8.8.8.8", "127.0.0.1", "127.1", "0", "0x7f000001", "2130706433",
        "017700000001", "0177.0.0.1", "10.0.0.5", "169.254.169.254", "[::1]", "[::]", "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]",
        "[fe80::1%lo]", "[fc00::1]", "[2606:4700:4700::1111]", "[2606:4700::5efe:7f00:1]", "[v1.a]", "[", "]", "",
        "127。0。0。1", "①②⑦.⓪.⓪.①", "ｌocalhost", "localhost", "a.localhost", "metadata.google.internal",
        "img.test\u00ad", "xn--", "xn--a", "bücher.example", "faß.de", "a_b.test", "-a.test", "a" * 64 + ".test",
        "img.test#", "img.test?", "1.2.3", "1.2.3.4.5", "0x7f.1", "1.2.3.08", "img.test\0", "*", "img,test", "a.onion",
        "127.0.0.1.nip.io", "ⓔxample.com", "\u202eimg.test", "img.test.\u3002",
    ),
    "port": ("", "", "", ":80", ":443", ":8080", ":0", ":22", ":65536", ":-1", ":+80", ":８０", ":", ":80a", ":0080"),
    "path": (
        "", "/", "/a.png", "/../a", "/%2e%2e/a", "/a b", "/\r\nHost: x", "/é", "/a\\b", "?q", "/#f", "/\ud800", "//x/",
        "/@127.0.0.1/", "/%00", "/\x7f", "/a?b=http://127.0.0.1/", "/\u2028",
    ),
}  # fmt: skip
# Written down a second time, so that the table under test is not its own judge.
_INSIDE = [
    ip_network(cidr)
    for cidr in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3", "::/3", "2002::/16", "2001::/32", "fc00::/7", "fe80::/10",
    )
]  # fmt: skip


def urls(dice: random.Random) -> Iterator[str]:
    while True:
        text = "".join(dice.choice(choices) for choices in _PARTS.values())
        for _ in range(dice.choice((0, 0, 1, 2))):
            at = dice.randrange(len(text) + 1)
            change = dice.choice("\t\n\r \\/@:#?%[].0x。．／＠：\u200b\u00ad\0aA1-_~")
            text = text[:at] + change + text[at + dice.randrange(2) :]
        yield text


def holes(text: str, target: Target, policy: FetchPolicy) -> Iterator[str]:
    """Everything that must not be true of a URL that was accepted."""
    if target.scheme not in ("http", "https") or target.port not in policy.allow_ports:
        yield "scheme or port"
    wire = f"GET {target.path_and_query} HTTP/1.1 Host: {target.host_header}"
    if not re.fullmatch(r"[!-~]+ [!-~]+ [!-~]+ [!-~]+ [!-~]+", wire):
        yield "more than one line, or no ASCII, on the wire"
    if parse_url(str(target), policy) != target:
        yield "another meaning when parsed again"
    if "@" in target.host_header or "%" in target.host or "\\" in str(target):
        yield "userinfo, zone or backslash"
    try:
        # what the system's lenient parser makes of the host: an address that was not seen as one is a way in
        seen = ip_address(socket.inet_ntoa(socket.inet_aton(target.host)))
    except OSError:
        seen = None
    if seen != (target.address if target.address is None or target.address.version == 4 else None):
        yield f"the system reads the host as {seen}"
    if target.address is not None:
        try:
            check_answers(target, [target.address], policy)
        except UrlNotAllowed:
            return
        if any(target.address in network for network in _INSIDE):
            yield f"{target.address} may be dialled"


@pytest.mark.security
@pytest.mark.timeout(900)
def test_random_urls_are_refused_or_harmless(dice: random.Random, thorough: bool, record_property: Record) -> None:
    policy, base = FetchPolicy(), parse_url("http://img.test/a/b?c", FetchPolicy())
    end = time.monotonic() + (TEN_MINUTES_S if thorough else 4)
    tried, accepted, found = 0, 0, []
    for text in urls(dice):
        if tried % 100 == 0 and time.monotonic() > end:
            break
        tried += 1
        for parse in (parse_url, lambda text, policy: parse_location(text, base, policy)):
            try:
                target = parse(text, policy)
            except UrlNotAllowed:
                continue
            accepted += 1
            found += [(text, hole) for hole in holes(text, target, policy)]
    record_property("Fuzzing/URLs/seconds", round(TEN_MINUTES_S) if thorough else 4)
    record_property("Fuzzing/URLs/tried", tried)
    record_property("Fuzzing/URLs/crashes or wrong", len(found))
    assert found == []
    assert accepted / tried > 0.01
