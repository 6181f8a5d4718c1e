"""The yolo service's routes."""

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
from visionstack.model_service import RAW_IMAGE_BODY, ModelService, create_model_app
from visionstack.schemas import Detection, YoloOptions
from visionstack.web import problem_responses

from .model import DetectionTask, Shape, YoloModel
from .settings import YoloSettings

Service = ModelService[Shape, DetectionTask, list[Detection]]

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


def create_app(settings: YoloSettings, model: YoloModel) -> FastAPI:
    """The service as an ASGI app; the model is loaded while its lifespan runs."""

    def add_routes(router: APIRouter, service: Service) -> None:
        @router.post("/analyze", tags=["analysis"], responses=_ERRORS, openapi_extra=RAW_IMAGE_BODY)
        async def analyze(request: Request, options: Annotated[YoloOptions, Query()]) -> list[Detection]:
            """The objects in a picture, best first; boxes are in pixels of the upright picture, inside its borders."""
            pixels = await service.picture(request)
            return await service.predict(model.batch_key(pixels), DetectionTask(pixels, options.conf))

    return create_model_app(
        settings, model, add_routes, title="yolo", description="Finds objects in pictures, for the Vision Stack."
    )
