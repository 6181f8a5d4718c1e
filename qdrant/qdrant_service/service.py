"""What the vector API does, without HTTP: ids, collections and the rule which model's vectors may meet.

A collection remembers the model whose vectors it holds. It is recorded at creation, where the dimension is the model's,
and by the first picture that is embedded into a collection without a record or without points. From then on pictures
and texts of another model are refused: their vectors may have the same length, but mean something else. A caller's own
vectors are his own affair.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from visionstack.errors import CollectionExists, CollectionNotFound, InvalidRequest, PointNotFound, VisionError
from visionstack.schemas import (
    DEFAULT_COLLECTION,
    Collection,
    CreateCollectionRequest,
    Deleted,
    DeletePointsRequest,
    Embedding,
    Hit,
    Point,
    PointFields,
    SearchFields,
    Upserted,
)

from .embedder import Embedder, EmbeddingModel
from .filters import parse_filter
from .ids import ResolvedId, random_id, resolve_id
from .payload import ORIGINAL_ID_KEY, check_metadata
from .store import (
    CollectionConfig,
    CollectionInfo,
    NewPoint,
    StoredPoint,
    VectorStore,
    best,
    dimension_mismatch,
)
from .vectors import prepared

Embed = Callable[[], Awaitable[Embedding]]


class VectorService:
    """Everything raised is a `VisionError`."""

    def __init__(self, store: VectorStore, embedder: Embedder) -> None:
        self._store = store
        self._embedder = embedder
        self._creating = asyncio.Lock()

    # --- points -------------------------------------------------------------------------------------------------------

    async def upsert_embedded(self, fields: PointFields, embed: Embed) -> Upserted:
        """Store what `embed` gives. It is called last, so that a bad request costs no embedding."""
        point = _checked_point(fields)
        info = await self._find(fields.collection)
        embedding = await embed()
        model = EmbeddingModel(embedding.model, embedding.dim)
        if info is None:
            info = await self._create_default(model)
        if _check_model(info, model) != info.config.embedding_model:
            await self._store.record_model(info.config.name, model.name)
        return await self._upsert(point, fields, info.config, embedding.vector)

    async def upsert_vector(self, fields: PointFields, vector: list[float]) -> Upserted:
        point = _checked_point(fields)
        info = await self._find(fields.collection)
        if info is None:
            model = await self._embedder.describe()
            if len(vector) != model.dim:  # before the collection is there
                raise dimension_mismatch(fields.collection, model.dim, len(vector))
            prepared(vector, "cosine")
            info = await self._create_default(model)
        return await self._upsert(point, fields, info.config, vector)

    async def _upsert(
        self, point: ResolvedId, fields: PointFields, config: CollectionConfig, vector: list[float]
    ) -> Upserted:
        if len(vector) != config.vector_dim:
            raise dimension_mismatch(config.name, config.vector_dim, len(vector))
        new = NewPoint(point.point_id, prepared(vector, config.distance), dict(fields.metadata or {}), point.original)
        await self._store.upsert(config.name, [new])
        return Upserted(id=point.point_id, collection=config.name, original_id=point.original)

    async def search_embedded(self, fields: SearchFields, embed: Embed) -> list[Hit]:
        parse_filter(fields.filter_metadata)
        info = await self._find(fields.collection)
        if info is None:
            return []
        embedding = await embed()
        _check_model(info, EmbeddingModel(embedding.model, embedding.dim))
        return await self._search(fields, info.config, embedding.vector)

    async def search_vector(self, fields: SearchFields, vector: list[float]) -> list[Hit]:
        parse_filter(fields.filter_metadata)
        info = await self._find(fields.collection)
        return [] if info is None else await self._search(fields, info.config, vector)

    async def _search(self, fields: SearchFields, config: CollectionConfig, vector: list[float]) -> list[Hit]:
        if len(vector) != config.vector_dim:
            raise dimension_mismatch(config.name, config.vector_dim, len(vector))
        found = await self._store.search(
            config.name,
            prepared(vector, config.distance),
            limit=fields.limit,
            conditions=parse_filter(fields.filter_metadata),
        )
        return [
            Hit(id=point.id, score=point.score, metadata=point.metadata)
            for point in best(found, config.distance, fields.score_threshold)
        ]

    async def delete(self, request: DeletePointsRequest) -> Deleted:
        ids = {
            resolve_id(request.collection, value, field=f"ids.{index}").point_id
            for index, value in enumerate(request.ids)
        }
        if await self._find(request.collection) is None:
            return Deleted(deleted=0)
        return Deleted(deleted=await self._store.delete(request.collection, list(ids)))

    async def point(self, collection: str, id: str, *, with_vector: bool) -> Point:
        """The point of any id that a caller can have used."""
        point_id = resolve_id(collection, id).point_id
        if await self._find(collection) is None:
            raise PointNotFound
        return _as_point(await self._store.retrieve(collection, point_id, with_vector=with_vector))

    async def point_by_original_id(self, collection: str, id: str, *, with_vector: bool) -> Point:
        """Also finds an id that was kept as it is: the caller need not know which ones are."""
        resolved = resolve_id(collection, id)
        if await self._find(collection) is None:
            raise PointNotFound
        if resolved.original is None:
            found = await self._store.retrieve(collection, resolved.point_id, with_vector=with_vector)
        else:
            found = await self._store.find_by_original_id(collection, resolved.original, with_vector=with_vector)
        return _as_point(found)

    # --- collections --------------------------------------------------------------------------------------------------

    async def collections(self) -> list[Collection]:
        return [_as_collection(info) for info in await self._store.collections()]

    async def collection(self, name: str) -> Collection:
        return _as_collection(await self._store.collection(name))

    async def create_collection(self, request: CreateCollectionRequest) -> tuple[Collection, bool]:
        """The collection, and whether it is new."""
        vector_dim, name = await self._dim_and_model(request.vector_dim)
        try:
            await self._store.create_collection(CollectionConfig(request.name, vector_dim, request.distance, name))
        except CollectionExists:
            info = await self._store.collection(request.name)
            if (info.config.vector_dim, info.config.distance) != (vector_dim, request.distance):
                raise CollectionExists(
                    f"The collection {request.name} exists with {info.config.vector_dim} dimensions and "
                    f"{info.config.distance} distance; choose another name."
                ) from None
            return _as_collection(info), False
        return await self.collection(request.name), True

    async def delete_collection(self, name: str) -> None:
        await self._store.delete_collection(name)

    async def _dim_and_model(self, vector_dim: int | None) -> tuple[int, str | None]:
        """The dimension of a new collection, and the model's name where its vectors fit."""
        try:
            model = await self._embedder.describe()
        except VisionError:
            if vector_dim is None:
                raise
            return vector_dim, None  # a collection for the caller's own vectors needs no model
        if vector_dim in (None, model.dim):
            return model.dim, model.name
        return vector_dim, None

    async def _existing(self, name: str) -> CollectionInfo | None:
        try:
            return await self._store.collection(name)
        except CollectionNotFound:
            return None

    async def _find(self, name: str) -> CollectionInfo | None:
        """None only for the default collection before its first use, which is empty then and not unknown."""
        info = await self._existing(name)
        if info is None and name != DEFAULT_COLLECTION:
            raise CollectionNotFound
        return info

    async def _create_default(self, model: EmbeddingModel) -> CollectionInfo:
        async with self._creating:
            if (info := await self._existing(DEFAULT_COLLECTION)) is not None:
                return info
            with contextlib.suppress(CollectionExists):  # another process was faster
                await self._store.create_collection(
                    CollectionConfig(DEFAULT_COLLECTION, model.dim, "cosine", model.name)
                )
            return await self._store.collection(DEFAULT_COLLECTION)


