"""`/analyze/*`: tags, captions and boxes of one picture, singly or all at once."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute

from visionstack.errors import VisionError
from visionstack.forms import MULTIPART, refuse_misfilled_fields
from visionstack.schemas import (
    AllOptions,
    AllUrlRequest,
    AnalyzeAll,
    BlipOptions,
    BlipUrlRequest,
    Caption,
    ClipOptions,
    ClipUrlRequest,
    Detection,
    TagScore,
    YoloOptions,
    YoloUrlRequest,
)
from visionstack.web import problem_of

from .forms import AllForm, BlipForm, ClipForm, YoloForm
from .intake import Intake, Received
from .responses import FILE_PROBLEMS, URL_PROBLEMS
from .services import Services

T = TypeVar("T")

# as many tags as a caller may send, each a field of its own, and `limit`
_MAX_CLIP_FIELDS = 1001


def analyze_routers(
    intake: Intake, services: Services, *, json_route: type[APIRoute], file_route: type[APIRoute]
) -> tuple[APIRouter, APIRouter]:
    """The URL routes and the upload routes, which differ in how large a body may be."""
    by_url = APIRouter(prefix="/analyze", tags=["analyze"], route_class=json_route, responses=URL_PROBLEMS)
    by_file = APIRouter(
        prefix="/analyze",
        tags=["analyze"],
        route_class=file_route,
        responses=FILE_PROBLEMS,
        dependencies=[Depends(refuse_misfilled_fields("tags"))],
    )

    @by_url.post("/clip")
    async def analyze_clip(body: ClipUrlRequest) -> list[TagScore]:
        """Tags of the image at a URL, best first."""
        return await services.tags(await intake.from_url(body.url), body)

    @by_file.post("/clip/file", form_limits={"max_fields": _MAX_CLIP_FIELDS})
    async def analyze_clip_file(form: Annotated[ClipForm, MULTIPART]) -> list[TagScore]:
        """Tags of an uploaded image, best first."""
        return await services.tags(await intake.from_upload(form.file), form)

    @by_url.post("/blip")
    async def analyze_blip(body: BlipUrlRequest) -> list[Caption]:
        """Captions of the image at a URL, all different, best first."""
        return await services.captions(await intake.from_url(body.url), body)

    @by_file.post("/blip/file")
    async def analyze_blip_file(form: Annotated[BlipForm, MULTIPART]) -> list[Caption]:
        """Captions of an uploaded image, all different, best first."""
        return await services.captions(await intake.from_upload(form.file), form)

    @by_url.post("/yolo")
    async def analyze_yolo(body: YoloUrlRequest) -> list[Detection]:
        """Objects in the image at a URL, best first."""
        return await services.detections(await intake.from_url(body.url), body)

    @by_file.post("/yolo/file")
    async def analyze_yolo_file(form: Annotated[YoloForm, MULTIPART]) -> list[Detection]:
        """Objects in an uploaded image, best first."""
        return await services.detections(await intake.from_upload(form.file), form)

    @by_url.post("/all")
    async def analyze_all(body: AllUrlRequest) -> AnalyzeAll:
        """Tags, captions and objects of the image at a URL; a failed service costs only its own part."""
        started = time.perf_counter()
        return await _all(await intake.from_url(body.url), body, services, started)

    @by_file.post("/all/file")
    async def analyze_all_file(form: Annotated[AllForm, MULTIPART]) -> AnalyzeAll:
        """Tags, captions and objects of an uploaded image; a failed service costs only its own part."""
        started = time.perf_counter()
        return await _all(await intake.from_upload(form.file), form, services, started)

    return by_url, by_file


async def _all(picture: Received, options: AllOptions, services: Services, started: float) -> AnalyzeAll:
    blip_options = BlipOptions(variants=options.variants, max_length=options.max_length)
    clip, blip, yolo = await asyncio.gather(
        _part(services.tags(picture, ClipOptions(limit=options.limit))),
        _part(services.captions(picture, blip_options)),
        _part(services.detections(picture, YoloOptions(conf=options.conf))),
    )
    failed = {
        name: result
        for name, result in (("clip", clip), ("blip", blip), ("yolo", yolo))
        if isinstance(result, VisionError)
    }
    if len(failed) == 3:
        raise failed["clip"]
    info = await services.info(picture)
    return AnalyzeAll(
        clip=None if isinstance(clip, VisionError) else clip,
        blip=None if isinstance(blip, VisionError) else blip[: options.limit],
        yolo=None if isinstance(yolo, VisionError) else yolo,
        image=info,
        errors={name: problem_of(error) for name, error in failed.items()},
        timings_ms=picture.timings_ms | {"total": _ms_since(started)},
    )


async def _part(work: Awaitable[T]) -> T | VisionError:
    try:
        return await work
    except VisionError as error:
        return error


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
