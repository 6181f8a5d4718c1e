"""The vector store as a Qdrant server, over its REST API.

Every write waits until the server has applied it. Nothing of a collection is remembered here between calls but which
payload indexes were already asked for, so that any number of these services can share one server.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from visionstack.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
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
from .filters import Condition
from .payload import ORIGINAL_ID_KEY, decode, encode
from .store import (
    COLLECTION_NAME,
    MAX_DEMANDED_INDEXES,
    CollectionConfig,
    CollectionInfo,
    NewPoint,
    ScoredPoint,
    StoredPoint,
)

logger = logging.getLogger(__name__)

_MODEL_KEY = "embedding_model"
# Below the server's 5 s, so that a reused connection is rarely one that it has just closed.
_KEEPALIVE_EXPIRY_S = 3.0
_MAX_CONNECTIONS = 64

_DISTANCES: dict[Distance, models.Distance] = {
    "cosine": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "euclid": models.Distance.EUCLID,
    "manhattan": models.Distance.MANHATTAN,
}
_DISTANCE_NAMES: dict[models.Distance, Distance] = {theirs: ours for ours, theirs in _DISTANCES.items()}
_INDEXES: dict[IndexKind, models.PayloadSchemaType] = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "bool": models.PayloadSchemaType.BOOL,
    "float": models.PayloadSchemaType.FLOAT,
}


class QdrantServerStore:
    """Methods as in `VectorStore`. `transport` replaces the network in tests."""

    engine = "qdrant server"

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        limits = httpx.Limits(
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=_MAX_CONNECTIONS,
            keepalive_expiry=_KEEPALIVE_EXPIRY_S,
        )
        self._client = AsyncQdrantClient(
            url=url,
            # as a header, because the client warns of a key sent over http, which is right inside the private network
            headers={"api-key": api_key} if api_key else None,
            timeout=max(1, round(timeout_s)),
            check_compatibility=False,
            limits=limits,
            trust_env=False,
            transport=transport,
        )
        self._deleting = asyncio.Lock()
        self._asked_indexes: set[tuple[str, str]] = set()
        self._unindexable: set[tuple[str, str]] = set()

    async def open(self) -> None:
        """The server may come later."""

    async def close(self) -> None:
        await self._client.close()

    async def ping(self) -> None:
        # unlike the probes of the server, this also tells whether the key is right
        async with self._translated():
            await self._client.get_collections()

    async def collections(self) -> list[CollectionInfo]:
        async with self._translated():
            names = sorted(found.name for found in (await self._client.get_collections()).collections)
        infos: list[CollectionInfo] = []
        for name in names:
            # what others keep on this server under names or in shapes that cannot be used here
            if COLLECTION_NAME.fullmatch(name):
                try:
                    infos.append(await self.collection(name))
                except (CollectionNotFound, CollectionExists):
                    continue
        return infos

    async def collection(self, name: str) -> CollectionInfo:
        async with self._translated(name):
            info = await self._client.get_collection(name)
        vectors = info.config.params.vectors
        if not isinstance(vectors, models.VectorParams) or vectors.multivector_config is not None:
            raise CollectionExists(
                f"The collection {name} was made by another program and does not hold one vector a point; "
                "choose another name."
            )
        model = (info.config.metadata or {}).get(_MODEL_KEY)
        config = CollectionConfig(
            name, vectors.size, _DISTANCE_NAMES[vectors.distance], model if isinstance(model, str) else None
        )
        return CollectionInfo(config, info.points_count or 0, info.status.value)

    async def create_collection(self, config: CollectionConfig) -> None:
        self._forget(config.name)
        async with self._translated(config.name):
            await self._client.create_collection(
                config.name,
                vectors_config=models.VectorParams(size=config.vector_dim, distance=_DISTANCES[config.distance]),
                metadata={_MODEL_KEY: config.embedding_model} if config.embedding_model is not None else None,
            )
            await self._create_index(config.name, ORIGINAL_ID_KEY, "keyword", wait=True)

    async def record_model(self, name: str, embedding_model: str) -> None:
        async with self._translated(name):
            await self._client.update_collection(name, metadata={_MODEL_KEY: embedding_model})

    async def delete_collection(self, name: str) -> None:
        self._forget(name)
        async with self._translated(name):
            # the server says false where there was nothing to delete
            if not await self._client.delete_collection(name):
                raise CollectionNotFound

    async def upsert(self, collection: str, points: Sequence[NewPoint]) -> None:
        structs = [
            models.PointStruct(
                id=point.id,
                vector=list(point.vector),
                payload=encode(point.metadata, point.original_id, mirror_booleans=False),
            )
            for point in points
        ]
        async with self._translated(collection):
            _check_durable(await self._client.upsert(collection, structs, wait=True))

    async def search(
        self,
        collection: str,
        vector: Sequence[float],
        *,
        limit: int,
        conditions: Sequence[Condition] = (),
    ) -> list[ScoredPoint]:
        clauses = clauses_of(conditions, mirrored_booleans=False)
        async with self._translated(collection):
            await self._prepare_indexes(collection, clauses)
            found = await self._client.query_points(
                collection, query=list(vector), query_filter=_filter(clauses), limit=limit, with_payload=True
            )
        return [ScoredPoint(_plain_id(point.id), point.score, decode(point.payload)) for point in found.points]

    async def retrieve(self, collection: str, point_id: int | str, *, with_vector: bool = False) -> StoredPoint | None:
        async with self._translated(collection):
            found = await self._client.retrieve(collection, [point_id], with_payload=True, with_vectors=with_vector)
        return _first(found)

    async def find_by_original_id(
        self, collection: str, original_id: str, *, with_vector: bool = False
    ) -> StoredPoint | None:
        async with self._translated(collection):
            found, _ = await self._client.scroll(
                collection,
                scroll_filter=_filter([original_id_clause(original_id)]),
                limit=1,
                with_payload=True,
                with_vectors=with_vector,
            )
        return _first(found)

    async def delete(self, collection: str, point_ids: Sequence[int | str]) -> int:
        # the server does not say how many there were; in between no other deletion of ours may count them too
        async with self._translated(collection), self._deleting:
            found = await self._client.retrieve(
                collection, list(set(point_ids)), with_payload=False, with_vectors=False
            )
            if found:
                selector = models.PointIdsList(points=[point.id for point in found])
                _check_durable(await self._client.delete(collection, selector, wait=True))
        return len(found)

    async def _prepare_indexes(self, collection: str, clauses: Sequence[Clause]) -> None:
        times = time_paths(clauses)
        wanted = {
            path: kind
            for path, kind in wanted_indexes(clauses).items()
            if (collection, path) not in self._asked_indexes
            and not (kind == "float" and (path in times or (collection, path) in self._unindexable))
        }
        if not times and not wanted:
            return
        schema = (await self._client.get_collection(collection)).payload_schema
        for path in times:
            self._unindexable.add((collection, path))
            if path in schema and schema[path].data_type == models.PayloadSchemaType.FLOAT:
                await self._client.delete_payload_index(collection, path, wait=True)
        for path, kind in wanted.items():
            self._asked_indexes.add((collection, path))
            if path not in schema and len(schema) <= MAX_DEMANDED_INDEXES:
                logger.info("indexing %s of %s as %s", path, collection, kind)
                await self._create_index(collection, path, kind, wait=False)

    async def _create_index(self, collection: str, path: str, kind: IndexKind, *, wait: bool) -> None:
        await self._client.create_payload_index(collection, path, field_schema=_INDEXES[kind], wait=wait)

    def _forget(self, collection: str) -> None:
        self._asked_indexes = {asked for asked in self._asked_indexes if asked[0] != collection}
        self._unindexable = {path for path in self._unindexable if path[0] != collection}

    @asynccontextmanager
    async def _translated(self, collection: str | None = None) -> AsyncIterator[None]:
        """The one place where the client's exceptions become ours; also the time-out of all calls within."""
        try:
            async with asyncio.timeout(time_left(self._timeout_s)):
                yield
        except VisionError:
            raise
        except TimeoutError as exc:
            raise UpstreamTimeout("The vector store did not answer in time; try again.") from exc
        except ResourceExhaustedResponse as exc:
            raise Overloaded(retry_after=exc.retry_after_s, log_detail=repr(exc)) from exc
        except UnexpectedResponse as exc:
            raise _error_of(exc, collection) from exc
        except ResponseHandlingException as exc:
            raise _error_of_transport(exc.source) from exc
        except (ApiException, QdrantException, ValueError) as exc:
            raise UpstreamError("The vector store failed on this request; try again.", log_detail=repr(exc)) from exc


