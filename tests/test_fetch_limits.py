"""How long a fetch may take, and how many may run at once."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest

from loopback_internet import (
    OTHER,
    PUBLIC,
    Internet,
    always,
    answering,
    fetcher,
    image,
    refused,
    serving,
    trusting,
    until,
)
from visionstack.errors import FetchTimeout
from visionstack.fetch import Fetcher
from visionstack.urlguard import FetchPolicy, IPAddress

pytestmark = pytest.mark.anyio


async def in_time(fetch: Fetcher, limit_s: float, url: str = "http://img.test/a.png", **more: Any) -> None:
    started = time.monotonic()
    await refused(fetch, FetchTimeout, url, **more)
    assert limit_s * 0.9 < time.monotonic() - started < limit_s + 3  # on a busy machine; what has no end takes minutes


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


async def test_a_tls_handshake_that_never_answers_ends_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        internet = Internet({443: server.sockets[0].getsockname()[1]})
        await in_time(fetcher(internet, timeout_s=0.3, ssl_context=trusting()), 0.3, "https://img.test/")


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
