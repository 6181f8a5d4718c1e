"""The gateway's app: puts the parts together; what each part does is in its own module."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from prometheus_client import CollectorRegistry

from visionstack.decoder import Decoder
from visionstack.fetch import Fetcher
from visionstack.images import ImageLimits
from visionstack.routes import limited_route
from visionstack.schemas import ServiceStatus
from visionstack.settings import MiB
from visionstack.web import create_base_app

from .analyze import analyze_routers
from .auth import API_KEY_HEADER, Gate
from .health import HealthView, health_router
from .intake import Intake
from .metrics import metrics_server
from .services import Services
from .settings import GatewaySettings
from .vectors import vectors_routers

_DESCRIPTION = """\
Image understanding over HTTP: tags (CLIP), captions (BLIP), objects (YOLO) and similarity search (Qdrant).

Every image endpoint exists twice: with `{"url": …}` as JSON, and under `…/file` with the image as a multipart field
`file`. Errors are `application/problem+json` with a stable `code`.
"""

# multipart framing and the other form fields come on top of the picture
_FORM_OVERHEAD = MiB


def create_app(
    settings: GatewaySettings, *, services: Services | None = None, fetcher: Fetcher | None = None
) -> FastAPI:
    """The app; tests pass their own `services` and `fetcher`."""
    limits = ImageLimits.from_settings(settings)
    decoder = Decoder(limits, workers=settings.decoders, budget_bytes=settings.decode_memory_bytes)
    registry = CollectorRegistry()
    services = services or Services.from_settings(settings, registry)
    fetcher = fetcher or Fetcher(
        settings.fetch_policy, max_bytes=settings.max_image_bytes, timeout_s=settings.fetch_timeout_s
    )
    intake = Intake(fetcher, decoder, settings.max_image_bytes)
    gate = Gate(settings.keys, key_rate=settings.key_rate, failed_key_rate=settings.failed_key_rate)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(services.aclose)
            stack.push_async_callback(fetcher.aclose)
            await decoder.start()
            stack.push_async_callback(decoder.close)
            if settings.metrics_port:
                stack.enter_context(metrics_server(registry, settings.metrics_port, settings.metrics_host))
            yield

    app = create_base_app(
        title="Vision Stack",
        description=_DESCRIPTION,
        lifespan=lifespan,
        readiness=lambda: ServiceStatus(status="ok"),
        registry=registry,
        serve_metrics=False,  # not on the public's port
    )
    capacity = settings.capacity

    def route(max_body_bytes: int, timeout_s: float = settings.request_timeout_s) -> type[APIRoute]:
        return limited_route(
            capacity,
            timeout_s=timeout_s,
            max_body_bytes=max_body_bytes,
            receive_timeout_s=settings.receive_timeout_s,
            admit=gate.admit,
        )

    json_route = route(settings.max_json_bytes)
    batch_route = route(settings.max_json_bytes, settings.batch_timeout_s)
    file_route = route(settings.max_image_bytes + _FORM_OVERHEAD)
    # The route class checks the key, before the body is read; this only documents it.
    key_scheme = Security(
        APIKeyHeader(name=API_KEY_HEADER, auto_error=False, description="One of the keys in API_KEY.")
    )
    app.include_router(health_router(HealthView(services)))
    for router in (
        *analyze_routers(intake, services, json_route=json_route, file_route=file_route),
        *vectors_routers(intake, services, json_route=json_route, batch_route=batch_route, file_route=file_route),
    ):
        app.include_router(router, dependencies=[key_scheme])
    return app
