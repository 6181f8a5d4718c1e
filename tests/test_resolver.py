"""Names become addresses by the hosts file and the system's resolver."""

import asyncio
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from loopback_internet import PUBLIC, Internet, fetcher, refused, resolver_of, until
from netns.vectors import Names
from visionstack.errors import UrlNotAllowed
from visionstack.fetch import SystemResolver
from visionstack.urlguard import IPAddress

pytestmark = pytest.mark.anyio


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
