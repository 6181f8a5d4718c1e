"""Decoding in processes of its own, which can be limited and killed: a hostile file costs its sender, nobody else.

Each worker is one long-lived child (`python -m visionstack.decoder`) that imports `images` and nothing heavier, with a
limit on its address space and, per picture, on its CPU seconds. A worker that dies is replaced; its caller gets
`InvalidImage`. As many pictures are decoded at once as there are workers, so that their memory is bounded by
workers × `max_pixels` × about 20 bytes; further callers wait in order, and not for long.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection

import numpy as np
import orjson

from .errors import InvalidImage, Overloaded, ServiceUnavailable, VisionError
from .images import ImageLimits, Picture, WorkingSize, decode
from .settings import MiB

_ADDRESS_SPACE_BYTES = 4096 * MiB
# A worker that a huge picture has swollen gives its memory back by ending.
_RECYCLE_RSS_BYTES = 768 * MiB
# Wall seconds a CPU second may take on a crowded machine before the worker counts as stuck.
_WALL_FACTOR = 6.0
_MAX_ANSWER_BYTES = 65_536


class Decoder:
    """`async with` or `start()`/`close()`; workers start at the first use if `start()` was not called."""

    def __init__(
        self, limits: ImageLimits, *, workers: int, max_waiting: int = 256, wait_s: float = 10.0
    ) -> None:
        self._limits = limits
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._waiting = 0
        self._closed = False
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._workers = [_Worker(limits) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put_nowait(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decoder")

    async def start(self) -> None:
        """Start the workers ahead of the first picture."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, worker.start) for worker in self._workers))

    async def close(self) -> None:
        self._closed = True
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def decode(self, data: bytes, *, working_size: WorkingSize | None = None) -> Picture:
        """As `images.decode`; also raises `Overloaded` when too many wait or the wait is too long."""
        async with self._worker() as worker:
            work = asyncio.get_running_loop().run_in_executor(self._threads, worker.decode, data, working_size)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                # The caller has left; what it asked for is not worth another's wait.
                worker.kill()
                with contextlib.suppress(VisionError):
                    await work
                raise

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator["_Worker"]:
        if self._closed:
            raise ServiceUnavailable("The service is stopping; try again as Retry-After says.")
        if self._waiting >= self._max_waiting:
            raise Overloaded("Too many images wait to be decoded; try again as Retry-After says.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                worker = await self._idle.get()
        except TimeoutError:
            raise Overloaded("Decoding is at capacity; try again as Retry-After says.") from None
        finally:
            self._waiting -= 1
        try:
            yield worker
        finally:
            self._idle.put_nowait(worker)


class _Worker:
    """The parent's side of one child; `decode` blocks and runs in a thread, `kill` may come from another."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._discard()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "visionstack.decoder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        self._connection.send_bytes(orjson.dumps(asdict(self._limits)))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def decode(self, data: bytes, working_size: WorkingSize | None) -> Picture:
        self.start()
        assert self._connection is not None
        try:
            self._connection.send_bytes(orjson.dumps(working_size and asdict(working_size)))
            self._connection.send_bytes(data)
            if not self._connection.poll(self._limits.decode_timeout_s * _WALL_FACTOR):
                raise TimeoutError
            # JSON and raw pixels: a decoder that a file has taken over must not choose what is unpickled here
            answer = orjson.loads(self._connection.recv_bytes(_MAX_ANSWER_BYTES))
            if (error := VisionError.from_problem(answer)) is not None:
                error.log_detail = answer["log_detail"]
                raise error
            pixels = np.frombuffer(self._connection.recv_bytes(), np.uint8).reshape(answer["shape"])
        except (EOFError, OSError, TimeoutError, ValueError) as exc:
            # ended by one of its limits, by a crash or by kill()
            self._discard()
            raise InvalidImage(
                f"The image could not be decoded within {self._limits.decode_timeout_s:g} seconds and the memory"
                " for one picture; save it again as an ordinary file.",
                log_detail=f"decoder worker ended: {exc!r}",
            ) from exc
        if answer["recycle"]:
            self._discard()
        return Picture(pixels, answer["width"], answer["height"], answer["format"])

    def _discard(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _serve(connection: Connection) -> None:
    """The child: decodes until the parent's end of the pipe is closed, by `kill -9` too."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = ImageLimits(**orjson.loads(connection.recv_bytes()))
    while True:
        size = orjson.loads(connection.recv_bytes())
        working_size = WorkingSize(**size) if size else None
        data = connection.recv_bytes()
        # SIGPROF's default action ends the process wherever it is, inside a decoder's C code too.
        signal.setitimer(signal.ITIMER_PROF, limits.decode_timeout_s)
        try:
            picture = decode(data, limits, working_size=working_size)
        except VisionError as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send_bytes(orjson.dumps(error.problem() | {"log_detail": error.log_detail}))
            continue
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer = {
            "shape": picture.pixels.shape,
            "width": picture.width,
            "height": picture.height,
            "format": picture.format,
            "recycle": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > _RECYCLE_RSS_BYTES,
        }
        connection.send_bytes(orjson.dumps(answer))
        connection.send_bytes(np.ascontiguousarray(picture.pixels).data.cast("B"))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    with contextlib.suppress(EOFError, OSError), Connection(int(sys.argv[1])) as connection:
        _serve(connection)


if __name__ == "__main__":
    main()
