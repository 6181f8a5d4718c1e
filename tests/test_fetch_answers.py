"""What the fetcher makes of a server's answers: sizes, types, damage and redirects."""

import asyncio
import re

import pytest

from loopback_internet import MB, PUBLIC, Internet, always, answering, fetcher, image, refused, resolver_of, serving
from netns.scripted_host import ScriptedHost, png
from netns.vectors import Names
from visionstack.errors import FetchFailed, ImageTooLarge, UnsupportedMediaType, UrlNotAllowed, VisionError
from visionstack.urlguard import FetchPolicy

pytestmark = pytest.mark.anyio


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
