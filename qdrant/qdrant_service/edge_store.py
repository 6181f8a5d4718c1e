"""The vector store in this process: qdrant-edge, the engine of the Qdrant server as a library.

Every call of the engine holds the interpreter's lock from start to end, so that more threads would not run more of
them. One thread makes all calls one after another: no operation needs a lock, and the event loop waits for at most one
call at a time (2 ms for a search over 20,000 vectors of 512 numbers).

Never `optimize()` here: it holds that lock for minutes at 100,000 points, and without it every search is exact.
"""

import asyncio
import errno
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import ParamSpec, TypeVar

from visionstack.errors import (
    CollectionExists,
    CollectionNotFound,
    Overloaded,
    ServiceUnavailable,
    UpstreamError,
    UpstreamTimeout,
    VisionError,
)
from visionstack.inflight import time_left

from .clauses import original_id_clause
from .edge_disk import LogSync, check_space, disk_full, sync_tree
from .edge_registry import Registry
from .edge_shard import Shard
from .filters import Condition
from .store import (
    CollectionConfig,
    CollectionInfo,
    NewPoint,
    ScoredPoint,
    StoredPoint,
    StoreOpenError,
)

P = ParamSpec("P")
T = TypeVar("T")

_MAX_WAITING = 256
# As the system says it: ENOSPC, EFBIG and EDQUOT.
_DISK_FULL = re.compile(r"os error (28|27|122)\b")


class QdrantEdgeStore:
    """Collections under one folder, for one process. Methods as in `VectorStore`."""

    engine = f"qdrant-edge {version('qdrant-edge-py')}"

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="qdrant-edge")
        # waiting for the disk needs no lock of the interpreter's
        self._syncing = ThreadPoolExecutor(4, thread_name_prefix="qdrant-edge-sync")
        self._waiting = 0
        self._open = False
        # these are touched in the thread only
        self._registry: Registry
        self._shards: dict[str, Shard] = {}
        self._logs: dict[str, LogSync] = {}

    async def open(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._open_all)
        self._open = True

    async def close(self) -> None:
        if self._open:
            self._open = False
            await asyncio.get_running_loop().run_in_executor(self._executor, self._close_all)
        self._executor.shutdown()
        self._syncing.shutdown()

    async def ping(self) -> None:
        if not self._open:
            raise ServiceUnavailable("The vector store is not open; try again as Retry-After says.")

    async def collections(self) -> list[CollectionInfo]:
        return await self._call(lambda: [self._shards[name].info() for name in sorted(self._shards)])

    async def collection(self, name: str) -> CollectionInfo:
        return await self._call(lambda: self._shard(name).info())

    async def create_collection(self, config: CollectionConfig) -> None:
        await self._call(self._create, config)

    async def record_model(self, name: str, embedding_model: str) -> None:
        await self._call(self._record_model, name, embedding_model)

    async def delete_collection(self, name: str) -> None:
        await self._call(self._delete_collection, name)

    async def upsert(self, collection: str, points: Sequence[NewPoint]) -> None:
        await self._write(collection, lambda shard: shard.upsert(points))

    async def search(
        self,
        collection: str,
        vector: Sequence[float],
        *,
        limit: int,
        conditions: Sequence[Condition] = (),
    ) -> list[ScoredPoint]:
        return await self._call(lambda: self._shard(collection).search(vector, limit, conditions))

    async def retrieve(self, collection: str, point_id: int | str, *, with_vector: bool = False) -> StoredPoint | None:
        return await self._call(lambda: self._shard(collection).retrieve(point_id, with_vector))

    async def find_by_original_id(
        self, collection: str, original_id: str, *, with_vector: bool = False
    ) -> StoredPoint | None:
        return await self._call(lambda: self._shard(collection).find(original_id_clause(original_id), with_vector))

    async def delete(self, collection: str, point_ids: Sequence[int | str]) -> int:
        return await self._write(collection, lambda shard: shard.delete(point_ids))

    async def _write(self, collection: str, change: Callable[[Shard], T]) -> T:
        """Apply a change to a collection's points, and return once it is on the disk."""

        def apply() -> tuple[T, LogSync]:
            shard = self._shard(collection)
            check_space(self._path)
            return change(shard), self._logs[collection]

        async with self._bounded():
            result, log = await self._run(apply)
            await log.flushed()
            return result

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._bounded():
            return await self._run(partial(function, *args, **kwargs))

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """In how many operations may wait, and in the time that one may take."""
        await self.ping()
        if self._waiting >= _MAX_WAITING:
            raise Overloaded("The vector store's queue is full; try again as Retry-After says.")
        self._waiting += 1
        try:
            async with asyncio.timeout(time_left(self._timeout_s)):
                yield
        except TimeoutError as exc:
            raise UpstreamTimeout("The vector store did not answer in time; try again.") from exc
        finally:
            self._waiting -= 1

    async def _run(self, call: Callable[[], T]) -> T:
        """In the store's thread; what still waits when its caller leaves is not run."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, _translated, call)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _open_all(self) -> None:
        registry = Registry.open(self._path)
        try:
            for name, config in registry.configs.items():
                path = registry.path(name)
                try:
                    self._serve(Shard.load(config, path))
                except Exception as exc:
                    raise StoreOpenError(f"QDRANT_PATH: {path} cannot be opened: {exc}") from exc
        except StoreOpenError:
            self._close_shards()
            registry.close()
            raise
        self._registry = registry

    def _close_all(self) -> None:
        self._close_shards()
        self._registry.close()

    def _close_shards(self) -> None:
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()
        self._logs.clear()

    def _serve(self, shard: Shard) -> None:
        self._shards[shard.config.name] = shard
        self._logs[shard.config.name] = LogSync(shard.path, self._syncing)

    def _shard(self, name: str) -> Shard:
        try:
            return self._shards[name]
        except KeyError:
            raise CollectionNotFound from None

    def _create(self, config: CollectionConfig) -> None:
        if config.name in self._shards:
            raise CollectionExists
        check_space(self._path)
        folder = self._registry.new_folder(config.name)
        shard = Shard.create(config, folder)
        sync_tree(folder)
        self._registry.add(config, folder)
        self._serve(shard)

    def _record_model(self, name: str, embedding_model: str) -> None:
        shard = self._shard(name)
        config = replace(shard.config, embedding_model=embedding_model)
        self._registry.replace(config)
        shard.config = config

    def _delete_collection(self, name: str) -> None:
        shard = self._shard(name)
        folder = self._registry.remove(name)
        del self._shards[name], self._logs[name]
        shard.close()
        # what stays behind is removed at the next start
        shutil.rmtree(folder, ignore_errors=True)


def _translated(call: Callable[[], T]) -> T:
    """The one place where the engine's exceptions become ours."""
    try:
        return call()
    except VisionError:
        raise
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise disk_full(repr(exc)) from exc
        raise ServiceUnavailable("The vector store cannot use its disk.", log_detail=repr(exc)) from exc
    except BaseException as exc:  # the engine knows no finer class, and its panics are not even an Exception
        if _DISK_FULL.search(str(exc)):
            raise disk_full(repr(exc)) from exc
        raise UpstreamError("The vector store failed on this request; try again.", log_detail=repr(exc)) from exc
