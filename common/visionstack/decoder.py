"""Decoding in processes of its own, which can be limited and killed: a hostile file costs its sender, nobody else.

Each worker is one long-lived child (`python -m visionstack.decoder`) that imports `images` and little else, with a
limit on its address space and, per picture, on its CPU seconds. A worker that dies is replaced; its caller gets
`InvalidImage`. As many pictures are decoded at once as there are workers, which bounds their memory: about 20 bytes a
pixel, so `workers * max_pixels * 20` for files that are what they say, and `memory_bytes` per worker for those that are
not. Further callers wait in order, and not for long.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from .errors import ImageTooLarge, InvalidImage, Overloaded, ServiceUnavailable, UnsupportedMediaType, VisionError
from .images import ImageLimits, Picture, WorkingSize, decode, prepare_process

_MiB = 1024 * 1024
# A worker that a huge picture has swollen gives its memory back by ending.
_RECYCLE_RSS_BYTES = 512 * _MiB
# Wall seconds that a CPU second may take on a crowded machine before a worker counts as stuck.
_WALL_FACTOR = 4.0
_START_TIMEOUT_S = 20.0
_MAX_ANSWER_BYTES = 65_536

ResultT = TypeVar("ResultT")


class Decoder:
    """`start()`, then `decode()`, then `close()`; without `start()` a worker starts with its first picture.

    At most `max_waiting` callers wait, each at most `wait_s` seconds, for one of the `workers`, each of which may have
    `memory_bytes` of address space: by default twice what the hungriest format needs for `max_pixels`, and 1 GiB.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        workers: int,
        max_waiting: int = 256,
        wait_s: float = 10.0,
        memory_bytes: int | None = None,
    ) -> None:
        self._wall_s = limits.decode_timeout_s * _WALL_FACTOR + _START_TIMEOUT_S
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._waiting = 0
        self._closed = False
        memory_bytes = memory_bytes or 1024 * _MiB + 40 * limits.max_pixels
        self._workers = [_Worker(limits, memory_bytes) for _ in range(workers)]
        self._idle = list(self._workers)
        self._slots = asyncio.Semaphore(workers)  # as many as are idle; wakes its waiters in order
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decoder")

    async def start(self) -> None:
        """Start the workers ahead of the first picture. Raises `ServiceUnavailable` if they cannot run here."""
        workers = [await self._idle_worker() for _ in self._workers]
        await asyncio.gather(*(self._run(worker, worker.start) for worker in workers))

    async def close(self) -> None:
        """Ends every worker; those who still wait for a picture get `ServiceUnavailable` or `InvalidImage`."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            worker.close()
        # Once every slot is here no thread uses a worker, and those of dead workers come back at once.
        for _ in self._workers:
            await self._slots.acquire()
        for worker in self._workers:
            worker.discard()
        self._threads.shutdown(wait=False)

    async def decode(self, data: bytes, *, working_size: WorkingSize | None = None) -> Picture:
        """As `images.decode`; also raises `Overloaded` when too many wait or the wait is too long."""
        worker = await self._idle_worker()
        # A caller that leaves does not interrupt the worker: starting another would cost more than most pictures.
        return await asyncio.shield(self._run(worker, partial(worker.decode, data, working_size)))

    def _run(self, worker: "_Worker", work: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
        """Runs `work` in a thread; the worker is idle again when that is done, whoever still waits for it."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, work)
        # The CPU limit ends what computes for too long; this ends what is stuck in any other way.
        guard = loop.call_later(self._wall_s, worker.kill)

        def release(_: object) -> None:
            guard.cancel()
            self._idle.append(worker)
            self._slots.release()

        running.add_done_callback(release)
        return running

    async def _idle_worker(self) -> "_Worker":
        if self._closed:
            raise _stopping()
        if self._slots.locked() and self._waiting >= self._max_waiting:
            raise Overloaded("Too many images wait to be decoded; try again as Retry-After says.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded("Decoding is at capacity; try again as Retry-After says.") from None
        finally:
            self._waiting -= 1
        if self._closed:
            self._slots.release()
            raise _stopping()
        return self._idle.pop()


def _stopping() -> ServiceUnavailable:
    return ServiceUnavailable("The service is stopping; try again as Retry-After says.")


class _Worker:
    """The parent's side of one child. All methods block and belong to one thread at a time, except `kill` and `close`,
    which may come from any."""

    def __init__(self, limits: ImageLimits, memory_bytes: int) -> None:
        self._limits = limits
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready = False
        self._closed = False

    def start(self) -> Connection:
        """A child that is ready for a picture. Raises `ServiceUnavailable` if it cannot be had."""
        try:
            if self._process is None or self._process.poll() is not None:
                self._launch()
            assert self._connection is not None
            if not self._ready:
                self._connection.recv_bytes(0)
                self._ready = True
        except (EOFError, OSError) as exc:
            status = self.discard()
            raise ServiceUnavailable(
                "Images cannot be decoded at the moment; try again as Retry-After says.",
                log_detail=f"a decoder process did not start, exit status {status}: {exc!r}",
            ) from exc
        return self._connection

    def _launch(self) -> None:
        self.discard()
        if self._closed:
            raise _stopping()
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        self._ready = False
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - nothing in it comes from a request
                # -P: the folder that the service runs in holds no modules of ours
                [sys.executable, "-P", "-m", "visionstack.decoder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_child_environment(),
                process_group=0,  # Ctrl-C reaches the whole group of a terminal; the parent decides
            )
        setup = {"limits": asdict(self._limits), "memory_bytes": self._memory_bytes}
        self._connection.send_bytes(orjson.dumps(setup))

    def decode(self, data: bytes, working_size: WorkingSize | None) -> Picture:
        connection = self.start()
        try:
            connection.send_bytes(orjson.dumps(working_size and asdict(working_size)))
            connection.send_bytes(data)
            # JSON and raw pixels: a decoder that a file has taken over must not choose what is unpickled here
            answer = orjson.loads(connection.recv_bytes(_MAX_ANSWER_BYTES))
            result = _rebuilt_error(answer) or _rebuilt_picture(answer, connection, self._limits)
            recycle = answer["recycle"]
        except (EOFError, OSError, ValueError, KeyError, TypeError) as exc:
            status = self.discard()
            self._relaunch()
            raise InvalidImage(
                f"The image could not be decoded within {self._limits.decode_timeout_s:g} seconds and the memory"
                " for one picture; save it again as an ordinary file.",
                log_detail=f"decoder process ended, exit status {status}, {type(exc).__name__}",
            ) from exc
        if recycle:
            self.discard()
            self._relaunch()
        if isinstance(result, VisionError):
            raise result
        return result

    def _relaunch(self) -> None:
        """It gets ready while nobody waits; should it not start, the next caller will be told."""
        with contextlib.suppress(OSError, ServiceUnavailable):
            self._launch()

    def kill(self) -> None:
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """No further child is started, and whoever waits for this one sees it end."""
        self._closed = True
        self.kill()

    def discard(self) -> int | None:
        """End the child, wait for it, return its exit status: negative for a signal."""
        status = None
        if self._process is not None:
            self._process.kill()
            status = self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None
        return status


def _child_environment() -> dict[str, str]:
    """The same import path, and nothing of the rest: keys and tokens are none of a decoder's business."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "LD_"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}


_DECODE_ERRORS: dict[str, type[VisionError]] = {
    error.code: error for error in (ImageTooLarge, InvalidImage, UnsupportedMediaType)
}


def _rebuilt_error(answer: dict[str, Any]) -> VisionError | None:
    if "code" not in answer:
        return None
    return _DECODE_ERRORS[answer["code"]](answer["detail"], log_detail=answer["log_detail"])


def _rebuilt_picture(answer: dict[str, Any], connection: Connection, limits: ImageLimits) -> Picture:
    height, width = answer["shape"]
    if height * width > limits.max_pixels:
        raise ValueError("more pixels than were asked for")
    pixels = np.frombuffer(connection.recv_bytes(height * width * 3), np.uint8).reshape(height, width, 3)
    return Picture(pixels, answer["width"], answer["height"], answer["format"])


# --- the child ------------------------------------------------------------------------------------------------------


def _serve(connection: Connection) -> None:
    """Decodes until the parent's end of the pipe is closed, as the kernel does for one that was killed too."""
    setup = orjson.loads(connection.recv_bytes())
    limits, memory_bytes = ImageLimits(**setup["limits"]), setup["memory_bytes"]
    prepare_process(limits)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # only Linux keeps such a limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    connection.send_bytes(b"")
    while True:
        size = orjson.loads(connection.recv_bytes())
        working_size = WorkingSize(**size) if size else None
        data = connection.recv_bytes()
        # SIGPROF's default action ends the process wherever it is, inside a decoder's C code too.
        signal.setitimer(signal.ITIMER_PROF, limits.decode_timeout_s)
        answer: dict[str, Any]
        try:
            picture = decode(data, limits, working_size=working_size)
        except VisionError as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            out_of_memory = isinstance(error.__cause__, MemoryError)
            answer = {"code": error.code, "detail": error.detail, "log_detail": error.log_detail}
            connection.send_bytes(orjson.dumps(answer | {"recycle": out_of_memory or _is_swollen()}))
        else:
            signal.setitimer(signal.ITIMER_PROF, 0)
            answer = {
                "shape": picture.pixels.shape[:2],
                "width": picture.width,
                "height": picture.height,
                "format": picture.format,
                "recycle": _is_swollen(),
            }
            connection.send_bytes(orjson.dumps(answer))
            connection.send_bytes(picture.pixels.data.cast("B"))
            del picture, data


def _is_swollen() -> bool:
    # Not getrusage(): its peak is inherited from the parent, in which a model may live.
    try:
        resident_pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:  # only Linux tells
        return False
    return resident_pages * resource.getpagesize() > _RECYCLE_RSS_BYTES


def main() -> None:
    with contextlib.suppress(EOFError, OSError), Connection(int(sys.argv[1])) as connection:
        _serve(connection)


if __name__ == "__main__":
    main()
