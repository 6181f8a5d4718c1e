"""The HTTP scaffolding that every service stands on.

It owns the request id, one log line and one metric a request, the single error shape and the probes `/livez`, `/readyz`
and `/metrics`. What a service answers is the service's own business; what a request may cost is that of `routes`.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import structlog
from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from . import __version__
from .errors import (
    FieldError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    VisionError,
)
from .schemas import Problem, ServiceStatus

logger = structlog.stdlib.get_logger("visionstack.web")

REQUEST_ID_HEADER = "X-Request-ID"
# Which run of a model service answered; the same as `ServiceStatus.instance`.
INSTANCE_HEADER = "X-Instance"

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/health"})

# On every answer that does not say otherwise: no browser guesses types, keeps, frames or runs what an API answers.
_ANSWER_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
# /docs is FastAPI's page, which takes its scripts from there
_DOCS_HEADERS = (
    *_ANSWER_HEADERS[:-1],
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net;"
        b" style-src 'unsafe-inline' https://cdn.jsdelivr.net; img-src data: https://fastapi.tiangolo.com;"
        b" connect-src 'self'; frame-ancestors 'none'",
    ),
)

Readiness = Callable[[], ServiceStatus]


def create_base_app(
    *,
    title: str,
    description: str,
    lifespan: Lifespan[FastAPI],
    readiness: Readiness,
    registry: CollectorRegistry,
    serve_metrics: bool = True,
) -> FastAPI:
    """An app with the probes, the error shape and the middlewares; the caller adds its routes.

    Whoever runs it without HTTP finds `readiness` in its state.
    """
    app = _App(
        title=title,
        description=description,
        version=__version__,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.readiness = readiness
    _add_error_handlers(app)
    _add_probes(app, readiness, registry if serve_metrics else None)
    # added first = innermost
    app.add_middleware(_RequestLog, registry=registry)
    app.add_middleware(_AnswerHeaders)
    app.add_middleware(
        CorrelationIdMiddleware,
        header_name=REQUEST_ID_HEADER,
        validator=lambda value: _SANE_REQUEST_ID.match(value) is not None,
    )
    return app


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The document with whole bounds as integers, as they were meant: FastAPI makes floats of them all."""
        if self.openapi_schema is None:
            self.openapi_schema = _whole_bounds(super().openapi())
        return self.openapi_schema


