"""The routes of the vector service: the public `/vectors` API without its prefix, with pictures as files.

Internal: the gateway has checked keys and limits and fetched the pictures. Ids of points come as a parameter, never as
a part of a path, because they may hold anything.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Response, UploadFile
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from visionstack.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    PointNotFound,
    ServiceUnavailable,
    UnsupportedMediaType,
    UpstreamError,
    UpstreamTimeout,
)
from visionstack.forms import MULTIPART, EmbedForm, SearchForm, UpsertForm, refuse_misfilled_fields
from visionstack.routes import limited_route
from visionstack.schemas import (
    DEFAULT_COLLECTION,
    Collection,
    CollectionDeleted,
    CollectionName,
    CreateCollectionRequest,
    Deleted,
    DeletePointsRequest,
    Embedding,
    EmbedTextRequest,
    Hit,
    Point,
    PointFields,
    SearchTextRequest,
    SearchVectorRequest,
    ServiceStatus,
    TextId,
    Upserted,
    UpsertVectorRequest,
)
from visionstack.settings import MiB
from visionstack.web import create_base_app, problem_responses

from .embedder import Embedder
from .service import Embed, VectorService
from .settings import QdrantServiceSettings
from .store import StoreOpenError, VectorStore

logger = logging.getLogger(__name__)

# Raw pixels from the gateway, which scales pictures down before it sends them.
_MAX_FILE_BODY = 65 * MiB
_MAX_JSON_BODY = 16 * MiB
_RECEIVE_TIMEOUT_S = 60.0
_READY_EVERY_S, _NOT_READY_EVERY_S = 5.0, 1.0

_STORE_ERRORS = (InvalidRequest, Overloaded, ServiceUnavailable, UpstreamError, UpstreamTimeout)
_VECTOR_ERRORS = (CollectionNotFound, CollectionExists, DimensionMismatch, *_STORE_ERRORS)
_PICTURE_ERRORS = (ImageTooLarge, UnsupportedMediaType, InvalidImage)

CollectionQuery = Annotated[CollectionName, Query()]


def _end_process() -> None:
    """Nothing is in flight before the store is open, so there is nothing to drain."""
    logging.shutdown()
    os._exit(1)


def create_app(
    settings: QdrantServiceSettings,
    store: VectorStore,
    embedder: Embedder,
    *,
    on_open_failure: Callable[[], None] = _end_process,
) -> FastAPI:
    """The service's app; its lifespan opens and closes `store` and closes `embedder`."""
    service = VectorService(store, embedder)
    readiness = _Readiness(store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await store.open()
        except StoreOpenError as exc:
            logger.error("%s", exc)
            on_open_failure()
        watching = asyncio.create_task(readiness.watch(), name="watch-store")
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await embedder.aclose()
        await store.close()

    app = create_base_app(
        title="Vision Stack: vectors",
        description="Vector storage and similarity search. Internal: the gateway is the stack's public door.",
        lifespan=lifespan,
        readiness=readiness.status,
        registry=CollectorRegistry(),
    )
    capacity = settings.capacity

    def route(max_body_bytes: int) -> type[APIRoute]:
        return limited_route(
            capacity,
            timeout_s=settings.request_timeout_s,
            max_body_bytes=max_body_bytes,
            receive_timeout_s=_RECEIVE_TIMEOUT_S,
        )

    app.include_router(_file_routes(service, embedder, route(_MAX_FILE_BODY)))
    app.include_router(_json_routes(service, embedder, route(_MAX_JSON_BODY)))
    return app


class _Readiness:
    """Asks the store again and again, so that a probe never waits for it."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._ready = False

    def status(self) -> ServiceStatus:
        return ServiceStatus(status="ok" if self._ready else "unavailable", model=self._store.engine)

    async def watch(self) -> None:
        while True:
            try:
                await self._store.ping()
                ready = True
            except Exception as exc:  # whatever it is, the probe must go on telling the truth
                ready = False
                if self._ready:
                    logger.warning("the vector store does not answer: %r", exc)
            if ready and not self._ready:
                logger.info("the vector store answers")
            self._ready = ready
            await asyncio.sleep(_READY_EVERY_S if ready else _NOT_READY_EVERY_S)


def _file_routes(service: VectorService, embedder: Embedder, route: type[APIRoute]) -> APIRouter:
    router = APIRouter(route_class=route, dependencies=[Depends(refuse_misfilled_fields())])

    def embed(file: UploadFile) -> Embed:
        async def embed_file() -> Embedding:
            return await embedder.embed_image(await file.read(), file.content_type or "application/octet-stream")

        return embed_file

    @router.post("/upsert/file", responses=problem_responses(*_PICTURE_ERRORS, *_VECTOR_ERRORS))
    async def upsert_file(form: Annotated[UpsertForm, MULTIPART]) -> Upserted:
        """Embed a picture and store it."""
        fields = PointFields(id=form.id, metadata=form.metadata_json, collection=form.collection)
        return await service.upsert_embedded(fields, embed(form.file))

    @router.post("/search/file", responses=problem_responses(*_PICTURE_ERRORS, *_VECTOR_ERRORS))
    async def search_file(form: Annotated[SearchForm, MULTIPART]) -> list[Hit]:
        """Stored points similar to a picture, best first."""
        return await service.search_embedded(form, embed(form.file))

    @router.post("/embed/file", responses=problem_responses(*_PICTURE_ERRORS, *_STORE_ERRORS))
    async def embed_file(form: Annotated[EmbedForm, MULTIPART]) -> Embedding:
        """The vector of a picture."""
        return await embed(form.file)()

    return router


def _json_routes(service: VectorService, embedder: Embedder, route: type[APIRoute]) -> APIRouter:
    router = APIRouter(route_class=route)

    @router.post("/upsert/vector", responses=problem_responses(*_VECTOR_ERRORS))
    async def upsert_vector(body: UpsertVectorRequest) -> Upserted:
        """Store a vector of the caller's own."""
        return await service.upsert_vector(body, body.vector)

    @router.post("/search/vector", responses=problem_responses(*_VECTOR_ERRORS))
    async def search_vector(body: SearchVectorRequest) -> list[Hit]:
        """Stored points nearest to a vector, best first."""
        return await service.search_vector(body, body.vector)

    @router.post("/search/text", responses=problem_responses(*_VECTOR_ERRORS))
    async def search_text(body: SearchTextRequest) -> list[Hit]:
        """Stored pictures that fit a description, best first."""
        return await service.search_embedded(body, lambda: embedder.embed_text(body.text))

    @router.post("/embed/text", responses=problem_responses(*_STORE_ERRORS))
    async def embed_text(body: EmbedTextRequest) -> Embedding:
        """The vector of a text."""
        return await embedder.embed_text(body.text)

    @router.get("/collections", responses=problem_responses(*_STORE_ERRORS))
    async def list_collections() -> list[Collection]:
        """All collections, by name."""
        return await service.collections()

    @router.post(
        "/collections",
        status_code=201,
        responses={
            200: {"model": Collection, "description": "It exists with this configuration"},
            **problem_responses(CollectionExists, *_STORE_ERRORS),
        },
    )
    async def create_collection(body: CreateCollectionRequest, response: Response) -> Collection:
        """Create a collection."""
        collection, created = await service.create_collection(body)
        response.status_code = 201 if created else 200
        return collection

    @router.get("/collections/{name}", responses=problem_responses(CollectionNotFound, *_STORE_ERRORS))
    async def get_collection(name: CollectionName) -> Collection:
        """One collection."""
        return await service.collection(name)

    @router.delete("/collections/{name}", responses=problem_responses(CollectionNotFound, *_STORE_ERRORS))
    async def delete_collection(name: CollectionName) -> CollectionDeleted:
        """Delete a collection with all its points."""
        await service.delete_collection(name)
        return CollectionDeleted(deleted=True)

    @router.post("/delete", responses=problem_responses(CollectionNotFound, *_STORE_ERRORS))
    async def delete_points(body: DeletePointsRequest) -> Deleted:
        """Delete points by any of their ids."""
        return await service.delete(body)

    point_errors = problem_responses(PointNotFound, CollectionNotFound, *_STORE_ERRORS)

    @router.get("/points", responses=point_errors, response_model_exclude_unset=True)
    async def get_point(
        id: Annotated[TextId, Query()], collection: CollectionQuery = DEFAULT_COLLECTION, with_vector: bool = False
    ) -> Point:
        """One point."""
        return await service.point(collection, id, with_vector=with_vector)

    @router.get("/points/by-original-id", responses=point_errors, response_model_exclude_unset=True)
    async def get_point_by_original_id(
        id: Annotated[TextId, Query()], collection: CollectionQuery = DEFAULT_COLLECTION, with_vector: bool = False
    ) -> Point:
        """The point that was stored under an id of the caller's own."""
        return await service.point_by_original_id(collection, id, with_vector=with_vector)

    return router
