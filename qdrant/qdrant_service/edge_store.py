"""The vector store in this process: qdrant-edge, the engine of the Qdrant server as a library.

Every call of the engine holds the interpreter's lock from start to end, so that more threads would not run more of
them. One thread makes all calls one after another: no operation needs a lock, and the event loop waits for at most one
call at a time: for a search that compares 20,000 vectors of 512 numbers some milliseconds, hence the index.

Of a collection that grew large, a copy of the files gets an index by a process of its own (`edge_index.py`), then what
was written meanwhile, then the collection's place. Until that moment the files without index are the truth.
"""

import asyncio
import contextlib
import errno
import logging
import re
import shutil
import time
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
from .edge_disk import LogSync, check_space, copy_tree, disk_full, has_space, sync_tree, tree_size
from .edge_index import build_index
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

logger = logging.getLogger(__name__)

_MAX_WAITING = 256
# A collection gets a new index once this share of its points came after the last one.
_REINDEX_SHARE = 0.1
_LOOK_EVERY_S = 2.0
# Changes that are carried over in one call of the engine: about as long as a search takes.
_CARRIED_AT_ONCE = 100
# As the system says it: ENOSPC, EFBIG and EDQUOT.
_DISK_FULL = re.compile(r"os error (28|27|122)\b")


class QdrantEdgeStore:
    """Collections under one folder, for one process. Methods as in `VectorStore`."""

    engine = f"qdrant-edge {version('qdrant-edge-py')}"

    def __init__(self, path: Path, *, timeout_s: float, index_after: int = 0) -> None:
        """`index_after` is how many points a search compares one by one before the store builds an index; 0: never."""
        self._path = path
        self._timeout_s = timeout_s
        self._index_after = index_after
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="qdrant-edge")
        # waiting for the disk needs no lock of the interpreter's
        self._syncing = ThreadPoolExecutor(4, thread_name_prefix="qdrant-edge-sync")
        self._waiting = 0
        self._open = False
        self._indexing: asyncio.Task[None] | None = None
        # cleared while a collection's files are copied: nothing may change them
        self._changeable = asyncio.Event()
        self._changeable.set()
        # these are touched in the thread only
        self._registry: Registry
        self._shards: dict[str, Shard] = {}
        self._logs: dict[str, LogSync] = {}
        self._not_indexable: set[str] = set()

    async def open(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._open_all)
        self._open = True
        if self._index_after:
            self._indexing = asyncio.create_task(self._keep_indexed())

    async def close(self) -> None:
        if self._open:
            self._open = False
            if self._indexing:
                self._indexing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._indexing
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
        async with self._bounded():
            if conditions:  # which may need another index on the metadata
                await self._changeable.wait()
            return await self._run(lambda: self._shard(collection).search(vector, limit, conditions))

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
            await self._changeable.wait()
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

    async def _keep_indexed(self) -> None:
        try:
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                if name := await self._run(self._wanting_index):
                    await self._index_or_tell(name)
        except VisionError as error:
            logger.error("no more indexes until the next start: %s", error.log_detail)

    async def _index_or_tell(self, name: str) -> None:
        began = time.monotonic()
        logger.info("building an index for %s", name)
        try:
            await self._index(name)
        except CollectionNotFound:
            logger.info("%s was deleted before its index was built", name)
        except Exception as exc:
            self._not_indexable.add(name)
            logger.error("no index for %s until the next start: %s", name, getattr(exc, "log_detail", exc))
        else:
            logger.info("%s has an index after %.0f s", name, time.monotonic() - began)

    async def _index(self, name: str) -> None:
        """Let a copy with an index take the collection's place. What may change the files waits for the copying."""
        loop = asyncio.get_running_loop()
        self._changeable.clear()
        try:
            live, folder = await self._run(partial(self._begin_index, name))
            try:
                await loop.run_in_executor(self._syncing, partial(copy_tree, live.path, folder))
                self._changeable.set()
                await build_index(folder, live.config)
                copy = await self._run(partial(Shard.load, live.config, folder))
                while not await self._run(partial(self._carry, live, copy)):
                    pass
                await loop.run_in_executor(self._syncing, sync_tree, folder)
                await self._run(partial(self._swap, live, copy))
            finally:
                await self._run(partial(self._end_index, live, folder))
        finally:
            self._changeable.set()

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

    def _wanting_index(self) -> str | None:
        for name, shard in self._shards.items():
            unindexed, points = shard.unindexed()
            if name not in self._not_indexable and unindexed >= max(self._index_after, _REINDEX_SHARE * points):
                return name
        return None

    def _begin_index(self, name: str) -> tuple[Shard, Path]:
        shard = self._shard(name)
        shard.flush()
        # the copy, and what the engine writes anew of it
        if not has_space(self._path, 3 * tree_size(shard.path)):
            raise disk_full(f"{self._path}: an index of {name} needs three times the collection's size")
        shard.indexing = True
        shard.track_changes()
        return shard, self._registry.new_folder(name)

    def _carry(self, live: Shard, copy: Shard) -> bool:
        if self._shards.get(live.config.name) is not live:
            raise CollectionNotFound
        return live.carry_changes(copy, _CARRIED_AT_ONCE)

    def _swap(self, live: Shard, copy: Shard) -> None:
        while not self._carry(live, copy):
            pass
        copy.flush()
        sync_tree(copy.path)
        copy.config = live.config
        log = self._logs[copy.config.name]
        try:
            self._registry.move(copy.config, copy.path)
        except OSError as exc:
            log.fail(exc)  # nobody knows which of the two the disk names, so that neither may be written to
            raise
        self._serve(copy)
        log.retire()
        live.close()

    def _end_index(self, live: Shard, folder: Path) -> None:
        """Remove what nothing needs: the files without index, or the copy that came to nothing."""
        live.indexing = False
        live.track_changes(on=False)
        needed = {*self._registry.paths, *(shard.path for shard in self._shards.values())}
        for path in (live.path, folder):
            if path not in needed:
                shutil.rmtree(path, ignore_errors=True)

    def _record_model(self, name: str, embedding_model: str) -> None:
        shard = self._shard(name)
        config = replace(shard.config, embedding_model=embedding_model)
        self._registry.replace(config)
        shard.config = config

    def _delete_collection(self, name: str) -> None:
        shard = self._shard(name)
        folder = self._registry.remove(name)
        del self._shards[name], self._logs[name]
        self._not_indexable.discard(name)
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
