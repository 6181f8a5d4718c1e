"""Decoding in worker processes: what kills a worker costs one caller one picture, and nothing outlives the decoder."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pictures import encoded, exif_orientation, gradient, photo, png_zeros, slow_jpeg, webp_animated, webp_flat
from visionstack import images
from visionstack.decoder import Decoder
from visionstack.errors import ImageTooLarge, InvalidImage, Overloaded, ServiceUnavailable, UnsupportedMediaType
from visionstack.images import ImageLimits, Picture, WorkingSize

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are observed and limited as Linux does"),
]

LIMITS = ImageLimits(
    max_bytes=25 * 1024 * 1024,
    max_pixels=50_000_000,
    formats=("jpeg", "png", "webp", "gif", "avif"),
    decode_timeout_s=5.0,
)
MiB = 1024 * 1024
PNG = encoded(gradient(), "PNG")
SLOW = slow_jpeg(7000, 15)  # nearly a second on an ordinary core
DEADLINE_S = 60.0


@asynccontextmanager
async def running(
    limits: ImageLimits = LIMITS,
    *,
    workers: int = 1,
    max_waiting: int = 256,
    wait_s: float = 60,
    memory_bytes: int = 0,
    budget_bytes: int = 0,
) -> AsyncIterator[Decoder]:
    decoder = Decoder(
        limits,
        workers=workers,
        max_waiting=max_waiting,
        wait_s=wait_s,
        memory_bytes=memory_bytes,
        budget_bytes=budget_bytes,
    )
    await decoder.start()
    try:
        yield decoder
    finally:
        await decoder.close()


def status_of(pid: int) -> dict[str, str]:
    """/proc's view of a process; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {} if status["State"].startswith("Z") else status


def decoder_processes(parent: int | None = None) -> set[int]:
    pids = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and status_of(int(entry.name)).get("PPid") == str(parent or os.getpid()):
            command = (entry / "cmdline").read_bytes()
            if b"visionstack.decoder" in command:
                pids.add(int(entry.name))
    return pids


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def surroundings(pid: int) -> tuple[bytes, str, int]:
    """A process's environment, its limits, and how many sockets it has."""
    process = Path(f"/proc/{pid}")
    links = [os.readlink(link) for link in (process / "fd").iterdir()]
    sockets = sum(link.startswith("socket:") for link in links)
    return (process / "environ").read_bytes(), (process / "limits").read_text(), sockets


def memory_of(pid: int, kind: str) -> int:
    return int(status_of(pid).get(kind, "0 kB").split()[0]) * 1024


def resident_bytes(pids: set[int]) -> int:
    return sum(memory_of(pid, "VmRSS") for pid in pids)


