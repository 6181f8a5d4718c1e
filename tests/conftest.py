"""What all tests share: the asyncio backend and an environment without the developer's own settings."""

import os
from collections.abc import Iterator

import pytest
import structlog

# Settings come from the environment: a developer's own must not leak into a test.
_PREFIXES = (
    "API_KEY", "BLIP_", "CLIP_", "YOLO_", "QDRANT_", "FETCH_", "MAX_", "IMAGE_", "DECODE_", "RECEIVE_", "RATE_",
    "FAILED_", "DEVICE", "PRECISION", "THREADS", "CPU_SHARED_BY", "LOG_", "HUGGINGFACE_", "BATCH_", "HF_",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def plain_logging() -> None:
    """structlog's lines go to the standard library's loggers, where `caplog` sees them."""
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    """A test starts without the stack's variables (save the suite's own `…_TEST_URL`) and leaves none behind."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_PREFIXES) and not name.endswith("_TEST_URL"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)
