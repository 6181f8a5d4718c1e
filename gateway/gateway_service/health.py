"""`/health`: what every service says of itself, for people and monitors; needs no key."""

import asyncio
import time

from fastapi import APIRouter, Response

from visionstack import __version__
from visionstack.schemas import Health, ServiceStatus

from .services import Services

# Anybody may ask: a burst of questions must not become a burst of calls to the services.
_CACHE_S = 0.5


class HealthView:
    """Asks all services at once, and at most once per half second."""

    def __init__(self, services: Services) -> None:
        self._peers = {
            "clip": services.clip,
            "blip": services.blip,
            "yolo": services.yolo,
            "qdrant": services.qdrant,
        }
        self._lock = asyncio.Lock()
        self._answer: Health | None = None
        self._asked_at = 0.0

    async def current(self) -> Health:
        async with self._lock:
            if self._answer is None or time.monotonic() - self._asked_at > _CACHE_S:
                self._answer = await self._ask()
                self._asked_at = time.monotonic()
            return self._answer

    async def _ask(self) -> Health:
        statuses = await asyncio.gather(*(peer.status() for peer in self._peers.values()))
        services: dict[str, ServiceStatus] = {
            name: status.model_copy(update={"circuit": peer.breaker, "instance": None})
            for (name, peer), status in zip(self._peers.items(), statuses, strict=True)
        }
        working = sum(status.status == "ok" for status in services.values())
        overall = "ok" if working == len(services) else "degraded" if working else "unavailable"
        return Health.model_validate({"status": overall, "version": __version__, "services": services})


def health_router(view: HealthView) -> APIRouter:
    router = APIRouter(tags=["state"])

    @router.get(
        "/health",
        response_model_exclude_none=True,
        responses={503: {"model": Health, "description": "No service answers."}},
    )
    async def health(response: Response) -> Health:
        """`ok` when every service works, `degraded` when some do, `unavailable` (503) when none does."""
        answer = await view.current()
        if answer.status == "unavailable":
            response.status_code = 503
        return answer

    return router
