"""The whole stack as `make run` starts it, with the real architectures or with the small bundled models."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from local_stack import SERVICES, Stack
from processes import DATA, clean_environment
from session import Session

_START_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class RunningStack:
    """`ready_after_s` is each service's time from its start to `/readyz`, all starting at once."""

    stack: Stack
    ready_after_s: Mapping[str, float]

    def pid(self, name: str) -> int:
        pid = self.stack.pid(name)
        if pid is None:
            raise RuntimeError(f"{name} is not running")
        return pid

    def upload(self, path: str, **fields: Any) -> dict[str, Any]:
        """A target of the load generator: a route of the gateway that takes a file."""
        texts = {name: str(value) for name, value in fields.items()}
        return {"url": self.stack.url + path, "body": "form", "headers": self._headers, "fields": texts}

    def json(self, path: str) -> dict[str, Any]:
        """A target that takes JSON."""
        return {"url": self.stack.url + path, "body": "json", "headers": self._headers}

    def direct(self, service: str, path: str) -> dict[str, Any]:
        """A target that asks one service behind the gateway's back."""
        return {"url": f"http://127.0.0.1:{self.stack.port(service)}{path}"}

    @property
    def _headers(self) -> dict[str, str]:
        return {"X-API-Key": self.stack.key}


@contextmanager
def running_stack(
    session: Session, *, bundled: bool = False, vectors: Path | None = None, **settings: str
) -> Iterator[RunningStack]:
    """With an empty store of its own, or with the one in the folder `vectors`."""
    models = {} if bundled else session.model_settings
    environment = clean_environment() | models | {"CACHE_DIR": str(DATA / "cache"), "LOG_FORMAT": "json"} | settings
    ready: dict[str, float] = {}
    log_path = DATA / f"logs/stack-{settings.get('RUNTIME', 'torch')}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=DATA, prefix="stack-") as folder, log_path.open("w") as log:

        def sink(name: str, line: str) -> None:
            log.write(f"{name} {line}\n")
            log.flush()
            if match := re.match(r"(\w+) is ready \(([\d.]+) s\)", line):
                ready[match[1]] = float(match[2])

        if vectors is not None:
            environment["QDRANT_PATH"] = str(vectors)
        environment["RESULT_CACHE_BYTES"] = "0"  # each answer is to be worked for
        # an empty limit means none, but for the local runner it would be unset
        environment["RATE_LIMIT"] = "100000/second"
        with Stack(environment, sink=sink, data_dir=Path(folder)) as stack:
            stack.wait_ready(_START_TIMEOUT_S)
            time.sleep(1)  # the supervisor's last lines, and the services' last steps after readiness
            yield RunningStack(stack, {name: ready[name] for name in SERVICES if name in ready})
