"""Decoding in processes of its own, which can be limited and killed: a hostile file costs its sender, nobody else.

Each worker is one long-lived child (`python -m visionstack.decoder`) that imports `images` and little else, with a
limit on its address space and, per picture, on its CPU seconds. A worker that dies is replaced; its caller gets
`InvalidImage`. As many pictures are decoded at once as there are workers, and together they have no more pixels than a
budget allows: a worker reads a picture's size from its header and waits for leave to decode it. That bounds the memory
of files that are what they say, at 20 bytes a pixel; `memory_bytes` per worker bounds that of those that are not.
Further callers wait in order, and not for long; what their files hold meanwhile is counted by `inflight`.
"""

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from .errors import ImageTooLarge, InvalidImage, Overloaded, ServiceUnavailable, UnsupportedMediaType, VisionError
from .images import ImageLimits, Picture, WorkingSize, decode, ppm_header, prepare_process
from .inflight import time_left
from .machine import available_memory, give_back_freed_memory, keep_freed_memory

_MiB = 1024 * 1024
# A worker that a huge picture has swollen gives its memory back by ending.
_RECYCLE_RSS_BYTES = 512 * _MiB
# What a worker may keep of one picture's memory for the next (a 4K WebP takes 130 MiB), and how long it waits for one
# before it gives it back.
_KEPT_BYTES = 192 * _MiB
_KEPT_S = 5.0
# What the hungriest format, WebP, takes while it is decoded, with something to spare.
_BYTES_A_PIXEL = 20
# Wall seconds that a CPU second may take on a crowded machine before a worker counts as stuck.
_WALL_FACTOR = 4.0
_START_TIMEOUT_S = 20.0

ResultT = TypeVar("ResultT")


class Decoder:
    """`start()`, then `decode()`, then `close()`; without `start()` a worker starts with its first picture.

    At most `max_waiting` callers wait, each at most `wait_s` seconds, for one of the `workers`, each of which may have
    `memory_bytes` of address space: by default twice what the hungriest format needs for `max_pixels`, and 1 GiB. The
    pictures that are decoded at once may together take `budget_bytes` (0: a quarter of the container's or machine's
    memory), and a single one whatever `max_pixels` needs.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        workers: int,
        max_waiting: int = 128,
        wait_s: float = 10.0,
        memory_bytes: int | None = None,
        budget_bytes: int = 0,
    ) -> None:
        self._wall_s = limits.decode_timeout_s * _WALL_FACTOR + _START_TIMEOUT_S
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._waiting = 0
        self._closed = False
        memory_bytes = memory_bytes or 1024 * _MiB + 2 * _BYTES_A_PIXEL * limits.max_pixels
        budget_bytes = budget_bytes or available_memory() // 4
        self._budget = _PixelBudget(max(limits.max_pixels, budget_bytes // _BYTES_A_PIXEL), wait_s)
        # so that what idle workers keep is no more than half of what working ones may take
        kept_bytes = min(_KEPT_BYTES, budget_bytes // (2 * workers))
        self._workers = [_Worker(limits, memory_bytes, kept_bytes, self._budget) for _ in range(workers)]
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
        self._budget.close()
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
            async with asyncio.timeout(time_left(self._wait_s)):
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


class _PixelBudget:
    """How many pixels all workers together may be decoding; who asks first is served first."""

    def __init__(self, pixels: int, wait_s: float) -> None:
        self._free = pixels
        self._wait_s = wait_s
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def take(self, pixels: int) -> bool:
        """Whether they could be had in time. Blocks."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            try:
                self._changed.wait_for(
                    lambda: self._closed or (self._waiting[0] is me and self._free >= pixels), self._wait_s
                )
                granted = not self._closed and self._waiting[0] is me and self._free >= pixels
                self._free -= pixels * granted
                return granted
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()

    def give_back(self, pixels: int) -> None:
        with self._changed:
            self._free += pixels
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Worker:
    """The parent's side of one child. All methods block and belong to one thread at a time, except `kill` and `close`,
    which may come from any."""

    def __init__(self, limits: ImageLimits, memory_bytes: int, kept_bytes: int, budget: _PixelBudget) -> None:
        self._setup = {"limits": asdict(limits), "memory_bytes": memory_bytes, "kept_bytes": kept_bytes}
        self._limits = limits
        self._budget = budget
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False
        self._closed = False

    def start(self) -> socket.socket:
        """A child that is ready for a picture. Raises `ServiceUnavailable` if it cannot be had."""
        try:
            if self._process is None or self._process.poll() is not None:
                self._launch()
            assert self._socket is not None
            if not self._ready:
                _receive(self._socket, at_most=0)
                self._ready = True
        except (EOFError, OSError, ValueError) as exc:
            status = self.discard()
            raise ServiceUnavailable(
                "Images cannot be decoded at the moment; try again as Retry-After says.",
                log_detail=f"a decoder process did not start, exit status {status}: {exc!r}",
            ) from exc
        return self._socket

    def _launch(self) -> None:
        self.discard()
        if self._closed:
            raise _stopping()
        self._socket, theirs = socket.socketpair()
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
        _send(self._socket, self._setup)

    def decode(self, data: bytes, working_size: WorkingSize | None) -> Picture:
        child = self.start()
        most = _MAX_HEADER_BYTES + 3 * self._limits.max_pixels
        taken = 0
        try:
            _send(child, working_size and asdict(working_size), data)
            answer, ppm = _receive(child, at_most=most)
            if "wants" in answer:
                wanted = min(max(0, int(answer["wants"])), self._limits.max_pixels)
                if self._budget.take(wanted):
                    taken = wanted
                _send(child, taken == wanted)
                answer, ppm = _receive(child, at_most=most)
            result = _rebuilt(answer, ppm)
            recycle = answer["recycle"]
        except (EOFError, OSError, ValueError, KeyError, TypeError) as exc:
            status = self.discard()
            self._relaunch()
            raise InvalidImage(
                f"The image could not be decoded within {self._limits.decode_timeout_s:g} seconds and the memory"
                " for one picture; save it again as an ordinary file.",
                log_detail=f"decoder process ended, exit status {status}, {type(exc).__name__}",
            ) from exc
        finally:
            self._budget.give_back(taken)
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
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = None
        return status


