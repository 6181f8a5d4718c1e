"""Every service does what its OpenAPI document says: schemathesis reads it and sends what fits it and what does not."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway_process import KEY, gateway_process
from image_host import ImageHost
from local_stack import Stack
from pictures import encoded, gradient
from service_process import service_process

pytestmark = [pytest.mark.security, pytest.mark.timeout(3600)]

Record = Callable[[str, object], None]


@pytest.mark.parametrize("service", ["clip", "blip", "yolo"])
def test_a_model_service_does_what_it_says(
    stack: Stack, image_host: ImageHost, tmp_path: Path, thorough: bool, record_property: Record, service: str
) -> None:
    url = f"http://127.0.0.1:{stack.port(service)}"
    check(service, url, image_host, tmp_path, record_property, thorough=thorough)


def test_the_vector_service_does_what_it_says(
    stack: Stack, image_host: ImageHost, tmp_path: Path, thorough: bool, record_property: Record
) -> None:
    with service_process("qdrant", vector_settings(stack, tmp_path)) as qdrant:
        check("qdrant", qdrant.url, image_host, tmp_path, record_property, thorough=thorough)


def test_the_gateway_does_what_it_says(
    stack: Stack, image_host: ImageHost, tmp_path: Path, thorough: bool, record_property: Record
) -> None:
    # wrong keys are part of it, and what they may cost is another test's business
    with (
        service_process("qdrant", vector_settings(stack, tmp_path)) as qdrant,
        gateway_process(
            stack, QDRANT_SVC_URL=qdrant.url, FAILED_KEY_LIMIT="", RATE_LIMIT="", RESULT_CACHE_BYTES="1000000"
        ) as gateway,
    ):
        key = ("-H", f"X-API-Key: {KEY}")
        check("gateway", gateway.url, image_host, tmp_path, record_property, *key, thorough=thorough)


def vector_settings(stack: Stack, folder: Path) -> dict[str, str]:
    """A store of its own: what is sent deletes collections that other tests rely on."""
    return {"QDRANT_PATH": str(folder / "store"), "CLIP_URL": f"http://127.0.0.1:{stack.port('clip')}"}


def check(
    name: str, url: str, host: ImageHost, folder: Path, record_property: Record, *options: str, thorough: bool
) -> None:
    """All of schemathesis's checks; it prints each finding with the command that repeats it."""
    report = folder / "report.json"
    picture = encoded(gradient(16, 16), "PNG")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options, "--checks", "all"]
    command += ["--no-color", "--report", "json", "--report-json-path", str(report), "--generation-database", "none"]
    if thorough:
        command += ["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "200"]
    else:  # without the random phases, and the rest alike each time; only the public service gets what does not fit
        command += ["--phases", "examples,coverage", "--seed", "1"]
        command += ["--mode", "all" if name == "gateway" else "positive"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).with_name("support")),
            "SCHEMATHESIS_HOOKS": "openapi_hooks",
            "OPENAPI_PICTURE": base64.b64encode(picture).decode(),
            "OPENAPI_PICTURE_URL": host.put("/openapi.png", picture),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(report.read_text("utf-8"))
    row = f"OpenAPI documents/{name}"
    record_property(f"{row}/operations", found["operations"]["tested"])
    record_property(f"{row}/requests", found["test_cases"]["generated"])
    record_property(f"{row}/findings", found["test_cases"]["unique_failures"])
    assert done.returncode == 0, done.stdout
    assert found["operations"]["tested"] == found["operations"]["total"]
    assert found["errors"] == []