def _whole_bounds(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _whole_bounds(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_whole_bounds(value) for value in part]
    return int(part) if isinstance(part, float) and part.is_integer() else part


def problem_responses(*errors: type[VisionError]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route: each status with the codes it can carry."""
    by_status: dict[int | str, list[type[VisionError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {
        status: {
            "model": Problem,
            "description": " or ".join(f"`{error.code}`" for error in group),
            "content": {
                "application/problem+json": {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": group[0]().problem("4f6c1d0e9b7a4d0c8a53a3a1f2b4c6d8"),
                }
            },
        }
        for status, group in by_status.items()
    }


def problem_response(error: VisionError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return JSONResponse(
        error.problem(correlation_id.get()),
        status_code=error.status,
        headers=headers,
        media_type="application/problem+json",
    )


def problem_of(error: VisionError) -> Problem:
    """The problem as a part of a larger answer."""
    return Problem.model_validate(error.problem(correlation_id.get()))


def _add_error_handlers(app: FastAPI) -> None:
    async def on_vision_error(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, VisionError)
        _log_error(exc)
        return problem_response(exc)

    async def on_validation_error(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        return problem_response(_invalid_request(exc.errors()))

    async def on_http_exception(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        error = _from_http_exception(exc)
        response = problem_response(error)
        for name, value in (exc.headers or {}).items():
            response.headers[name] = value
        if isinstance(error, MethodNotAllowed):  # Starlette names only those of the first route with this path
            response.headers["Allow"] = ", ".join(_methods_of_all_routes(request))
        return response

    app.add_exception_handler(VisionError, on_vision_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)


_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


def _methods_of_all_routes(request: Request) -> list[str]:
    def answered(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] == Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if answered(method)]


def _log_error(error: VisionError) -> None:
    # a refusal by load has its line as a request, and under load a second one would cost more than the refusal
    if error.log_detail is not None or (error.status >= 500 and not isinstance(error, Overloaded)):
        logger.warning("request failed", code=error.code, detail=error.log_detail or error.detail)


def _from_http_exception(exc: HTTPException) -> VisionError:
    # FastAPI wraps whatever the body's reading raised
    if isinstance(exc.__cause__, VisionError):
        return exc.__cause__
    if exc.status_code == 404:
        return NotFound()
    if exc.status_code == 405:
        return MethodNotAllowed()
    if exc.status_code < 500:
        return InvalidRequest.for_field("body", "cannot be parsed; send what the endpoint's documentation describes")
    return InternalError(log_detail=str(exc.detail))


_PLACES = frozenset({"body", "query", "path", "header", "cookie"})


def _invalid_request(found: Sequence[Any]) -> InvalidRequest:
    errors: list[FieldError] = []
    for error in found:
        location = [str(part) for part in error["loc"]]
        field = ".".join(location[1:] if location and location[0] in _PLACES else location) or "body"
        message = str(error["msg"]).removeprefix("Value error, ")
        match error["type"]:
            case "json_invalid":
                field, message = "body", "is not valid JSON"
            case "model_attributes_type" if field == "body":
                message = "send a JSON object with the header Content-Type: application/json"
            case "extra_forbidden":
                message = "unknown field; check its spelling"
        errors.append({"field": field, "message": message})
    summary = "; ".join(f"{error['field']}: {error['message']}" for error in errors[:3])
    return InvalidRequest(summary, errors=errors)


def _add_probes(app: FastAPI, readiness: Readiness, registry: CollectorRegistry | None) -> None:
    async def livez() -> dict[Literal["status"], Literal["ok"]]:
        """The process answers."""
        return {"status": "ok"}

    async def readyz(response: Response) -> ServiceStatus:
        """200 once the service can do its work, 503 before and when it no longer can."""
        status = readiness()
        if status.status != "ok":
            response.status_code = 503
            response.headers["Retry-After"] = "2"
        return status

    app.add_api_route("/livez", livez, tags=["state"])
    app.add_api_route(
        "/readyz", readyz, tags=["state"], responses={503: {"model": ServiceStatus, "description": "Not ready"}}
    )
    if registry is not None:

        async def metrics() -> Response:
            """Prometheus text."""
            return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

        app.add_api_route("/metrics", metrics, tags=["state"], include_in_schema=False)


def add_answer_header(request: Request, name: str, value: str) -> None:
    """A header for whatever answer this request will get, errors too."""
    request.scope.setdefault("vision_headers", []).append((name.lower().encode(), value.encode()))


class _AnswerHeaders:
    """The security headers, and those that were added for this request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added: list[tuple[bytes, bytes]] = scope.setdefault("vision_headers", [])
        defaults = _DOCS_HEADERS if scope["path"] == "/docs" else _ANSWER_HEADERS

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *added]
                present = {name for name, _ in headers}
                headers += [header for header in defaults if header[0] not in present]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _RequestLog:
    """One log line and one observation a request; an exception that nobody handled becomes a 500 problem."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._seconds = Histogram(
            "vision_http_request_seconds",
            "Time from a request's head to its answer's end.",
            ["method", "route", "status"],
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        except Exception:
            logger.exception("unhandled error", path=scope["path"])
            if status:  # the answer has begun: all that is left is to break it off
                raise
            await problem_response(InternalError())(scope, receive, send_noting_status)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            self._seconds.labels(scope["method"], route, str(status)).observe(seconds)
            log = logger.debug if scope["path"] in _QUIET_PATHS else logger.info
            log("request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000, 1))


def configure_logging(service: str, *, log_format: str, log_level: str) -> None:
    """Send every log line of the process, uvicorn's too, through structlog to stderr: JSON, or text on a terminal."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())

    def add_context(_: Any, __: str, event: Any) -> Any:
        event["service"] = service
        if (request_id := correlation_id.get()) is not None:
            event["request_id"] = request_id
        return event

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_context,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    render: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        # the plain traceback: the pretty one prints local variables, keys among them
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        uvicorn_logger = logging.getLogger(name)
        uvicorn_logger.handlers.clear()
        uvicorn_logger.propagate = name != "uvicorn.access"
    # of the clients of Qdrant, of image hosts and of the model hub: a line a call would drown the log, with full URLs
    for name in ("httpx2", "httpcore2", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
