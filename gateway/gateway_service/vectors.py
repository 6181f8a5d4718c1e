"""`/vectors/*`: store pictures as vectors, find similar ones, manage collections and points.

Pictures are fetched and decoded here; ids, filters and the store itself are qdrant-svc's business.
"""

import asyncio
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.convertors import Convertor, register_url_convertor

from visionstack.errors import UpstreamTimeout, VisionError
from visionstack.forms import MULTIPART, EmbedForm, SearchForm, UpsertForm, refuse_misfilled_fields
from visionstack.inflight import holding_apart, time_left
from visionstack.peers import File, json_bytes
from visionstack.schemas import (
    DEFAULT_COLLECTION,
    BatchError,
    BatchItem,
    Collection,
    CollectionDeleted,
    CollectionName,
    CreateCollectionRequest,
    Deleted,
    DeletePointsRequest,
    Embedding,
    EmbedTextRequest,
    EmbedUrlRequest,
    Hit,
    Metadata,
    Point,
    SearchFields,
    SearchTextRequest,
    SearchUrlRequest,
    SearchVectorRequest,
    UpsertBatchRequest,
    Upserted,
    UpsertUrlRequest,
    UpsertVectorRequest,
)
from visionstack.web import problem_of

from .intake import Intake, Received
from .responses import (
    COLLECTION_PROBLEMS,
    FILE_PROBLEMS,
    JSON_PROBLEMS,
    POINT_PROBLEMS,
    URL_PROBLEMS,
    VECTOR_FILE_PROBLEMS,
    VECTOR_PROBLEMS,
    VECTOR_URL_PROBLEMS,
)
from .services import Services, checked

# Pictures of one batch that are fetched, embedded or stored at a time: it must not crowd out everybody else.
_BATCH_AT_ONCE = 8


class _AnyText(Convertor[str]):
    """A path parameter that takes everything: Starlette's `path` stops at a line break, and an id may hold one."""

    regex = r"(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _AnyText())

_UPSERTED = TypeAdapter(Upserted)
_HITS = TypeAdapter(list[Hit])
_POINT = TypeAdapter(Point)
_COLLECTION = TypeAdapter(Collection)
_COLLECTIONS = TypeAdapter(list[Collection])
_DELETED = TypeAdapter(Deleted)
_COLLECTION_DELETED = TypeAdapter(CollectionDeleted)

CollectionQuery = Annotated[CollectionName, Query()]
CollectionPath = Annotated[CollectionName, Path()]


class VectorStore:
    """The calls to qdrant-svc."""

    def __init__(self, services: Services) -> None:
        self._peer = services.qdrant

    async def upsert_picture(
        self, picture: Received, id: int | str | None, metadata: Metadata | None, collection: str
    ) -> Upserted:
        # With the id made here a retried upsert replaces its own point instead of making a second one.
        form: dict[str, str | File] = {"id": str(uuid4() if id is None else id), "collection": collection}
        if metadata is not None:
            form["metadata_json"] = json_bytes(metadata).decode()
        form["file"] = (await picture.decoded()).file
        return checked(_UPSERTED, await self._peer.post("/upsert/file", form=form), "qdrant")

    async def upsert_vector(self, body: UpsertVectorRequest) -> Upserted:
        with_id = body if body.id is not None else body.model_copy(update={"id": str(uuid4())})
        return checked(_UPSERTED, await self._peer.post("/upsert/vector", json=with_id.model_dump()), "qdrant")

    async def search_picture(self, picture: Received, fields: SearchFields) -> list[Hit]:
        form: dict[str, str | File] = {"limit": str(fields.limit), "collection": fields.collection}
        if fields.score_threshold is not None:
            form["score_threshold"] = repr(fields.score_threshold)
        if fields.filter_metadata is not None:
            form["filter_metadata"] = json_bytes(fields.filter_metadata).decode()
        form["file"] = (await picture.decoded()).file
        return checked(_HITS, await self._peer.post("/search/file", form=form), "qdrant")

    async def search(self, path: str, body: SearchVectorRequest | SearchTextRequest) -> list[Hit]:
        return checked(_HITS, await self._peer.post(path, json=body.model_dump()), "qdrant")

    async def point(self, path: str, id: str, collection: str, with_vector: bool) -> Point:
        # ids may hold anything, so they travel as a parameter and never as a part of the path
        params = {"id": id, "collection": collection, "with_vector": int(with_vector)}
        return checked(_POINT, await self._peer.get(path, params=params), "qdrant")

    async def delete(self, body: DeletePointsRequest) -> Deleted:
        # a second try would count nothing, as the first one may have deleted
        return checked(_DELETED, await self._peer.post("/delete", json=body.model_dump(), idempotent=False), "qdrant")

    async def collections(self) -> list[Collection]:
        return checked(_COLLECTIONS, await self._peer.get("/collections"), "qdrant")

    async def collection(self, name: str) -> Collection:
        return checked(_COLLECTION, await self._peer.get(f"/collections/{name}"), "qdrant")

    async def create_collection(self, body: CreateCollectionRequest) -> tuple[Collection, bool]:
        reply = await self._peer.call("POST", "/collections", json=body.model_dump())
        return checked(_COLLECTION, reply.body, "qdrant"), reply.status == 201

    async def delete_collection(self, name: str) -> CollectionDeleted:
        reply = await self._peer.call("DELETE", f"/collections/{name}", idempotent=False)
        return checked(_COLLECTION_DELETED, reply.body, "qdrant")


