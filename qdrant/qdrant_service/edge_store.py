"""The vector store in this process: qdrant-edge, the engine of the Qdrant server as a library.

Every call of the engine holds the interpreter's lock from start to end, so that more threads would not run more of
them. One thread makes all calls one after another: no operation needs a lock, and the event loop waits for at most one
call at a time (2 ms for a search over 20,000 vectors of 512 numbers).

Never `optimize()` here: it holds that lock for minutes at 100,000 points, and without it every search is exact.
"""

import asyncio
import logging
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import qdrant_edge as edge

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
from visionstack.schemas import Distance

from .clauses import (
    Boolean,
    Clause,
    IndexKind,
    Integers,
    Keywords,
    Null,
    Numbers,
    Term,
    Times,
    clauses_of,
    original_id_clause,
    time_paths,
    wanted_indexes,
)
from .edge_registry import Registry
from .filters import Condition
from .payload import ORIGINAL_ID_KEY, decode, encode
from .store import (
    MAX_DEMANDED_INDEXES,
    CollectionConfig,
    CollectionInfo,
    NewPoint,
    ScoredPoint,
    StoredPoint,
    StoreOpenError,
    dimension_mismatch,
)

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_MAX_WAITING = 256
# An index is built in one go: 0.6 s at this many points. Larger collections belong on a server.
_MAX_POINTS_TO_INDEX = 50_000
# The engine's log of writes ends only here. Without it a start after a kill repeats every write since the last stop;
# with it the pause is 20 to 80 ms each time.
_FLUSH_EVERY = 1000

_DISTANCES: dict[Distance, edge.Distance] = {
    "cosine": edge.Distance.Cosine,
    "dot": edge.Distance.Dot,
    "euclid": edge.Distance.Euclid,
    "manhattan": edge.Distance.Manhattan,
}
_INDEXES: dict[IndexKind, edge.PayloadSchemaType] = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "bool": edge.PayloadSchemaType.Bool,
    "float": edge.PayloadSchemaType.Float,
}


class QdrantEdgeStore:
    """Collections under one folder, for one process. Methods as in `VectorStore`."""

    engine = f"qdrant-edge {version('qdrant-edge-py')}"

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="qdrant-edge")
        self._waiting = 0
        self._open = False
        # these two are touched in the thread only
        self._registry: Registry
        self._shards: dict[str, _Shard] = {}

    async def open(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._open_all)
        self._open = True

    async def close(self) -> None:
        if self._open:
            self._open = False
            await asyncio.get_running_loop().run_in_executor(self._executor, self._close_all)
        self._executor.shutdown()

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
        await self._call(lambda: self._shard(collection).upsert(points))

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
        return await self._call(lambda: self._shard(collection).delete(point_ids))

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the store's thread, within the time-out; what still waits then is not run."""
        await self.ping()
        if self._waiting >= _MAX_WAITING:
            raise Overloaded("The vector store's queue is full; try again as Retry-After says.")
        self._waiting += 1
        try:
            async with asyncio.timeout(time_left(self._timeout_s)):
                return await asyncio.get_running_loop().run_in_executor(
                    self._executor, _translated, partial(function, *args, **kwargs)
                )
        except TimeoutError as exc:
            raise UpstreamTimeout("The vector store did not answer in time; try again.") from exc
        finally:
            self._waiting -= 1

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _open_all(self) -> None:
        registry = Registry.open(self._path)
        shards: dict[str, _Shard] = {}
        try:
            for name, config in registry.configs.items():
                try:
                    shards[name] = _Shard(config, edge.EdgeShard.load(str(registry.path(name))))
                    shards[name].flush()
                except Exception as exc:
                    raise StoreOpenError(f"QDRANT_PATH: {registry.path(name)} cannot be opened: {exc}") from exc
        except StoreOpenError:
            for shard in shards.values():
                shard.close()
            registry.close()
            raise
        self._registry, self._shards = registry, shards

    def _close_all(self) -> None:
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()
        self._registry.close()

    def _shard(self, name: str) -> "_Shard":
        try:
            return self._shards[name]
        except KeyError:
            raise CollectionNotFound from None

    def _create(self, config: CollectionConfig) -> None:
        if config.name in self._shards:
            raise CollectionExists
        folder = self._registry.new_folder(config.name)
        shard = _Shard.create(config, folder)
        self._registry.add(config, folder)
        self._shards[config.name] = shard

    def _record_model(self, name: str, embedding_model: str) -> None:
        shard = self._shard(name)
        config = replace(shard.config, embedding_model=embedding_model)
        self._registry.replace(config)
        shard.config = config

    def _delete_collection(self, name: str) -> None:
        shard = self._shard(name)
        folder = self._registry.remove(name)
        del self._shards[name]
        shard.close()
        # what stays behind is removed at the next start
        shutil.rmtree(folder, ignore_errors=True)


