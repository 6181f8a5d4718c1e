"""Calls to the other services of the stack: time-outs, limited retries, replicas, a circuit breaker, error translation.

A `Peer` stands for one service. Each of its addresses may name several hosts in DNS; every request goes to the replica
with the fewest requests in flight whose breaker is not open. Whatever goes wrong leaves here as a `VisionError`.
"""

import asyncio
import json as standard_json
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp
import orjson
from asgi_correlation_id import correlation_id
from yarl import URL

from .errors import (
    Overloaded,
    ReceiveTimeout,
    ServiceUnavailable,
    UpstreamError,
    UpstreamTimeout,
    VisionError,
)
from .inflight import time_left
from .routes import TIMEOUT_HEADER
from .schemas import ServiceStatus
from .web import INSTANCE_HEADER, REQUEST_ID_HEADER

logger = logging.getLogger(__name__)

BreakerState = Literal["closed", "open", "half-open"]

_CONNECT_TIMEOUT_S = 1.0
_FAILURES_TO_OPEN = 5
_OPEN_S = 2.0
_RESOLVE_EVERY_S = 5.0
# How long a replica's word that it works counts. Much shorter than the start of a model service, so that no replica
# comes back with another model meanwhile.
_INSTANCE_S = 1.0
# Below uvicorn's keep-alive of 75 s as the stack starts it, so that a reused connection is rarely a closed one.
_KEEPALIVE_EXPIRY_S = 30.0
# At most every tenth request may be a retry, or retries would multiply an overload.
_RETRY_RATIO = 0.1
_RETRY_RESERVE = 10.0
# A service gets a little less time than there is, so that it can say what it waited for in vain.
_TO_ANSWER_S, _TO_ANSWER_SHARE = 0.2, 0.1
# A call that had less than this share of the service's time-out says nothing about the service when it fails to end.
_FAIR_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful answer: the status, below 400, the parsed JSON, and which run of a model service gave it."""

    status: int
    body: Any
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A part of a form that is a file."""

    name: str
    data: bytes
    content_type: str


Form = Mapping[str, str | Sequence[str] | File]
"""A multipart form; a sequence makes a field of each of its values."""


class Breaker:
    """Opens after consecutive failures; when open, lets one trial through after a pause."""

    def __init__(
        self,
        failures_to_open: int = _FAILURES_TO_OPEN,
        open_s: float = _OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures_to_open = failures_to_open
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self._trial = False

    @property
    def state(self) -> BreakerState:
        if self._failures < self._failures_to_open:
            return "closed"
        return "open" if self._trial or self._clock() < self._open_until else "half-open"

    def begin(self) -> None:
        self._trial = self.state == "half-open"

    def succeeded(self) -> None:
        self._failures, self._trial = 0, False

    def failed(self) -> None:
        self._failures, self._trial = self._failures + 1, False
        self._open_until = self._clock() + self._open_s

    def timed_out(self, fair: bool) -> None:
        """The call was cut, after a `fair` time or before."""
        if fair:
            self.failed()
        else:
            self.abandoned()

    def abandoned(self) -> None:
        """The call ended without saying anything about the replica (its caller left)."""
        self._trial = False


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]  # whatever the case of its keys
    content: bytes


@dataclass(slots=True, eq=False)
class _Replica:
    base_url: str
    breaker: Breaker
    in_flight: int = 0
    # which run of the service was last heard from here, if any, and when that was asked
    instance: str | None = None
    asked_at: float = float("-inf")


class _NotSent(ServiceUnavailable):
    """The request never reached a replica, so that another try is safe."""

    def __init__(self, name: str, exc: Exception) -> None:
        super().__init__(
            f"The {name} service is not reachable; try again as Retry-After says.", log_detail=f"{name}: {exc!r}"
        )