def _check_durable(result: models.UpdateResult) -> None:
    # `acknowledged` and `wait_timeout` also come with 200
    if result.status != models.UpdateStatus.COMPLETED:
        raise UpstreamTimeout(
            "The vector store did not confirm the write in time; send it again.", log_detail=f"status {result.status}"
        )


def _error_of(response: UnexpectedResponse, collection: str | None) -> VisionError:
    log_detail = str(response)
    match response.status_code:
        case 404 if collection is not None:
            return CollectionNotFound(log_detail=log_detail)
        case 409:
            return CollectionExists(log_detail=log_detail)
        case 400 if b"dimension error" in response.content:
            return DimensionMismatch(log_detail=log_detail)
        case 401 | 403:
            return ServiceUnavailable("The vector store refuses this service; see its log.", log_detail=log_detail)
        case 408 | 504:
            return UpstreamTimeout("The vector store did not answer in time; try again.", log_detail=log_detail)
        case 429:
            return Overloaded(log_detail=log_detail)
        case 502 | 503 | 507:
            return ServiceUnavailable(log_detail=log_detail)
        case 500 if b"No space left" in response.content:
            return ServiceUnavailable("The vector store's disk is full; free some space.", log_detail=log_detail)
    return UpstreamError("The vector store failed on this request; try again.", log_detail=log_detail)


