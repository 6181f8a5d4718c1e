"""What goes with a request through a service: until when it is worth working for, and what it holds of the memory.

The route class (`routes`) puts both in place; whatever works for the request asks here, however deep it sits. Tasks
that the request starts inherit them. Outside of a request there is no deadline and no bound.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .errors import Overloaded, UpstreamTimeout


class Capacity:
    """How many requests a service works on at once, and how many bytes they may hold together.

    Beyond it they are refused at once: a queue would hold their bodies, and its end would come too late for most.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def admit(self, *, timeout_s: float) -> Iterator[None]:
        """Makes what runs inside one request in flight with this time. Raises `Overloaded`."""
        if self.requests >= self._max_requests:
            raise Overloaded()
        self.requests += 1
        request = _Request(time.monotonic() + timeout_s, self)
        token = _current.set(request)
        try:
            yield
        finally:
            _current.reset(token)
            request.release()
            self.requests -= 1

    def take(self, count: int) -> None:
        if self.bytes + count > self._max_bytes:
            raise Overloaded("The server holds as much as it can; try again as Retry-After says.")
        self.bytes += count


@dataclass(slots=True)
class _Request:
    deadline: float
    capacity: Capacity
    held: int = 0

    def hold(self, count: int) -> None:
        self.capacity.take(count)
        self.held += count

    def release(self) -> None:
        self.capacity.bytes -= self.held
        self.held = 0


_current: ContextVar[_Request | None] = ContextVar("request in flight", default=None)


def time_left(at_most_s: float) -> float:
    """Seconds that the current request may still take, at most `at_most_s`. Raises `UpstreamTimeout` at its end."""
    if (request := _current.get()) is None:
        return at_most_s
    left_s = request.deadline - time.monotonic()
    if left_s <= 0:
        raise UpstreamTimeout("The time for this request is used up; try again.")
    return min(left_s, at_most_s)


def hold(count: int) -> None:
    """Count so many bytes as held by the current request until it ends. Raises `Overloaded` beyond the capacity."""
    if (request := _current.get()) is not None:
        request.hold(count)


@contextmanager
def holding_apart() -> Iterator[None]:
    """What is held inside is given back at its end, and not only with the request's."""
    if (request := _current.get()) is None:
        yield
        return
    part = _Request(request.deadline, request.capacity)
    token = _current.set(part)
    try:
        yield
    finally:
        _current.reset(token)
        part.release()