async def until(condition: Callable[[], bool]) -> None:
    """Waits until it is true, which it must become."""
    for _ in range(round(DEADLINE_S / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("this never came")


async def until_busy(pids: set[int], since: dict[int, float]) -> None:
    await until(lambda: all(cpu_seconds(pid) > since[pid] + 0.05 for pid in pids))


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    assert not decoder_processes()
    yield
    assert not decoder_processes()


def check_png(picture: Picture) -> None:
    np.testing.assert_array_equal(picture.pixels, np.asarray(gradient()))


# --- the same answers as without processes ----------------------------------------------------------------------------


async def test_pictures_are_those_of_images() -> None:
    turned = encoded(photo(1600, 1200), "JPEG", exif=exif_orientation(6))
    async with running() as decoder:
        for data, size in ((PNG, None), (turned, None), (turned, WorkingSize())):
            picture, expected = (
                await decoder.decode(data, working_size=size),
                images.decode(data, LIMITS, working_size=size),
            )
            np.testing.assert_array_equal(picture.pixels, expected.pixels)
            assert picture.pixels.flags.c_contiguous
            assert (picture.width, picture.height, picture.format) == (expected.width, expected.height, expected.format)


async def test_the_raw_picture_is_a_file_of_its_own_without_a_copy() -> None:
    async with running() as decoder:
        picture = await decoder.decode(encoded(photo(1500, 900), "JPEG"), working_size=WorkingSize())
    raw = picture.to_ppm()
    assert raw == images.to_ppm(picture.pixels)
    assert np.shares_memory(picture.pixels, np.frombuffer(raw, np.uint8))


async def test_errors_are_those_of_images() -> None:
    limits = replace(LIMITS, max_pixels=1_000_000, formats=("png", "jpeg", "webp"))
    async with running(limits) as decoder:
        (pid,) = decoder_processes()
        for data, error in (
            (b"", InvalidImage),
            (PNG[: len(PNG) // 2], InvalidImage),
            (webp_animated(65_535, 65_535), ImageTooLarge),
            (PNG.ljust(LIMITS.max_bytes + 1, b"\0"), ImageTooLarge),
            (b"%PDF", UnsupportedMediaType),
        ):
            with pytest.raises(error) as here:
                images.decode(data, limits)
            with pytest.raises(error) as there:
                await decoder.decode(data)
            assert there.value.detail == here.value.detail
            assert there.value.log_detail == here.value.log_detail
        check_png(await decoder.decode(PNG))
        assert decoder_processes() == {pid}  # errors cost no process


async def test_the_limit_is_ours_where_pillow_has_a_lower_one() -> None:
    async with running(replace(LIMITS, max_pixels=1_000_000_000)) as decoder:
        with pytest.raises(InvalidImage):
            await decoder.decode(webp_animated(16_000, 16_000)[:60])


async def test_workers_start_with_the_first_picture_if_not_before() -> None:
    decoder = Decoder(LIMITS, workers=2)
    assert not decoder_processes()
    check_png(await decoder.decode(PNG))
    assert len(decoder_processes()) == 1
    await decoder.close()
    await decoder.close()
    with pytest.raises(ServiceUnavailable):
        await decoder.decode(PNG)


# --- a worker ends ----------------------------------------------------------------------------------------------------


async def test_a_picture_that_computes_for_too_long_is_killed_and_the_next_is_answered() -> None:
    bomb = slow_jpeg(7000, 95)  # several seconds
    async with running(replace(LIMITS, decode_timeout_s=0.4)) as decoder:
        (pid,) = decoder_processes()
        for _ in range(2):
            with pytest.raises(InvalidImage) as caught:
                await decoder.decode(bomb)
            assert "0.4 seconds" in caught.value.detail
            assert f"exit status -{signal.SIGPROF.value}," in str(caught.value.log_detail)
            check_png(await decoder.decode(PNG))
        assert pid not in decoder_processes()


async def test_a_worker_that_is_stuck_without_computing_is_killed_and_the_next_picture_answered() -> None:
    async with running() as decoder:
        (pid,) = decoder_processes()
        patience_s, decoder._wall_s = decoder._wall_s, 0.3
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(InvalidImage):
            await asyncio.wait_for(decoder.decode(PNG), DEADLINE_S)
        decoder._wall_s = patience_s
        check_png(await decoder.decode(PNG))


async def test_cpu_seconds_are_counted_for_each_picture_alone() -> None:
    data = png_zeros(3000, 3000)
    async with running(replace(LIMITS, decode_timeout_s=0.5)) as decoder:
        (pid,) = decoder_processes()
        started = cpu_seconds(pid)
        while cpu_seconds(pid) < started + 0.8:
            await decoder.decode(data, working_size=WorkingSize())
        assert decoder_processes() == {pid}


async def test_a_killed_worker_costs_only_its_own_caller() -> None:
    async with running(workers=2) as decoder:
        pids = decoder_processes()
        since = {pid: cpu_seconds(pid) for pid in pids}
        both = [asyncio.create_task(decoder.decode(SLOW)) for _ in pids]
        await until_busy(pids, since)
        os.kill(min(pids), signal.SIGKILL)
        results = await asyncio.gather(*both, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["InvalidImage", "Picture"]
        check_png(await decoder.decode(PNG))
        assert len(decoder_processes()) == 2


async def test_a_worker_killed_while_idle_costs_nobody() -> None:
    async with running() as decoder:
        (pid,) = decoder_processes()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not status_of(pid))
        check_png(await decoder.decode(PNG))


async def test_a_picture_that_needs_too_much_memory_is_invalid_and_the_next_is_answered() -> None:
    async with running(memory_bytes=300 * MiB) as decoder:
        (pid,) = decoder_processes()
        for bomb in (webp_flat(6000, 6000), png_zeros(8000, 6000)):
            with pytest.raises(InvalidImage):
                await decoder.decode(bomb)
            check_png(await decoder.decode(PNG))
        assert decoder_processes().isdisjoint({pid})


@pytest.mark.parametrize("python", ["/bin/false", "/nonexistent/python"])
async def test_a_worker_that_cannot_start_is_no_fault_of_the_picture(
    monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    decoder = Decoder(LIMITS, workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", python)
        for use in (decoder.decode(PNG), decoder.start()):
            with pytest.raises(ServiceUnavailable) as caught:
                await use
            assert "did not start" in str(caught.value.log_detail)
    check_png(await decoder.decode(PNG))
    await decoder.close()


async def test_close_does_not_wait_for_a_running_picture() -> None:
    decoder = Decoder(replace(LIMITS, decode_timeout_s=600), workers=1)
    await decoder.start()
    pids = decoder_processes()
    since = {pid: cpu_seconds(pid) for pid in pids}
    slow, waiting = (asyncio.create_task(decoder.decode(slow_jpeg(7000, 100))) for _ in range(2))
    await until_busy(pids, since)
    await decoder.close()
    assert not decoder_processes()
    with pytest.raises(InvalidImage):
        await slow
    with pytest.raises(ServiceUnavailable):
        await waiting


_PARENT = """
import asyncio, sys
from visionstack.decoder import Decoder
from visionstack.images import ImageLimits

async def main() -> None:
    decoder = Decoder(ImageLimits(10**6, 10**8, ("jpeg",), 60.0), workers=2)
    await decoder.start()
    print("ready", flush=True)
    await decoder.decode(bytes.fromhex(sys.argv[1]))

asyncio.run(main())
"""


async def test_workers_end_with_a_parent_that_was_killed() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, SLOW.hex(), stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"ready\n"
    children = decoder_processes(parent.pid)
    assert len(children) == 2
    parent.kill()
    await parent.wait()
    # one of them is in the middle of a picture
    await until(lambda: not any(map(status_of, children)))


# --- waiting ----------------------------------------------------------------------------------------------------------


async def test_callers_wait_in_order() -> None:
    async with running() as decoder:
        finished: list[int] = []

        async def decode(number: int) -> None:
            await decoder.decode(PNG)
            finished.append(number)

        await asyncio.gather(*(decode(number) for number in range(20)))
        assert finished == list(range(20))


async def test_a_full_queue_refuses_at_once_and_a_long_wait_ends() -> None:
    async with running(max_waiting=1, wait_s=0.05) as decoder:
        pids = decoder_processes()
        since = {pid: cpu_seconds(pid) for pid in pids}
        slow = asyncio.create_task(decoder.decode(SLOW))
        await until_busy(pids, since)
        waiting = asyncio.create_task(decoder.decode(PNG))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="Too many images wait"):
            await decoder.decode(PNG)
        with pytest.raises(Overloaded, match="at capacity") as caught:
            await waiting
        assert caught.value.retry_after == 1
        assert (await slow).width == 7000
        check_png(await decoder.decode(PNG))


async def test_without_a_queue_an_idle_worker_still_serves() -> None:
    async with running(max_waiting=0) as decoder:
        check_png(await decoder.decode(PNG))


async def test_callers_that_leave_harm_nobody() -> None:
    async with running() as decoder:
        pids = decoder_processes()
        since = {pid: cpu_seconds(pid) for pid in pids}
        slow, leaving, staying = (asyncio.create_task(decoder.decode(data)) for data in (SLOW, SLOW, PNG))
        await until_busy(pids, since)
        leaving.cancel()
        slow.cancel()
        results = await asyncio.gather(slow, leaving, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        assert not staying.done()
        check_png(await staying)
        assert decoder_processes() == pids  # and nobody was killed for it
        assert sum(cpu_seconds(pid) - since[pid] for pid in pids) < 10


# --- cost -------------------------------------------------------------------------------------------------------------


async def test_memory_is_kept_for_the_next_picture_and_given_back_when_none_comes() -> None:
    def resident_bytes(pid: int) -> int:
        return int(status_of(pid)["VmRSS"].removesuffix("kB")) * 1024

    data = encoded(photo(2000, 1500), "WEBP", method=0)  # 12 MB as Pillow holds it, and as much as libwebp gives it
    async with running() as decoder:
        (pid,) = decoder_processes()
        idle = resident_bytes(pid)
        await decoder.decode(data, working_size=WorkingSize())
        assert resident_bytes(pid) > idle + 16 * MiB
        await until(lambda: resident_bytes(pid) < idle + 8 * MiB)
        assert decoder_processes() == {pid}


@pytest.mark.alone
async def test_the_loop_runs_on_while_a_large_picture_is_decoded() -> None:
    data = png_zeros(7680, 4320)
    async with running() as decoder:
        done = asyncio.Event()
        gaps = []

        async def tick() -> None:
            before = time.perf_counter()
            while not done.is_set():
                await asyncio.sleep(0.005)
                now = time.perf_counter()
                gaps.append(now - before)
                before = now

        ticking = asyncio.create_task(tick())
        started = time.perf_counter()
        used = time.thread_time()
        picture = await decoder.decode(data)  # 100 MB of pixels come back
        elapsed = time.perf_counter() - started
        used = time.thread_time() - used
        done.set()
        await ticking
        assert picture.pixels.shape == (4320, 7680, 3)
        assert used < 0.1  # the loop's own thread did next to nothing
        assert max(gaps) < max(0.1, elapsed / 3), (max(gaps), elapsed)


async def test_parallel_bombs_stay_within_the_memory_of_as_many_workers() -> None:
    limits = replace(LIMITS, max_pixels=4_000_000)
    async with running(limits, workers=2) as decoder:
        before = resident_bytes(decoder_processes())
        work = asyncio.gather(*(decoder.decode(webp_flat(2000, 2000)) for _ in range(16)))
        peak = 0
        while not work.done():
            peak = max(peak, resident_bytes(decoder_processes()))
            await asyncio.sleep(0.005)
        assert {picture.width for picture in await work} == {2000}
        assert peak - before < 2 * (limits.max_pixels * 20 + 16 * MiB)
        assert peak - before > limits.max_pixels * 3  # it was measured at all


async def test_pictures_decoded_at_once_share_one_budget_of_memory() -> None:
    limits = replace(LIMITS, max_pixels=4_000_000)
    one = limits.max_pixels * 20
    async with running(limits, workers=4, budget_bytes=one) as decoder:
        before = resident_bytes(decoder_processes())
        work = asyncio.gather(*(decoder.decode(webp_flat(2000, 2000)) for _ in range(16)))
        peak = 0
        while not work.done():
            peak = max(peak, resident_bytes(decoder_processes()))
            await asyncio.sleep(0.002)
        assert {picture.width for picture in await work} == {2000}
        assert limits.max_pixels * 3 < peak - before < 1.5 * one + 4 * 16 * MiB


async def test_who_waits_too_long_for_memory_is_told_to_come_back_and_small_pictures_need_little() -> None:
    limits = replace(LIMITS, decode_timeout_s=60.0)
    async with running(limits, workers=2, wait_s=0.2, budget_bytes=1) as decoder:
        pids = decoder_processes()
        since = {pid: cpu_seconds(pid) for pid in pids}
        slow = asyncio.create_task(decoder.decode(slow_jpeg(7071, 90)))
        await until(lambda: any(cpu_seconds(pid) > since[pid] + 0.05 for pid in pids))
        with pytest.raises(Overloaded) as caught:
            await decoder.decode(webp_flat(7000, 7000))
        assert "memory" in caught.value.detail
        assert decoder_processes() == pids  # it was no fault of the worker's
        await decoder.close()
        with pytest.raises(InvalidImage):
            await slow


async def test_a_failed_picture_gives_its_share_of_the_budget_back() -> None:
    async with running(replace(LIMITS, decode_timeout_s=0.2), budget_bytes=1) as decoder:
        for _ in range(2):
            with pytest.raises(InvalidImage):
                await decoder.decode(slow_jpeg(7000, 90))
        check_png(await decoder.decode(PNG))


async def test_a_huge_picture_takes_sixteen_bytes_a_pixel_and_gives_them_back() -> None:
    async with running() as decoder:
        (pid,) = decoder_processes()
        before = resident_bytes({pid})
        assert (await decoder.decode(webp_flat(7000, 7000))).pixels.shape == (7000, 7000, 3)
        assert memory_of(pid, "VmHWM") - before < 18 * 7000 * 7000
        check_png(await decoder.decode(PNG))
        # the allocator may keep some; what it held at its peak is 750 MiB
        assert resident_bytes(decoder_processes()) < before + 300 * MiB


async def test_workers_are_light_and_know_nothing_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret-of-the-service")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    async with running() as decoder:
        check_png(await decoder.decode(PNG))
        (pid,) = decoder_processes()
        assert cpu_seconds(pid) < 1
        assert resident_bytes({pid}) < 100 * MiB
        environment, limits, sockets = surroundings(pid)
        assert b"secret-of-the-service" not in environment
        assert b"PYTHONUNBUFFERED=1" in environment
        assert f"Max address space         {1024 * MiB + 40 * LIMITS.max_pixels}" in limits
        assert "Max core file size        0" in limits
        assert sockets == 1


def test_a_worker_imports_no_model_and_no_server() -> None:
    code = "import sys, visionstack.decoder; print(*sorted({'torch', 'pydantic', 'fastapi'} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert output.stdout.strip() == ""