class Peer:
    """One service behind one or more base addresses. `clock` is the breakers' time in seconds."""

    def __init__(
        self,
        name: str,
        urls: Sequence[str],
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._clock = clock
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._timeout_s = timeout_s
        self._replicas = {url: _Replica(url, Breaker(clock=clock)) for url in self._urls}
        self._resolved_at = float("-inf")
        self._resolving: asyncio.Task[None] | None = None
        self._retry_tokens = _RETRY_RESERVE
        self._asking = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None  # made with the first call: it belongs to a loop

    async def aclose(self) -> None:
        if self._resolving is not None:
            self._resolving.cancel()
        if self._session is not None:
            await self._session.close()

    @property
    def breaker(self) -> BreakerState:
        """The best state among the replicas."""
        states = {replica.breaker.state for replica in self._replicas.values()}
        return "closed" if "closed" in states else "half-open" if "half-open" in states else "open"

    async def get(self, path: str, **kwargs: Any) -> Any:
        return (await self.call("GET", path, **kwargs)).body

    async def post(self, path: str, **kwargs: Any) -> Any:
        return (await self.call("POST", path, **kwargs)).body

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        json: Any = None,
        content: bytes | None = None,
        content_type: str | None = None,
        form: Form | None = None,
        idempotent: bool = True,
        timeout_s: float | None = None,
    ) -> Reply:
        """The peer's answer.

        Raises what the peer answered as its `VisionError`; `ServiceUnavailable` when no replica can be reached,
        `UpstreamTimeout` when the answer is not complete within `timeout_s` or the time that the request in flight
        has left, `UpstreamError` for anything else.
        A request that never left is tried once more elsewhere, one that broke off only if `idempotent`; a GET or
        DELETE on a kept connection that turns out to be closed goes out again on a new one in any case.
        """
        timeout_s = time_left(min(timeout_s or self._timeout_s, self._timeout_s))
        deadline = time.monotonic() + timeout_s
        headers = {"Accept": "application/json"}
        if (request_id := correlation_id.get()) is not None:
            headers[REQUEST_ID_HEADER] = request_id
        if json is not None:
            content, content_type = json_bytes(json), "application/json"
        if content_type is not None:
            headers["Content-Type"] = content_type
        if params:
            path = f"{path}?{urlencode(params)}"
        body = content if form is None else form

        self._retry_tokens = min(_RETRY_RESERVE, self._retry_tokens + _RETRY_RATIO)
        try:
            async with asyncio.timeout(timeout_s):
                await self._resolve_if_due()
                replica = self._choose(None)
                try:
                    return await self._send(replica, method, path, body, headers, deadline)
                except VisionError as error:
                    if not self._may_retry(error, idempotent):
                        raise
                    await asyncio.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - jitter
                    if isinstance(error, _NotSent):
                        await self._resolve()  # a restarted container has a new address
                    return await self._send(self._choose(replica), method, path, body, headers, deadline)
        except TimeoutError:
            raise UpstreamTimeout(f"The {self.name} service did not answer in time; try again.") from None

    async def status(self, timeout_s: float = 1.0) -> ServiceStatus:
        """What the peer says of itself on `/readyz`; `unavailable` when it says nothing. Never raises."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._resolve_if_due()
                best = ServiceStatus(status="unavailable")
                for replica in self._replicas.values():
                    answer = await self._ask_status(replica, timeout_s)
                    if answer is not None and answer.status == "ok":
                        return answer
                    best = answer or best
                return best
        except TimeoutError:
            return ServiceStatus(status="unavailable")

    async def instances(self) -> frozenset[str]:
        """The runs of the service that work: what its replicas said within the last second, or say when asked now."""
        async with self._asking:
            await asyncio.gather(
                *(self._ask_instance(replica) for replica in self._replicas.values() if self._is_due(replica))
            )
        return frozenset(replica.instance for replica in self._replicas.values() if replica.instance is not None)

    def _is_due(self, replica: _Replica) -> bool:
        return self._clock() - replica.asked_at > _INSTANCE_S

    async def _ask_instance(self, replica: _Replica) -> None:
        found = await self._ask_status(replica, _INSTANCE_S)
        replica.instance = found.instance if found is not None and found.status == "ok" else None
        replica.asked_at = self._clock()

    async def _ask_status(self, replica: _Replica, timeout_s: float) -> ServiceStatus | None:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._exchange("GET", f"{replica.base_url}/readyz", None, {})
            return ServiceStatus.model_validate_json(answer.content)
        except (aiohttp.ClientError, OSError, ValueError):
            return None

    def _may_retry(self, error: VisionError, idempotent: bool) -> bool:
        broken_off = isinstance(error, UpstreamError) and error.__cause__ is not None
        another = len(self._replicas) > 1 and isinstance(error, Overloaded | ServiceUnavailable)
        if not (isinstance(error, _NotSent) or another or (broken_off and idempotent)) or self._retry_tokens < 1:
            return False
        self._retry_tokens -= 1
        return True

    def _choose(self, not_this: _Replica | None) -> _Replica:
        usable = [replica for replica in self._replicas.values() if replica.breaker.state != "open"]
        if len(usable) > 1 and not_this is not None:
            usable = [replica for replica in usable if replica is not not_this]
        if not usable:
            raise ServiceUnavailable(f"The {self.name} service is not reachable; try again as Retry-After says.")
        least = min(replica.in_flight for replica in usable)
        return random.choice([replica for replica in usable if replica.in_flight == least])  # noqa: S311

    async def _send(
        self,
        replica: _Replica,
        method: str,
        path: str,
        body: bytes | Form | None,
        headers: dict[str, str],
        deadline: float,
    ) -> Reply:
        left = max(0.001, deadline - time.monotonic())
        theirs = left - min(_TO_ANSWER_S, left * _TO_ANSWER_SHARE)
        headers = {**headers, TIMEOUT_HEADER: str(int(theirs * 1000))}
        with self._observed(replica, deadline):
            answer = await self._exchange(method, replica.base_url + path, body, headers)
        if answer.status >= 400:
            raise self._error_of(answer)
        instance = answer.headers.get(INSTANCE_HEADER)
        replica.instance, replica.asked_at = instance, self._clock()
        try:
            # the standard parser keeps integers of any size, which metadata may hold
            return Reply(answer.status, standard_json.loads(answer.content), instance)
        except ValueError:
            raise UpstreamError(log_detail=f"{self.name} answered no JSON") from None

    async def _exchange(self, method: str, url: str, body: bytes | Form | None, headers: dict[str, str]) -> _Answer:
        """One request and its whole answer; of its time only that for connecting is bounded here."""
        if self._session is None:
            self._session = _new_session()
        data = body if body is None or isinstance(body, bytes) else _multipart(body)
        async with self._session.request(
            method, URL(url, encoded=True), data=data, headers=headers, allow_redirects=False
        ) as response:
            return _Answer(response.status, response.headers, await response.read())

    @contextmanager
    def _observed(self, replica: _Replica, deadline: float) -> Iterator[None]:
        """Counts the request in flight, tells the breaker how it went, and translates the client's exceptions."""
        fair = deadline - time.monotonic() >= self._timeout_s * _FAIR_SHARE
        replica.breaker.begin()
        replica.in_flight += 1
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            replica.breaker.failed()
            raise _NotSent(self.name, exc) from exc
        except (aiohttp.ClientError, OSError) as exc:
            replica.breaker.failed()
            raise UpstreamError(
                f"The {self.name} service broke off; try again.", log_detail=f"{self.name}: {exc!r}"
            ) from exc
        except asyncio.CancelledError:
            # by the time-out of `call`, or because the caller left before it
            replica.breaker.timed_out(fair and time.monotonic() >= deadline)
            raise
        except BaseException:
            replica.breaker.abandoned()
            raise
        else:
            replica.breaker.succeeded()
        finally:
            replica.in_flight -= 1

    def _error_of(self, answer: _Answer) -> VisionError:
        retry_after = answer.headers.get("Retry-After", "")
        try:
            problem = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            problem = None
        error = VisionError.from_problem(problem, retry_after=int(retry_after) if retry_after.isdecimal() else None)
        if isinstance(error, ReceiveTimeout):
            return UpstreamTimeout(
                f"The {self.name} service did not get the request in time; try again.",
                log_detail=f"{self.name}: {error.detail}",
            )
        if error is None or error.status in (401, 405, 500) or error.code == "not_found":
            # what the peer blames on its caller is our fault, not our client's
            return UpstreamError(
                f"The {self.name} service failed on this request; try again.",
                log_detail=f"{self.name} answered {answer.status}",
            )
        return error

    async def _resolve_if_due(self) -> None:
        if time.monotonic() - self._resolved_at < _RESOLVE_EVERY_S:
            return
        if self._resolving is None or self._resolving.done():
            self._resolving = asyncio.create_task(self._resolve(), name=f"resolve-{self.name}")
        if self._resolved_at == float("-inf"):  # later the old answer serves until the new one is there
            await asyncio.shield(self._resolving)

    async def _resolve(self) -> None:
        found: dict[str, _Replica] = {}
        for url in self._urls:
            for address in await _addresses_of(url):
                found[address] = self._replicas.get(address) or _Replica(address, Breaker(clock=self._clock))
        if found:
            self._replicas = found
        self._resolved_at = time.monotonic()


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # no bound on connections: how many requests there are is `inflight`'s business
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_EXPIRY_S),
        timeout=aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    )


def _multipart(form: Form) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in form.items():
        if isinstance(value, File):
            data.add_field(name, value.data, filename=value.name, content_type=value.content_type)
        else:
            for text in [value] if isinstance(value, str) else value:
                data.add_field(name, text)
    return data


def json_bytes(value: Any) -> bytes:
    """JSON, with integers of any size, which orjson refuses beyond 64 bits."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return standard_json.dumps(value, allow_nan=False).encode()


async def _addresses_of(url: str) -> list[str]:
    """The address with its host name replaced by each IP address that the name has; itself where there is none."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [url]
    # a replica's IPv4 and IPv6 addresses would count as two
    family = min(info[0] for info in infos)
    hosts = dict.fromkeys(str(info[4][0]) for info in infos if info[0] == family)
    return [
        urlunsplit(parts._replace(netloc=f"[{address}]:{port}" if ":" in address else f"{address}:{port}"))
        for address in hosts
    ]
