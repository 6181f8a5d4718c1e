"""The life of a model service: load and warm up off the loop, ready only after that, one thread that owns the model.

A service brings a `Model` and its routes; this module brings everything between an HTTP body and `predict`.
"""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .batching import Batcher
from .decoder import Decoder
from .errors import InvalidImage, ServiceUnavailable
from .images import ImageLimits, from_ppm
from .inflight import time_left
from .routes import limited_route
from .schemas import ServiceStatus
from .settings import MiB, ModelSettings, Runtime
from .web import INSTANCE_HEADER, create_base_app

logger = logging.getLogger(__name__)

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
KeyT_contra = TypeVar("KeyT_contra", bound=Hashable, contravariant=True)
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)

Pixels = npt.NDArray[np.uint8]

PPM_TYPE = "image/x-portable-pixmap"
RAW_IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"The image's bytes, or upright RGB pixels as `{PPM_TYPE}`.",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_RECEIVE_TIMEOUT_S = 60.0
# The gateway scales pictures down before it sends them, so raw pixels stay far below this.
_MAX_PPM_BYTES = 64 * MiB


class ModelLoadError(Exception):
    """The model cannot be loaded; the text is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model says of itself. `max_batch` caps the setting where larger batches do not pay."""

    name: str
    device: str
    precision: str
    runtime: Runtime = "torch"
    max_batch: int | None = None


class Model(Protocol[KeyT_contra, ItemT_contra, ResultT_co]):
    """All methods run in the one thread that owns the model. Raise `ModelLoadError` from `load` with one clear line."""

    def load(self) -> ModelInfo: ...

    def warm_up(self) -> None: ...

    def predict(self, key: KeyT_contra, items: Sequence[ItemT_contra]) -> Sequence[ResultT_co]: ...


def _end_process() -> None:
    """Nothing is in flight before the model is loaded, so there is nothing to drain."""
    logging.shutdown()
    os._exit(1)


class ModelService(Generic[KeyT, ItemT, ResultT]):
    """Runs one model: `async with` starts its loading, `predict` and `picture` serve the routes."""

    def __init__(
        self,
        model: Model[KeyT, ItemT, ResultT],
        settings: ModelSettings,
        registry: CollectorRegistry,
        on_load_failure: Callable[[], None] = _end_process,
    ) -> None:
        # another one in every process: what a caller keeps of the answers is good for this run of the model only
        self.instance = secrets.token_hex(8)
        self._model = model
        self._settings = settings
        self._on_load_failure = on_load_failure
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._batcher: Batcher[KeyT, ItemT, ResultT] | None = None
        self._info: ModelInfo | None = None
        self._failed = False
        self._decoder = Decoder(ImageLimits.from_settings(settings), workers=1)
        self._batch_size = Histogram(
            "vision_inference_batch_size", "Items a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self._queue_seconds = Histogram(
            "vision_inference_queue_seconds", "Wait of a batch's oldest.", registry=registry
        )
        self._run_seconds = Histogram("vision_inference_forward_seconds", "Time of a batch.", registry=registry)
        self._images = Counter("vision_inference_images", "Items through the model.", registry=registry)
        Gauge("vision_inference_queue_depth", "Items that wait.", registry=registry).set_function(
            lambda: self._batcher.depth if self._batcher else 0
        )
        Gauge("vision_model_ready", "1 once the model can work.", registry=registry).set_function(
            lambda: float(self.status().status == "ok")
        )

    async def __aenter__(self) -> "ModelService[KeyT, ItemT, ResultT]":
        self._loading = asyncio.create_task(self._load(), name="load-model")
        return self

    async def __aexit__(self, *_: object) -> None:
        # The thread cannot be interrupted, but waiting for a download at shutdown would hold the process for long.
        self._loading.cancel()
        if self._batcher is not None:
            await self._batcher.close()
        await self._decoder.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            info = await loop.run_in_executor(self._executor, self._model.load)
            await loop.run_in_executor(self._executor, self._model.warm_up)
        except ModelLoadError as exc:
            logger.error("%s", exc)
            self._failed = True
            self._on_load_failure()
            return
        except Exception:
            logger.exception("the model failed to load")
            self._failed = True
            self._on_load_failure()
            return
        self._info = info
        self._batcher = Batcher(
            self._model.predict,
            self._executor,
            max_batch=min(self._settings.max_batch, info.max_batch or self._settings.max_batch),
            max_queue=self._settings.max_queue,
            observe=self._observe,
        )
        self._batcher.start()
        logger.info("model ready: %s on %s in %s by %s", info.name, info.device, info.precision, info.runtime)

    def _observe(self, _: KeyT, size: int, queue_s: float, run_s: float) -> None:
        self._batch_size.observe(size)
        self._queue_seconds.observe(queue_s)
        self._run_seconds.observe(run_s)
        self._images.inc(size)

    def status(self) -> ServiceStatus:
        if self._failed:
            return ServiceStatus(status="failed")
        if self._info is None or self._batcher is None:
            return ServiceStatus(status="loading")
        alive = self._batcher.alive and self._thread_alive()
        return ServiceStatus(
            status="ok" if alive else "failed",
            model=self._info.name,
            device=self._info.device,
            precision=self._info.precision,
            runtime=self._info.runtime,
            instance=self.instance,
        )

    def _thread_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._executor._threads)

    async def predict(self, key: KeyT, item: ItemT) -> ResultT:
        """The model's result for one item, within the time that the request has left."""
        if self._batcher is None:
            raise ServiceUnavailable("The model is still loading; try again as Retry-After says.")
        return await self._batcher.submit(key, item, timeout_s=time_left(self._settings.predict_timeout_s))

    async def picture(self, request: Request) -> Pixels:
        """The body's picture as upright RGB pixels, uint8, shape (height, width, 3)."""
        if self._batcher is None:  # refuse before decoding
            raise ServiceUnavailable("The model is still loading; try again as Retry-After says.")
        return await self.decode(await request.body(), request.headers.get("content-type"))

    async def decode(self, data: bytes, content_type: str | None) -> Pixels:
        """The same for bytes that came in another way than as the body."""
        if not data:
            raise InvalidImage("The request has no picture; send the image's bytes.")
        if content_type == PPM_TYPE:
            return from_ppm(data, max_pixels=self._settings.max_image_pixels)
        return (await self._decoder.decode(data)).pixels


def create_model_app(
    settings: ModelSettings,
    model: Model[KeyT, ItemT, ResultT],
    add_routes: Callable[[APIRouter, ModelService[KeyT, ItemT, ResultT]], None],
    *,
    title: str,
    description: str,
) -> FastAPI:
    """The app of a model service; `add_routes` gets a router whose bodies are bounded, and the running model."""
    registry = CollectorRegistry()
    service = ModelService(model, settings, registry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(service)
            yield

    app = create_base_app(
        title=title, description=description, lifespan=lifespan, readiness=service.status, registry=registry
    )

    async def name_instance(response: Response) -> None:
        response.headers[INSTANCE_HEADER] = service.instance

    router = APIRouter(
        dependencies=[Depends(name_instance)],
        route_class=limited_route(
            settings.capacity,
            timeout_s=settings.request_timeout_s,
            # multipart framing and other form fields come on top of the picture
            max_body_bytes=max(settings.max_image_bytes, _MAX_PPM_BYTES) + MiB,
            receive_timeout_s=_RECEIVE_TIMEOUT_S,
        ),
    )
    add_routes(router, service)
    app.include_router(router)
    return app