def vectors_routers(
    intake: Intake,
    services: Services,
    *,
    json_route: type[APIRoute],
    batch_route: type[APIRoute],
    file_route: type[APIRoute],
) -> tuple[APIRouter, APIRouter, APIRouter]:
    """The routes with JSON bodies, the batch and the upload routes: they differ in how large or long one may be."""
    store = VectorStore(services)
    router = APIRouter(prefix="/vectors", tags=["vectors"], route_class=json_route)
    batch = APIRouter(prefix="/vectors", tags=["vectors"], route_class=batch_route)
    by_file = APIRouter(
        prefix="/vectors", tags=["vectors"], route_class=file_route, dependencies=[Depends(refuse_misfilled_fields())]
    )

    @router.post("/upsert", responses=VECTOR_URL_PROBLEMS)
    async def upsert(body: UpsertUrlRequest) -> Upserted:
        """Embed the image at a URL and store it; answered once it is durable."""
        return await store.upsert_picture(await intake.from_url(body.url), body.id, body.metadata, body.collection)

    @by_file.post("/upsert/file", responses=VECTOR_FILE_PROBLEMS)
    async def upsert_file(form: Annotated[UpsertForm, MULTIPART]) -> Upserted:
        """Embed an uploaded image and store it; answered once it is durable."""
        picture = await intake.from_upload(form.file)
        return await store.upsert_picture(picture, form.id, form.metadata_json, form.collection)

    @router.post("/upsert/vector", responses=VECTOR_PROBLEMS)
    async def upsert_vector(body: UpsertVectorRequest) -> Upserted:
        """Store a vector of the caller's own; answered once it is durable."""
        return await store.upsert_vector(body)

    @batch.post("/upsert/batch", responses=VECTOR_PROBLEMS)
    async def upsert_batch(body: UpsertBatchRequest) -> list[Upserted | BatchError]:
        """Embed and store up to 100 images; one result or error per item, in order."""
        return await _upsert_batch(body, intake, store)

    @router.post("/search", responses=VECTOR_URL_PROBLEMS)
    async def search(body: SearchUrlRequest) -> list[Hit]:
        """Stored images similar to the one at a URL, best first."""
        return await store.search_picture(await intake.from_url(body.url), body)

    @by_file.post("/search/file", responses=VECTOR_FILE_PROBLEMS)
    async def search_file(form: Annotated[SearchForm, MULTIPART]) -> list[Hit]:
        """Stored images similar to an uploaded one, best first."""
        return await store.search_picture(await intake.from_upload(form.file), form)

    @router.post("/search/vector", responses=VECTOR_PROBLEMS)
    async def search_vector(body: SearchVectorRequest) -> list[Hit]:
        """Stored points nearest to a vector, best first."""
        return await store.search("/search/vector", body)

    @router.post("/search/text", responses=VECTOR_PROBLEMS)
    async def search_text(body: SearchTextRequest) -> list[Hit]:
        """Stored images that fit a description, best first."""
        return await store.search("/search/text", body)

    @router.post("/embed", responses=URL_PROBLEMS)
    async def embed(body: EmbedUrlRequest) -> Embedding:
        """The embedding of the image at a URL, as the `…/vector` calls want it."""
        return await services.embed(await intake.from_url(body.url))

    @by_file.post("/embed/file", responses=FILE_PROBLEMS)
    async def embed_file(form: Annotated[EmbedForm, MULTIPART]) -> Embedding:
        """The embedding of an uploaded image, as the `…/vector` calls want it."""
        return await services.embed(await intake.from_upload(form.file))

    @router.post("/embed/text", responses=JSON_PROBLEMS)
    async def embed_text(body: EmbedTextRequest) -> Embedding:
        """The embedding of a text, in the same space as the images'."""
        return await services.embed_text(body.text)

    @router.get("/collections", responses=JSON_PROBLEMS)
    async def list_collections() -> list[Collection]:
        """All collections."""
        return await store.collections()

    @router.post(
        "/collections",
        status_code=201,
        responses=COLLECTION_PROBLEMS | {200: {"model": Collection, "description": "It existed with this config."}},
    )
    async def create_collection(body: CreateCollectionRequest, response: Response) -> Collection:
        """Create a collection; 200 where it exists with the same configuration."""
        collection, created = await store.create_collection(body)
        response.status_code = 201 if created else 200
        return collection

    # The paths take slashes too, so that a bad name is told as such (422) instead of ending as an unknown address.
    @router.get("/collections/{name:text}", responses=COLLECTION_PROBLEMS)
    async def get_collection(name: CollectionPath) -> Collection:
        """One collection."""
        return await store.collection(name)

    @router.delete("/collections/{name:text}", responses=COLLECTION_PROBLEMS)
    async def delete_collection(name: CollectionPath) -> CollectionDeleted:
        """Delete a collection with all its points."""
        return await store.delete_collection(name)

    @router.post("/delete", responses=VECTOR_PROBLEMS)
    async def delete_points(body: DeletePointsRequest) -> Deleted:
        """Delete points by their ids or original ids; says how many existed."""
        return await store.delete(body)

    @router.get("/points/by-original-id/{id:text}", responses=POINT_PROBLEMS, response_model_exclude_unset=True)
    async def get_point_by_original_id(
        id: str, collection: CollectionQuery = DEFAULT_COLLECTION, with_vector: bool = False
    ) -> Point:
        """The point that was stored under an id of the caller's own."""
        return await store.point("/points/by-original-id", id, collection, with_vector)

    @router.get("/points/{id:text}", responses=POINT_PROBLEMS, response_model_exclude_unset=True)
    async def get_point(id: str, collection: CollectionQuery = DEFAULT_COLLECTION, with_vector: bool = False) -> Point:
        """One point."""
        return await store.point("/points", id, collection, with_vector)

    return router, batch, by_file


async def _upsert_batch(body: UpsertBatchRequest, intake: Intake, store: VectorStore) -> list[Upserted | BatchError]:
    turns = asyncio.Semaphore(_BATCH_AT_ONCE)
    time_is_up = UpstreamTimeout("The batch's time was used up before this item.")

    async def one(item: BatchItem) -> Upserted | BatchError:
        try:
            async with turns, asyncio.timeout(time_left(float("inf"))):
                with holding_apart():
                    picture = await intake.from_url(item.url)
                    return await store.upsert_picture(picture, item.id, item.metadata, body.collection)
        except VisionError as error:
            return BatchError(error=problem_of(error))
        except TimeoutError:
            return BatchError(error=problem_of(time_is_up))

    return list(await asyncio.gather(*(one(item) for item in body.items)))
