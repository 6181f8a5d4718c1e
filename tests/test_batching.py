"""The batcher's promises (see its module docstring), each as a test."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from visionstack.batching import Batcher
from visionstack.errors import InternalError, InvalidImage, Overloaded, ServiceUnavailable, UpstreamTimeout

pytestmark = pytest.mark.anyio

Predict = Callable[[str, Sequence[int]], Sequence[int]]


class Doubler:
    """Doubles numbers; a call waits until `gate` is open, so that a test decides when the model is busy."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.calls: list[tuple[str, list[int]]] = []
        self.threads: set[int] = set()

    def __call__(self, key: str, items: Sequence[int]) -> Sequence[int]:
        self.calls.append((key, list(items)))
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(10)
        return [2 * item for item in items]

    async def until_busy(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


@asynccontextmanager
async def running(predict: Predict, max_batch: int = 8, max_queue: int = 64) -> AsyncIterator[Batcher[str, int, int]]:
    with ThreadPoolExecutor(1) as executor:
        batcher: Batcher[str, int, int] = Batcher(predict, executor, max_batch=max_batch, max_queue=max_queue)
        batcher.start()
        try:
            yield batcher
        finally:
            await batcher.close()


async def spin() -> None:
    """Let every ready task run up to its next wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def submit_all(
    batcher: Batcher[str, int, int], items: Sequence[int], key: str = "k", timeout_s: float = 10
) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(batcher.submit(key, item, timeout_s=timeout_s)) for item in items]


async def test_what_queues_while_the_model_is_busy_is_one_batch_in_order() -> None:
    model = Doubler()
    async with running(model) as batcher:
        model.gate.clear()
        first = submit_all(batcher, [1])
        await model.until_busy()
        rest = submit_all(batcher, [2, 3, 4])
        await spin()
        model.gate.set()
        assert await asyncio.gather(*first, *rest) == [2, 4, 6, 8]
    assert model.calls == [("k", [1]), ("k", [2, 3, 4])]
    assert len(model.threads) == 1
    assert (batcher.stats.batches, batcher.stats.items) == (2, 4)


async def test_a_queue_whose_end_would_come_too_late_takes_no_more() -> None:
    item_s = 0.05
    model = Doubler()

    def slow(key: str, items: Sequence[int]) -> Sequence[int]:
        threading.Event().wait(item_s * len(items))
        return model(key, items)

    async with running(slow) as batcher:
        assert await batcher.submit("k", 1, timeout_s=10) == 2  # from here on it knows
        model.gate.clear()
        ahead = submit_all(batcher, [2, 3])
        await model.until_busy()
        await model.until_busy()
        with pytest.raises(Overloaded) as refused:
            await batcher.submit("k", 4, timeout_s=3 * item_s)
        assert refused.value.retry_after == 1
        behind = submit_all(batcher, [5])
        await spin()
        model.gate.set()
        assert await asyncio.gather(*ahead, *behind) == [4, 6, 10]
        with pytest.raises(UpstreamTimeout):  # with nothing ahead what is known may be wrong, so it is tried
            await batcher.submit("k", 6, timeout_s=item_s / 2)
    assert (batcher.stats.refused, batcher.stats.expired) == (1, 1)


async def test_a_batch_holds_at_most_max_batch_items() -> None:
    model = Doubler()
    async with running(model, max_batch=2) as batcher:
        model.gate.clear()
        tasks = submit_all(batcher, [0])
        await model.until_busy()
        tasks += submit_all(batcher, [1, 2, 3, 4, 5])
        await spin()
        model.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]
    assert [items for _, items in model.calls] == [[0], [1, 2], [3, 4], [5]]


async def test_only_equal_keys_share_a_batch() -> None:
    model = Doubler()
    async with running(model) as batcher:
        model.gate.clear()
        tasks = submit_all(batcher, [0])
        await model.until_busy()
        for item, key in enumerate("abab", start=1):
            tasks += submit_all(batcher, [item], key=key)
        await spin()
        model.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]
    assert model.calls[1:] == [("a", [1, 3]), ("b", [2, 4])]


async def test_a_failing_batch_fails_only_its_bad_item() -> None:
    model = Doubler()

    def predict(key: str, items: Sequence[int]) -> Sequence[int]:
        results = model(key, items)
        if 13 in items:
            raise InvalidImage("thirteen")
        return results

    async with running(predict) as batcher:
        model.gate.clear()
        tasks = submit_all(batcher, [0])
        await model.until_busy()
        tasks += submit_all(batcher, [1, 13, 2])
        await spin()
        model.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [results[0], results[1], results[3]] == [0, 2, 4]
        assert isinstance(results[2], InvalidImage)
        assert await batcher.submit("k", 5, timeout_s=5) == 10
    assert [items for _, items in model.calls] == [[0], [1, 13, 2], [1], [13], [2], [5]]


@pytest.mark.parametrize("error", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})()])
async def test_out_of_memory_is_not_tried_again(error: Exception) -> None:
    model = Doubler()

    def predict(key: str, items: Sequence[int]) -> Sequence[int]:
        model(key, items)
        if len(items) > 1:
            raise error
        return items

    async with running(predict) as batcher:
        model.gate.clear()
        first = submit_all(batcher, [0])
        await model.until_busy()
        rest = submit_all(batcher, [1, 2])
        await spin()
        model.gate.set()
        await asyncio.gather(*first)
        results = await asyncio.gather(*rest, return_exceptions=True)
    assert all(isinstance(result, Overloaded) for result in results)
    assert [items for _, items in model.calls] == [[0], [1, 2]]


async def test_a_foreign_exception_becomes_an_internal_error_and_the_loop_lives_on() -> None:
    def predict(_: str, items: Sequence[int]) -> Sequence[int]:
        if items[0] < 0:
            raise ZeroDivisionError("secret detail")
        return items

    async with running(predict) as batcher:
        with pytest.raises(InternalError) as caught:
            await batcher.submit("k", -1, timeout_s=5)
        assert "secret" not in caught.value.detail
        assert await batcher.submit("k", 1, timeout_s=5) == 1
        assert batcher.alive


async def test_a_wrong_number_of_results_is_an_error_that_names_both() -> None:
    async with running(lambda _, items: [*items, 0]) as batcher:
        with pytest.raises(InternalError) as caught:
            await batcher.submit("k", 1, timeout_s=5)
    assert caught.value.log_detail == "the model returned 2 results for 1 items"


async def test_cancelled_waiters_shift_nobodys_result_and_are_not_run() -> None:
    model = Doubler()
    async with running(model) as batcher:
        model.gate.clear()
        first = submit_all(batcher, [0])
        await model.until_busy()
        tasks = submit_all(batcher, [1, 2, 3])
        await spin()
        tasks[1].cancel()
        first[0].cancel()  # its batch is running: nobody takes the result
        await spin()
        model.gate.set()
        assert await tasks[0] == 2
        assert await tasks[2] == 6
    assert [items for _, items in model.calls] == [[0], [1, 3]]


async def test_a_batch_that_nobody_waits_for_is_not_run() -> None:
    model = Doubler()
    async with running(model) as batcher:
        model.gate.clear()
        first = submit_all(batcher, [0])
        await model.until_busy()
        for task in submit_all(batcher, [1, 2]):
            await spin()
            task.cancel()
        await spin()
        model.gate.set()
        await asyncio.gather(*first)
        assert await batcher.submit("k", 9, timeout_s=5) == 18
    assert [items for _, items in model.calls] == [[0], [9]]


async def test_a_full_queue_refuses_at_once_but_counts_only_the_living() -> None:
    model = Doubler()
    async with running(model, max_queue=2) as batcher:
        model.gate.clear()
        tasks = submit_all(batcher, [0])
        await model.until_busy()
        tasks += submit_all(batcher, [1, 2])
        await spin()
        with pytest.raises(Overloaded) as caught:
            await batcher.submit("k", 3, timeout_s=5)
        assert caught.value.retry_after == 1
        tasks.pop().cancel()
        await spin()
        tasks += submit_all(batcher, [4])
        await spin()
        model.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 8]
    assert batcher.stats.refused == 1


async def test_deadlines_count_from_arrival_and_expired_items_are_not_run() -> None:
    model = Doubler()
    async with running(model) as batcher:
        model.gate.clear()
        first = submit_all(batcher, [0])
        await model.until_busy()
        late = submit_all(batcher, [1], timeout_s=0.01)
        (result,) = await asyncio.gather(*late, return_exceptions=True)
        assert isinstance(result, UpstreamTimeout)
        model.gate.set()
        await asyncio.gather(*first)
        assert await batcher.submit("k", 2, timeout_s=5) == 4
    assert [items for _, items in model.calls] == [[0], [2]]
    assert batcher.stats.expired == 1


async def test_a_timeout_error_of_the_model_is_not_taken_for_the_deadline() -> None:
    def predict(_: str, __: Sequence[int]) -> Sequence[int]:
        raise TimeoutError("the model's own")

    async with running(predict) as batcher:
        with pytest.raises(InternalError):
            await batcher.submit("k", 1, timeout_s=5)


async def test_close_fails_what_waits_and_refuses_what_comes() -> None:
    model = Doubler()
    async with running(model) as batcher:
        model.gate.clear()
        running_one = submit_all(batcher, [0])
        await model.until_busy()
        waiting = submit_all(batcher, [1])
        await spin()
        closing = asyncio.create_task(batcher.close())
        await spin()
        model.gate.set()
        await closing
        assert await running_one[0] == 0
        with pytest.raises(ServiceUnavailable):
            await waiting[0]
        with pytest.raises(ServiceUnavailable):
            await batcher.submit("k", 2, timeout_s=5)


async def test_an_idle_batcher_does_not_wake_up() -> None:
    model = Doubler()
    async with running(model) as batcher:
        await batcher.submit("k", 1, timeout_s=5)
        await spin()
        wakeups = 0
        take = batcher._take_batch

        def counting_take() -> list[object]:
            nonlocal wakeups
            wakeups += 1
            return list(take())

        batcher._take_batch = counting_take  # type: ignore[method-assign,assignment]
        await asyncio.sleep(0.2)  # the longer, the surer; no shorter one could fail a good batcher
        assert wakeups == 0