def _error_of_transport(source: Exception) -> VisionError:
    match source:
        case httpx.ConnectTimeout():
            return ServiceUnavailable("The vector store is not reachable; try again as Retry-After says.")
        case httpx.PoolTimeout():
            return Overloaded(log_detail=repr(source))
        case httpx.TimeoutException():
            return UpstreamTimeout("The vector store did not answer in time; try again.", log_detail=repr(source))
        case httpx.TransportError():
            return ServiceUnavailable(
                "The vector store is not reachable; try again as Retry-After says.", log_detail=repr(source)
            )
    return UpstreamError("The vector store failed on this request; try again.", log_detail=repr(source))


def _first(records: Sequence[models.Record]) -> StoredPoint | None:
    for record in records:
        vector = cast("list[float] | None", record.vector)  # other collections are refused
        return StoredPoint(_plain_id(record.id), decode(record.payload), vector)
    return None


def _plain_id(point_id: models.ExtendedPointId) -> int | str:
    return point_id if isinstance(point_id, int) else str(point_id)


def _filter(clauses: Sequence[Clause]) -> models.Filter | None:
    if not clauses:
        return None
    return models.Filter(must=[models.Filter(should=[_condition(term) for term in clause]) for clause in clauses])


def _condition(term: Term) -> models.Condition:
    match term:
        case Keywords(path, texts):
            return models.FieldCondition(key=path, match=models.MatchAny(any=list(texts)))
        case Integers(path, numbers):
            return models.FieldCondition(key=path, match=models.MatchAny(any=list(numbers)))
        case Boolean(path, value):
            return models.FieldCondition(key=path, match=models.MatchValue(value=value))
        case Null(path):
            return models.IsNullCondition(is_null=models.PayloadField(key=path))
        case Numbers(path, gte, lte, gt, lt):
            return models.FieldCondition(key=path, range=models.Range(gte=gte, lte=lte, gt=gt, lt=lt))
        case Times(path, start, end, after, before):
            return models.FieldCondition(key=path, range=models.DatetimeRange(gte=start, lte=end, gt=after, lt=before))
