"""A load generator: one request sent again and again, by so many clients at once or at so many a second.

Plain sockets and no HTTP library, so that it costs the machine that it shares with the stack as little as it can.
"""

import asyncio
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)


@dataclass
class Outcome:
    """What became of the requests of one run; `other` counts what was neither an answer of 200 nor a refusal."""

    seconds: float
    offered: int = 0
    good: int = 0
    good_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    @property
    def goodput(self) -> float:
        """Good answers a second that came while the load lasted."""
        return self.good / self.seconds

    @property
    def refusal_ms(self) -> float | None:
        """Half of the refusals came sooner than this."""
        return statistics.median(self.refused_s) * 1000 if self.refused_s else None


class Load:
    """Sends one request, with `body` and `headers`, to one address."""

    def __init__(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._request = ("\r\n".join([*lines, "", ""])).encode() + body

    async def closed(self, clients: int, seconds: float) -> Outcome:
        """So many clients, each of which sends its next request when it has the answer to its last."""
        outcome = Outcome(seconds)
        end = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < end:
                await self._one(outcome, end)

        await asyncio.gather(*(client() for _ in range(clients)))
        return outcome

    async def open(self, per_second: float, seconds: float) -> Outcome:
        """So many requests a second, whatever becomes of them."""
        outcome = Outcome(seconds)
        started = time.monotonic()
        async with asyncio.TaskGroup() as requests:
            for number in range(round(per_second * seconds)):
                await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
                requests.create_task(self._one(outcome, started + seconds))
        return outcome

    async def _one(self, outcome: Outcome, end: float) -> None:
        outcome.offered += 1
        started = time.monotonic()
        try:
            status, head = await self._ask()
        except (OSError, asyncio.IncompleteReadError, ValueError) as exc:
            outcome.other[type(exc).__name__] += 1
            return
        now = time.monotonic()
        if status == 200:
            outcome.good_s.append(now - started)
            outcome.good += now <= end
        elif status == 503 and b"retry-after:" in head.lower():
            outcome.refused_s.append(now - started)
        else:
            outcome.other[str(status)] += 1

    async def _ask(self) -> tuple[int, bytes]:
        """The status and the head; the whole answer has been read then."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            await reader.readexactly(int(length[1]) if length else 0)
        finally:
            writer.close()
        return int(head.split(b" ", 2)[1]), head
