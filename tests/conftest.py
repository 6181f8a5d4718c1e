"""What all tests share: an environment without the developer's own settings, and one real stack for the API tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import structlog

from image_host import ImageHost
from local_stack import Stack
from turns import pytest_runtest_protocol as pytest_runtest_protocol

# Settings come from the environment: a developer's own must not leak into a test.
_PREFIXES = (
    "API_KEY", "BLIP_", "CLIP_", "YOLO_", "QDRANT_", "FETCH_", "MAX_", "IMAGE_", "DECODE_", "RECEIVE_", "REQUEST_",
    "RATE_", "FAILED_", "DEVICE", "PRECISION", "THREADS", "CPU_SHARED_BY", "LOG_", "HUGGINGFACE_", "BATCH_", "HF_",
    "RESULT_", "GOMP_", "OMP_WAIT_",
)  # fmt: skip


_LOG = "stack.log"
_LOOP_WATCH = str(Path(__file__).with_name("support") / "loop_watch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="long runs in place of short ones, where a test has both")


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether rounds, operations and minutes are those of `make security` instead of those of `make test`."""
    return bool(request.config.getoption("--thorough"))


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


@pytest.fixture(scope="session")
def image_host() -> Iterator[ImageHost]:
    """A web server on loopback for image URLs; the stack under test may fetch from loopback."""
    with ImageHost() as host:
        yield host


@pytest.fixture(scope="session")
def stack_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="session")
def stack(stack_folder: Path) -> Iterator[Stack]:
    """The five services as real processes, with the bundled models and an embedded store of their own."""
    with running_stack(stack_folder) as running:
        yield running


@pytest.fixture
def stack_log(stack: Stack, stack_folder: Path) -> Path:
    """Every line that the stack's services wrote, after the service's name."""
    return stack_folder / _LOG


@contextmanager
def running_stack(folder: Path, **settings: str) -> Iterator[Stack]:
    """What the fixture `stack` is, with settings of its own; `folder` takes its data and its log."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)} | {
        "API_KEY": "first-key-of-the-tests, second-key-of-the-tests",
        "FETCH_ALLOW_NETWORKS": "127.0.0.0/8",
        "RATE_LIMIT": "",
        "RESULT_CACHE_BYTES": "0",  # a test that asks again wants to know what the services say
        "LOG_FORMAT": "json",
        "PYTHONPATH": os.pathsep.join(filter(None, [_LOOP_WATCH, os.environ.get("PYTHONPATH")])),
    }
    log = folder / _LOG
    with log.open("a", encoding="utf-8") as lines:

        def sink(service: str, line: str) -> None:
            lines.write(f"{service} {line}\n")
            lines.flush()

        with Stack(environment | settings, sink=sink, data_dir=folder / "data", backoff_s=0.05) as running:
            running.wait_ready(120)
            yield running
    _keep_log(log)


def _keep_log(log: Path) -> None:
    if destination := os.environ.get("STACK_LOG"):
        Path(destination).write_bytes(log.read_bytes())


@pytest.fixture
def api(stack: Stack) -> Iterator[httpx2.Client]:
    """A client of the public API that sends a valid key."""
    stack.wait_ready(60)  # an earlier test may have killed a service
    headers = {"X-API-Key": stack.key}
    with httpx2.Client(base_url=stack.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client