def _checked_point(fields: PointFields) -> ResolvedId:
    point = random_id() if fields.id is None else resolve_id(fields.collection, fields.id)
    metadata: dict[str, Any] = fields.metadata or {}
    check_metadata(metadata)
    if ORIGINAL_ID_KEY in metadata:
        # accepted where it names this very point, as when a point that was read is sent again
        named = resolve_id(fields.collection, metadata[ORIGINAL_ID_KEY], field=f"metadata.{ORIGINAL_ID_KEY}")
        if named.point_id != point.point_id:
            raise InvalidRequest.for_field(
                f"metadata.{ORIGINAL_ID_KEY}", "names another point; send it as the request's id, or leave it out"
            )
    return point


def _check_model(info: CollectionInfo, model: EmbeddingModel) -> str:
    """The model that the collection holds once a picture of `model` is in it."""
    config = info.config
    if config.vector_dim != model.dim:
        raise dimension_mismatch(config.name, config.vector_dim, model.dim)
    if config.embedding_model not in (None, model.name) and info.points_count > 0:
        raise CollectionExists(
            f"The collection {config.name} holds vectors of {config.embedding_model}, this server embeds with "
            f"{model.name}; use another collection, or send vectors of {config.embedding_model}."
        )
    return model.name


def _as_collection(info: CollectionInfo) -> Collection:
    return Collection(
        name=info.config.name,
        vector_dim=info.config.vector_dim,
        distance=info.config.distance,
        points_count=info.points_count,
        status=info.status,
    )


def _as_point(point: StoredPoint | None) -> Point:
    if point is None:
        raise PointNotFound
    if point.vector is None:
        return Point(id=point.id, metadata=point.metadata)
    return Point(id=point.id, metadata=point.metadata, vector=point.vector)
