"""The routes of the CLIP service: tags for a picture, and vectors for pictures and texts."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request

from visionstack.errors import (
    BodyTooLarge,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    ServiceUnavailable,
    UnsupportedMediaType,
    UpstreamTimeout,
)
from visionstack.forms import MULTIPART, PictureFile, refuse_misfilled_fields
from visionstack.inflight import time_left
from visionstack.model_service import RAW_IMAGE_BODY, ModelService, create_model_app
from visionstack.schemas import Embedding, EmbedTextRequest, Limit, TagList, TagScore
from visionstack.schemas import Request as Fields
from visionstack.web import problem_responses

from .model import ClipModel, Item, Key
from .settings import ClipSettings
from .tagging import Matrix, Vector, rank_tags

Service = ModelService[Key, Item, Vector]

# as many tags as a caller may send, each a field, and `limit`; parsers stop at 1000 otherwise
_MAX_FIELDS = 1001

_TEXT_ERRORS = (BodyTooLarge, InvalidRequest, Overloaded, ServiceUnavailable, UpstreamTimeout)
_PICTURE_ERRORS = problem_responses(ImageTooLarge, UnsupportedMediaType, InvalidImage, *_TEXT_ERRORS)


class TagsForm(Fields):
    file: PictureFile
    tags: TagList
    limit: Limit = 5


def create_app(settings: ClipSettings, model: ClipModel) -> FastAPI:
    """The service's app; `model` is loaded by its lifespan."""
    # what one request may have waiting in the model's queue at a time
    chunk = min(settings.max_batch, settings.max_queue)

    async def tags_of(service: Service, image: Vector, tags: list[str] | None, limit: int) -> list[TagScore]:
        if tags:
            names: Sequence[str] = list(dict.fromkeys(tags))
            vectors = await own_tag_vectors(service, names)
        else:
            names, vectors = model.tags, model.tag_vectors
        ranked = rank_tags(image, names, vectors, model.logit_scale, limit)
        return [TagScore(tag=tag, confidence=confidence) for tag, confidence in ranked]

    async def own_tag_vectors(service: Service, tags: Sequence[str]) -> Matrix:
        """In pieces, so that a thousand tags neither fill the queue nor keep other requests' pictures waiting."""
        vectors: list[Vector] = []
        try:
            async with asyncio.timeout(time_left(settings.predict_timeout_s)):
                for start in range(0, len(tags), chunk):
                    piece = tags[start : start + chunk]
                    vectors += await asyncio.gather(*(service.predict("tag", tag) for tag in piece))
        except TimeoutError:
            raise UpstreamTimeout("The tags took too long; send fewer, or try again.") from None
        return np.stack(vectors)

    def embedding(vector: Vector) -> Embedding:
        return Embedding(vector=vector.tolist(), model=model.identity, dim=len(vector))

    def add_routes(router: APIRouter, service: Service) -> None:
        @router.post("/analyze", tags=["analysis"], openapi_extra=RAW_IMAGE_BODY, responses=_PICTURE_ERRORS)
        async def analyze(
            request: Request,
            limit: Annotated[Limit, Query()] = 5,
            tags: Annotated[TagList | None, Query()] = None,
        ) -> list[TagScore]:
            """The likeliest tags of the picture in the body, among the vocabulary's or among `tags`."""
            image = await service.predict("image", await service.picture(request))
            return await tags_of(service, image, tags, limit)

        @router.post(
            "/analyze/tags",
            tags=["analysis"],
            responses=_PICTURE_ERRORS,
            dependencies=[Depends(refuse_misfilled_fields("tags"))],
            form_limits={"max_fields": _MAX_FIELDS, "max_files": 1},
        )
        async def analyze_among_tags(form: Annotated[TagsForm, MULTIPART]) -> list[TagScore]:
            """The same for more tags than an address can hold. The file's own content type counts."""
            pixels = await service.decode(await form.file.read(), form.file.content_type)
            image = await service.predict("image", pixels)
            return await tags_of(service, image, form.tags, form.limit)

        @router.post("/embed", tags=["vectors"], openapi_extra=RAW_IMAGE_BODY, responses=_PICTURE_ERRORS)
        async def embed(request: Request) -> Embedding:
            """The vector of the picture in the body."""
            return embedding(await service.predict("image", await service.picture(request)))

        @router.post("/embed/text", tags=["vectors"], responses=problem_responses(*_TEXT_ERRORS))
        async def embed_text(body: EmbedTextRequest) -> Embedding:
            """The vector of a text, in the space of the pictures' vectors."""
            return embedding(await service.predict("text", body.text))

    return create_model_app(
        settings,
        model,
        add_routes,
        title="clip",
        description="Tags for pictures, and vectors for pictures and texts, for the Vision Stack.",
    )
