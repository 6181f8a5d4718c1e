"""Who may call: API keys, the rate limit per key, and the limit on wrong keys per address."""

import hashlib
import hmac
import math
import time
from collections.abc import Sequence

from fastapi import Request
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from visionstack.errors import RateLimited, Unauthorized

API_KEY_HEADER = "X-API-Key"


class Gate:
    """Admits a request or raises `Unauthorized` or `RateLimited`, before any of its body is read."""

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
            address = request.client.host if request.client else "unknown"
            await self._count(self._failed_key_rate, "failed-key", address, "Too many wrong API keys from this address")
            raise Unauthorized()
        await self._count(self._key_rate, "key", str(key_number), "This API key's rate limit is used up")

    def _match(self, offered: str | None) -> int | None:
        if offered is None:
            return None
        digest = hashlib.sha256(offered.encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return matches.index(True) if any(matches) else None

    async def _count(self, rate: RateLimitItem | None, kind: str, who: str, sentence: str) -> None:
        if rate is None or await self._limiter.hit(rate, kind, who):
            return
        window = await self._limiter.get_window_stats(rate, kind, who)
        wait_s = max(1, math.ceil(window.reset_time - time.time()))
        raise RateLimited(f"{sentence} ({rate}); wait {wait_s} seconds.", retry_after=wait_s)
