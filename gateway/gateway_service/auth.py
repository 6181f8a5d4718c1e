"""Who may call: API keys, the rate limit per key, and the limit on wrong keys per address."""

import hashlib
import hmac
import ipaddress
import math
import time
from collections.abc import Sequence

from fastapi import Request
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from visionstack.errors import RateLimited, Unauthorized
from visionstack.web import add_answer_header

API_KEY_HEADER = "X-API-Key"


class Gate:
    """Admits a request or raises `Unauthorized` or `RateLimited`, before any of its body is read.

    What is left of a key's rate stands on each of its answers (`RateLimit` and `RateLimit-Policy`, as the IETF's draft
    has them). Rates are counted over a sliding window.
    """

    def __init__(
        self, keys: Sequence[str], *, key_rate: RateLimitItem | None, failed_key_rate: RateLimitItem | None
    ) -> None:
        # Digests have one length, so that comparing them tells nothing about a key's length either.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._key_rate = key_rate
        self._failed_key_rate = failed_key_rate
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def admit(self, request: Request) -> None:
        key_number = self._match(request.headers.get(API_KEY_HEADER))
        if key_number is None:
            # A right key passes whatever came before, so that nobody can lock a site out from behind its own proxy.
            await self._hit(
                self._failed_key_rate, "failed-key", _sender(request), "Too many wrong API keys from this address"
            )
            raise Unauthorized()
        if (rate := self._key_rate) is None:
            return
        add_answer_header(request, "RateLimit-Policy", f'"key";q={rate.amount};w={rate.get_expiry()}')
        try:
            await self._hit(rate, "key", str(key_number), "This API key's rate limit is used up")
        finally:
            left = await self._limiter.get_window_stats(rate, "key", str(key_number))
            wait_s = max(0, math.ceil(left.reset_time - time.time()))
            add_answer_header(request, "RateLimit", f'"key";r={max(0, left.remaining)};t={wait_s}')

    def _match(self, offered: str | None) -> int | None:
        if offered is None:
            return None
        digest = hashlib.sha256(offered.encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return matches.index(True) if any(matches) else None

    async def _hit(self, rate: RateLimitItem | None, kind: str, who: str, sentence: str) -> None:
        if rate is None or await self._limiter.hit(rate, kind, who):
            return
        window = await self._limiter.get_window_stats(rate, kind, who)
        wait_s = max(1, math.ceil(window.reset_time - time.time()))
        raise RateLimited(f"{sentence} ({rate}); wait {wait_s} seconds.", retry_after=wait_s)


def _sender(request: Request) -> str:
    """Who sent it: the address, or of IPv6 the network of 2^64 addresses that a single client has."""
    host = request.client.host if request.client else "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a socket without addresses
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
