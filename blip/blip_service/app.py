"""The blip service's route."""

from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request

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
from visionstack.model_service import RAW_IMAGE_BODY, ModelService, Pixels, create_model_app
from visionstack.schemas import BlipOptions, Caption
from visionstack.web import problem_responses

from .model import BlipModel, CaptionKey
from .settings import BlipSettings

Service = ModelService[CaptionKey, Pixels, list[Caption]]

_ERRORS = problem_responses(
    BodyTooLarge,
    ImageTooLarge,
    UnsupportedMediaType,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    ServiceUnavailable,
    UpstreamTimeout,
)


def create_app(settings: BlipSettings, model: BlipModel) -> FastAPI:
    """The service as an ASGI app; the model is loaded while its lifespan runs."""

    def add_routes(router: APIRouter, service: Service) -> None:
        @router.post("/analyze", tags=["analysis"], responses=_ERRORS, openapi_extra=RAW_IMAGE_BODY)
        async def analyze(request: Request, options: Annotated[BlipOptions, Query()]) -> list[Caption]:
            """Different captions for a picture, best first. Nothing is drawn: the same request has the same answer."""
            key = CaptionKey(options.variants, options.max_length)
            return await service.predict(key, await service.picture(request))

    return create_model_app(
        settings, model, add_routes, title="blip", description="Writes captions for pictures, for the Vision Stack."
    )