def _child_environment() -> dict[str, str]:
    """The same import path, and nothing of the rest: keys and tokens are none of a decoder's business."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "LD_"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}


_DECODE_ERRORS: dict[str, type[VisionError]] = {
    error.code: error for error in (ImageTooLarge, InvalidImage, Overloaded, UnsupportedMediaType)
}


def _rebuilt(answer: dict[str, Any], ppm: bytes) -> Picture | VisionError:
    if "code" in answer:
        return _DECODE_ERRORS[answer["code"]](answer["detail"], log_detail=answer["log_detail"])
    height, width = answer["shape"]
    header = ppm_header(width, height)
    if not ppm.startswith(header):
        raise ValueError("a decoder process sent no picture")
    pixels = np.frombuffer(ppm, np.uint8, offset=len(header)).reshape(height, width, 3)
    return Picture(pixels, answer["width"], answer["height"], answer["format"], ppm)


# --- between the two ------------------------------------------------------------------------------------------------

# JSON and raw bytes: a decoder that a file has taken over must not choose what is unpickled in the parent. A plain
# socket, because multiprocessing's connections read in pieces, which costs a large picture ten times as much.
_LENGTHS = struct.Struct("!IQ")
_MAX_MESSAGE_BYTES = 65_536
# of a PPM
_MAX_HEADER_BYTES = 32


def _send(to: socket.socket, message: object, payload: bytes | memoryview = b"", *, header: bytes = b"") -> None:
    """`header` and `payload` arrive as one payload."""
    encoded = orjson.dumps(message)
    to.sendall(_LENGTHS.pack(len(encoded), len(header) + len(payload)) + encoded + header)
    to.sendall(payload)


def _receive(source: socket.socket, *, at_most: int) -> tuple[Any, bytes]:
    """A message and its payload. Raises `EOFError` when the other end is closed, `ValueError` for what is too long."""
    message_size, payload_size = _LENGTHS.unpack(_read(source, _LENGTHS.size))
    if message_size > _MAX_MESSAGE_BYTES or payload_size > at_most:
        raise ValueError("a message of a decoder process is too long")
    return orjson.loads(_read(source, message_size)), _read(source, payload_size)


def _read(source: socket.socket, size: int) -> bytes:
    data = source.recv(size, socket.MSG_WAITALL)
    while len(data) < size:  # a signal came in between, or the end
        more = source.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            raise EOFError
        data += more
    return data


# --- the child ------------------------------------------------------------------------------------------------------


def _serve(parent: socket.socket) -> None:
    """Decodes until the parent's end is closed, as the kernel does for one that was killed too."""
    setup, _ = _receive(parent, at_most=0)
    limits, memory_bytes = ImageLimits(**setup["limits"]), setup["memory_bytes"]
    prepare_process(limits)
    keep_freed_memory(setup["kept_bytes"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # only Linux keeps such a limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    _send(parent, "ready")
    arrival = select.poll()  # select() knows low file numbers only
    arrival.register(parent, select.POLLIN)
    while True:
        if not arrival.poll(_KEPT_S * 1000):
            give_back_freed_memory()
        _answer(parent, limits)


def _answer(parent: socket.socket, limits: ImageLimits) -> None:
    size, data = _receive(parent, at_most=sys.maxsize)
    asked = False

    def permit(pixels: int) -> None:
        nonlocal asked
        if asked:  # a picture may be decoded twice, one after the other
            return
        asked = True
        _send(parent, {"wants": pixels})
        granted, _ = _receive(parent, at_most=0)
        if not granted:
            raise Overloaded("The memory for pictures is taken; try again as Retry-After says.")

    # SIGPROF's default action ends the process wherever it is, inside a decoder's C code too.
    signal.setitimer(signal.ITIMER_PROF, limits.decode_timeout_s)
    try:
        picture = decode(data, limits, working_size=WorkingSize(**size) if size else None, permit=permit)
    except VisionError as error:
        recycle = isinstance(error.__cause__, MemoryError) or _is_swollen()
        refusal = {"code": error.code, "detail": error.detail, "log_detail": error.log_detail, "recycle": recycle}
        _send(parent, refusal)
    else:
        message = {
            "shape": picture.pixels.shape[:2],
            "width": picture.width,
            "height": picture.height,
            "format": picture.format,
            "recycle": _is_swollen(),
        }
        height, width, _ = picture.pixels.shape
        _send(parent, message, picture.pixels.data.cast("B"), header=ppm_header(width, height))
    signal.setitimer(signal.ITIMER_PROF, 0)


def _is_swollen() -> bool:
    # Not getrusage(): its peak is inherited from the parent, in which a model may live.
    try:
        resident_pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:  # only Linux tells
        return False
    return resident_pages * resource.getpagesize() > _RECYCLE_RSS_BYTES


def main() -> None:
    with contextlib.suppress(EOFError, OSError), socket.socket(fileno=int(sys.argv[1])) as parent:
        _serve(parent)


if __name__ == "__main__":
    main()
