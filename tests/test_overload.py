"""More load than the stack can take: what it can do it goes on doing, and the rest is told so at once."""

from collections.abc import Callable

import pytest

from gateway_process import KEY, gateway_process
from load_generator import Load, Outcome
from local_stack import Stack
from scenes import webp

pytestmark = [pytest.mark.anyio, pytest.mark.alone, pytest.mark.security, pytest.mark.timeout(400)]

Record = Callable[[str, object], None]

IN_FLIGHT = 16


def form(picture: bytes) -> tuple[bytes, dict[str, str]]:
    """A multipart body with one file, and its headers."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="p"\r\n\r\n'
    return head + picture + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x", "X-API-Key": KEY}


async def test_goodput_holds_at_ten_times_the_capacity(stack: Stack, thorough: bool, record_property: Record) -> None:
    seconds = 20.0 if thorough else 2.0
    body, headers = form(webp(77))
    settings = {
        "MAX_IN_FLIGHT": str(IN_FLIGHT),  # small, so that a short run shows what a long one would
        "RESULT_CACHE_BYTES": "0",  # each answer is to be worked for
        "RATE_LIMIT": "",
        "LOG_LEVEL": "warning",
    }
    with gateway_process(stack, **settings) as gateway:
        load = Load(f"{gateway.url}/analyze/all/file", body, headers)
        await load.closed(4, 2.0)  # warm
        capacity = (await load.closed(IN_FLIGHT, seconds)).goodput
        runs: dict[int, Outcome] = {times: await load.open(times * capacity, seconds) for times in (1, 4, 10)}
    for times, run in runs.items():
        row = f"Overload/{times}x capacity"
        record_property(f"{row}/offered a second", round(run.offered / run.seconds, 1))
        record_property(f"{row}/goodput to that at 1x", round(run.goodput / runs[1].goodput, 2))
        refusal_ms = run.refusal_ms
        record_property(f"{row}/p50 of a refusal (ms)", "-" if refusal_ms is None else round(refusal_ms, 1))
        record_property(f"{row}/other errors", run.other.total())
        assert run.other == {}
        assert len(run.good_s) + len(run.refused_s) == run.offered
    assert runs[10].refused_s
    # half, and no bound on a refusal's time: this machine is shared with the stack and whatever else runs there
    assert runs[10].goodput > runs[1].goodput / 2