class _Shard:
    """One collection in the engine. All methods run in the store's thread."""

    def __init__(self, config: CollectionConfig, shard: edge.EdgeShard) -> None:
        self.config = config
        self._shard = shard
        self._unflushed = 0
        self._unindexable: set[str] = set()

    @classmethod
    def create(cls, config: CollectionConfig, folder: Path) -> "_Shard":
        vectors = edge.EdgeVectorParams(size=config.vector_dim, distance=_DISTANCES[config.distance])
        # the shard has one segment, so that more threads would only wait
        shard = cls(config, edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=vectors, max_search_threads=1)))
        shard._create_index(ORIGINAL_ID_KEY, "keyword")
        shard.flush()
        return shard

    def close(self) -> None:
        self._shard.close()

    def flush(self) -> None:
        self._shard.flush()
        self._unflushed = 0

    def info(self) -> CollectionInfo:
        return CollectionInfo(self.config, self._shard.info().points_count, "green")

    def upsert(self, points: Sequence[NewPoint]) -> None:
        for point in points:
            self._check_length(point.vector)
        self._shard.update(
            edge.UpdateOperation.upsert_points(
                [
                    edge.Point(
                        id=point.id,
                        vector=list(point.vector),
                        payload=encode(point.metadata, point.original_id, mirror_booleans=True),
                    )
                    for point in points
                ]
            )
        )
        self._written(len(points))

    def search(self, vector: Sequence[float], limit: int, conditions: Sequence[Condition]) -> list[ScoredPoint]:
        self._check_length(vector)
        clauses = clauses_of(conditions, mirrored_booleans=True)
        self._prepare_indexes(clauses)
        found = self._shard.query(
            edge.QueryRequest(
                query=edge.Query.Nearest(list(vector)),
                filter=_filter(clauses),
                limit=limit,
                with_payload=True,
                with_vector=False,
            )
        )
        return [ScoredPoint(_plain_id(point.id), point.score, decode(point.payload)) for point in found]

    def retrieve(self, point_id: int | str, with_vector: bool) -> StoredPoint | None:
        return _first(self._shard.retrieve([point_id], True, with_vector))

    def find(self, clause: Clause, with_vector: bool) -> StoredPoint | None:
        found, _ = self._shard.scroll(
            edge.ScrollRequest(limit=1, filter=_filter([clause]), with_payload=True, with_vector=with_vector)
        )
        return _first(found)

    def delete(self, point_ids: Sequence[int | str]) -> int:
        found = [record.id for record in self._shard.retrieve(list(set(point_ids)), False, False)]
        if found:
            self._shard.update(edge.UpdateOperation.delete_points(found))
            self._written(len(found))
        return len(found)

    def _check_length(self, vector: Sequence[float]) -> None:
        if len(vector) != self.config.vector_dim:
            raise dimension_mismatch(self.config.name, self.config.vector_dim, len(vector))

    def _written(self, points: int) -> None:
        self._unflushed += points
        if self._unflushed >= _FLUSH_EVERY:
            self.flush()

    def _prepare_indexes(self, clauses: Sequence[Clause]) -> None:
        if not clauses:
            return
        info = self._shard.info()
        kinds = {path: index.data_type for path, index in info.payload_schema.items()}
        for path in time_paths(clauses):
            self._unindexable.add(path)
            if kinds.get(path) == edge.PayloadSchemaType.Float:
                self._shard.update(edge.UpdateOperation.delete_field_index(path))
                del kinds[path]
        if info.points_count > _MAX_POINTS_TO_INDEX:
            return
        for path, kind in wanted_indexes(clauses).items():
            blocked = kind == "float" and path in self._unindexable
            if path not in kinds and not blocked and len(kinds) <= MAX_DEMANDED_INDEXES:
                logger.info("indexing %s of %s as %s", path, self.config.name, kind)
                self._create_index(path, kind)
                kinds[path] = _INDEXES[kind]

    def _create_index(self, path: str, kind: IndexKind) -> None:
        self._shard.update(edge.UpdateOperation.create_field_index(path, _INDEXES[kind]))


def _translated(call: Callable[[], T]) -> T:
    """The one place where the engine's exceptions become ours."""
    try:
        return call()
    except VisionError:
        raise
    except OSError as exc:
        raise ServiceUnavailable("The vector store cannot use its disk.", log_detail=repr(exc)) from exc
    except BaseException as exc:  # the engine knows no finer class, and its panics are not even an Exception
        raise UpstreamError("The vector store failed on this request; try again.", log_detail=repr(exc)) from exc


def _first(records: Sequence[edge.Record]) -> StoredPoint | None:
    for record in records:
        vector = cast("list[float] | None", record.vector)  # shards are made with one unnamed vector
        return StoredPoint(_plain_id(record.id), decode(record.payload), vector)
    return None


def _plain_id(point_id: int | str | uuid.UUID) -> int | str:
    return point_id if isinstance(point_id, int) else str(point_id)


def _filter(clauses: Sequence[Clause]) -> edge.Filter | None:
    if not clauses:
        return None
    return edge.Filter(must=[edge.Filter(should=[_condition(term) for term in clause]) for clause in clauses])


def _condition(term: Term) -> edge.FieldCondition | edge.IsNullCondition:
    match term:
        case Keywords(path, values):
            return edge.FieldCondition(path, match=edge.MatchAny(list(values)))
        case Integers(path, numbers):
            return edge.FieldCondition(path, match=edge.MatchAny(list(numbers)))
        case Boolean(path, value):
            return edge.FieldCondition(path, match=edge.MatchValue(value))
        case Null(path):
            return edge.IsNullCondition(path)
        case Numbers(path, gte, lte, gt, lt):
            return edge.FieldCondition(path, range=edge.RangeFloat(gte=gte, lte=lte, gt=gt, lt=lt))
        case Times(path):
            bounds = {name: getattr(term, name) for name in ("gte", "lte", "gt", "lt")}
            return edge.FieldCondition(
                path,
                range=edge.RangeDateTime(**{name: bound and bound.isoformat() for name, bound in bounds.items()}),
            )
