"""Answers of the model services, kept by what they depend on: the picture's bytes, the parameters, who answered.

It knows neither pictures nor services: keys are made and answers are checked by those who ask. Values are JSON, so that
a hit shares nothing with the answer that was kept, and their bytes can be bounded.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

# What an entry takes besides its value: keys, digests, the table's row.
_ENTRY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Key:
    """`digest` is the SHA-256 of the picture's bytes as they were sent, `parameters` all that shapes the answer."""

    service: str
    digest: bytes
    parameters: Hashable


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as JSON, and the process that gave it; None for what no process can change."""

    value: bytes
    instance: str | None


class ResultCache:
    """The answers used last, in at most `max_bytes`; with 0 it keeps none."""

    def __init__(self, max_bytes: int, registry: CollectorRegistry) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._lookups = Counter(
            "vision_result_cache_lookups", "Answers looked for.", ["service", "outcome"], registry=registry
        )
        Gauge("vision_result_cache_bytes", "Bytes of the answers kept.", registry=registry).set_function(
            lambda: float(self._bytes)
        )
        Gauge("vision_result_cache_entries", "Answers kept.", registry=registry).set_function(
            lambda: float(len(self._kept))
        )

    @property
    def enabled(self) -> bool:
        return self._max_bytes > 0

    def get(self, key: Key) -> Kept | None:
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, kept: Kept) -> None:
        """Keep an answer in place of the key's former one; the answers used longest ago make room."""
        self._drop(key)
        size = _size(kept)
        if size > self._max_bytes:
            return
        self._kept[key] = kept
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def count(self, service: str, *, hit: bool) -> None:
        self._lookups.labels(service, "hit" if hit else "miss").inc()

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= _size(kept)


def _size(kept: Kept) -> int:
    return len(kept.value) + _ENTRY_BYTES
