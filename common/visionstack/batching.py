"""The micro-batcher: requests queue, one thread runs the model, a batch is what queued while the model was busy.

No timer: a lone request waits for nothing. It knows neither HTTP nor torch. What it guarantees:

- a batch that fails is run again item by item, so that only the bad item's caller gets the error (never after running
  out of memory, where more tries make it worse);
- nothing but `close()` ends the loop;
- a waiter that is cancelled never shifts another's result, and work nobody waits for is not run;
- a full queue refuses at once with `Overloaded`, and so does one whose end would come too late: under a lasting load
  a queue would otherwise hold only work that runs out of time just before or while it is done;
- deadlines count from arrival;
- only items with equal keys share a batch;
- idle means no wake-ups.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .errors import InternalError, Overloaded, ServiceUnavailable, UpstreamTimeout, VisionError

logger = logging.getLogger(__name__)

# How much of what an item costs is the last batch's word.
_NEWS_SHARE = 0.3

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class BatcherStats:
    """Counters since the start; `busy_s` is the time the model thread worked."""

    batches: int = 0
    items: int = 0
    failed_items: int = 0
    refused: int = 0
    expired: int = 0
    busy_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiter(Generic[KeyT, ItemT, ResultT]):
    key: KeyT
    item: ItemT
    deadline: float
    future: asyncio.Future[ResultT]
    arrived: float = field(default_factory=time.monotonic)


class Batcher(Generic[KeyT, ItemT, ResultT]):
    """Collects items for `predict(key, items) -> results`, which runs in `executor` (one thread: the model's owner).

    `observe(key, size, queue_s, run_s)` is called after each batch, for metrics.
    """

    def __init__(
        self,
        predict: Callable[[KeyT, Sequence[ItemT]], Sequence[ResultT]],
        executor: Executor,
        *,
        max_batch: int,
        max_queue: int,
        observe: Callable[[KeyT, int, float, float], None] | None = None,
    ) -> None:
        self.stats = BatcherStats()
        self._predict = predict
        self._executor = executor
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observe = observe
        self._queue: deque[_Waiter[KeyT, ItemT, ResultT]] = deque()
        self._arrival = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._running = 0  # items in the batch that runs
        self._item_s: float | None = None  # what one costs, as part of a batch

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="batcher")

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def depth(self) -> int:
        """How many live waiters queue."""
        return sum(not waiter.future.done() for waiter in self._queue)

    async def submit(self, key: KeyT, item: ItemT, *, timeout_s: float) -> ResultT:
        """The model's result for one item.

        Raises `Overloaded` when the queue is full or too long for `timeout_s`, `UpstreamTimeout` when the result is not
        there within `timeout_s` seconds of the call, `ServiceUnavailable` when the batcher is closed, and what
        `predict` raised for the item.
        """
        if self._closed or not self.alive:
            raise ServiceUnavailable("The model is not running; try again as Retry-After says.")
        if len(self._queue) >= self._max_queue:
            self._queue = deque(waiter for waiter in self._queue if not waiter.future.done())
            if len(self._queue) >= self._max_queue:
                self.stats.refused += 1
                raise Overloaded("The model's queue is full; try again as Retry-After says.")
        if (wait_s := self._expected_s()) > timeout_s:
            self.stats.refused += 1
            raise Overloaded(
                "The model's queue is too long for the time there is; try again as Retry-After says.",
                retry_after=math.ceil(wait_s - timeout_s),
            )
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiter(key, item, time.monotonic() + timeout_s, future))
        self._arrival.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            # asyncio.timeout has cancelled the future, so the loop skips the item
            if not future.cancelled():
                raise  # the model's own TimeoutError
            self.stats.expired += 1
            raise UpstreamTimeout("The model did not answer in time; try again.") from None

    def _expected_s(self) -> float:
        """When an item that comes now would have its result, as far as is known; nothing when none is ahead of it."""
        ahead = self._running + self.depth
        if not ahead or self._item_s is None:
            return 0.0
        return (ahead + min(self._max_batch, ahead)) * self._item_s

    async def close(self) -> None:
        """End the loop after the batch in flight; fail what still waits."""
        self._closed = True
        self._arrival.set()
        if self._task is not None:
            await self._task
        self._fail(self._queue, ServiceUnavailable("The service is stopping; try again as Retry-After says."))
        self._queue.clear()

    async def _run(self) -> None:
        while True:
            await self._arrival.wait()
            if self._closed:
                return
            batch = self._take_batch()
            if not batch:
                self._arrival.clear()
                continue
            try:
                await self._run_batch(batch)
            except Exception as exc:  # a fault of our own must not end the loop
                logger.exception("batcher: unexpected error")
                self._fail(batch, InternalError(log_detail=repr(exc)))

    def _take_batch(self) -> list[_Waiter[KeyT, ItemT, ResultT]]:
        """The oldest live waiter and those behind it with an equal key, in order of arrival."""
        batch: list[_Waiter[KeyT, ItemT, ResultT]] = []
        rest: deque[_Waiter[KeyT, ItemT, ResultT]] = deque()
        now = time.monotonic()
        for waiter in self._queue:
            if waiter.future.done() or waiter.deadline <= now:
                continue  # cancelled, or its submit() is about to time out
            if len(batch) < self._max_batch and (not batch or waiter.key == batch[0].key):
                batch.append(waiter)
            else:
                rest.append(waiter)
        self._queue = rest
        return batch

    async def _run_batch(self, batch: list[_Waiter[KeyT, ItemT, ResultT]]) -> None:
        try:
            results = await self._call(batch)
        except Exception as exc:
            if _out_of_memory(exc):
                error = Overloaded("The model ran out of memory on this load; try again.", log_detail=repr(exc))
                self._fail(batch, error)
                return
            if len(batch) == 1:
                self._fail(batch, exc)
                return
            logger.warning("batch of %d failed (%r); running its items singly", len(batch), exc)
            for waiter in batch:
                if not waiter.future.done():
                    await self._run_batch([waiter])
        else:
            for waiter, result in zip(batch, results, strict=True):
                if not waiter.future.done():
                    waiter.future.set_result(result)

    async def _call(self, batch: list[_Waiter[KeyT, ItemT, ResultT]]) -> Sequence[ResultT]:
        key, items = batch[0].key, [waiter.item for waiter in batch]
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        self._running = len(batch)
        try:
            results = await loop.run_in_executor(self._executor, self._predict, key, items)
        finally:
            run_s = time.monotonic() - started
            self.stats.batches += 1
            self.stats.items += len(batch)
            self.stats.busy_s += run_s
            self._running = 0
            item_s = run_s / len(batch)
            self._item_s = item_s if self._item_s is None else self._item_s + _NEWS_SHARE * (item_s - self._item_s)
            if self._observe is not None:
                self._observe(key, len(batch), started - batch[0].arrived, run_s)
        if len(results) != len(items):
            raise InternalError(log_detail=f"the model returned {len(results)} results for {len(items)} items")
        return results

    def _fail(self, waiters: Iterable[_Waiter[KeyT, ItemT, ResultT]], exc: Exception) -> None:
        error = exc if isinstance(exc, VisionError) else InternalError(log_detail=repr(exc))
        if error is not exc:
            error.__cause__ = exc
        for waiter in waiters:
            if not waiter.future.done():
                self.stats.failed_items += 1
                waiter.future.set_exception(error)


def _out_of_memory(exc: Exception) -> bool:
    # torch.OutOfMemoryError is a RuntimeError, and this module does not import torch
    return isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError"
