"""The yolo service: its route, its answers under load, and its process."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
import torch
from PIL import Image

from problems import assert_problem
from visionstack.model_service import PPM_TYPE
from visionstack.schemas import Detection
from yolo_networks import CLASS_NAMES, SIDE, blocks, make_network, write_checkpoint
from yolo_service.app import create_app
from yolo_service.model import DetectionTask, YoloModel
from yolo_service.settings import YoloSettings

YOLO_FOLDER = Path(__file__).resolve().parents[1] / "yolo"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(make_network("yolo11n"), tmp_path_factory.mktemp("checkpoint") / "blocks.pt")


@asynccontextmanager
async def serving(checkpoint: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, YoloModel]]:
    settings = YoloSettings(yolo_model=str(checkpoint), device="cpu", precision="fp32", threads=1)
    model = YoloModel(settings)
    app = create_app(settings, model)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://yolo", timeout=60) as client,
    ):
        with anyio.fail_after(100):
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - readiness is asked for over HTTP
                await anyio.sleep(0.01)
        yield client, model


@pytest.fixture
async def service(checkpoint: Path, anyio_backend: str) -> AsyncIterator[tuple[httpx2.AsyncClient, YoloModel]]:
    async with serving(checkpoint) as running:
        yield running


def as_file(pixels: Any, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def answer_of(model: YoloModel, pixels: Any, conf: float) -> list[dict[str, Any]]:
    found = model.predict(model.batch_key(pixels), [DetectionTask(pixels, conf)])[0]
    return [detection.model_dump(mode="json") for detection in found]


@pytest.mark.anyio
async def test_raw_pixels_and_a_file_get_the_models_answer(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, model = service
    pixels = blocks(240, 320)
    for body, content_type in ((as_file(pixels, "PPM"), PPM_TYPE), (as_file(pixels, "PNG"), "image/png")):
        response = await client.post("/analyze", content=body, headers={"content-type": content_type})
        assert response.status_code == 200
        assert response.json() == answer_of(model, pixels, 0.25)
    first = response.json()[0]
    assert list(first) == ["class", "confidence", "bbox"]
    assert first["class"] in CLASS_NAMES.values()


@pytest.mark.anyio
async def test_boxes_are_those_of_the_upright_picture(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, model = service
    upright = blocks(320, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it clockwise
    lying = upright.swapaxes(0, 1)[::-1].copy()
    response = await client.post("/analyze", content=as_file(lying, "PNG", exif=exif))
    assert response.json() == answer_of(model, upright, 0.25)


@pytest.mark.anyio
async def test_conf_cuts_the_list(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, model = service
    pixels = blocks(240, 320)
    body = as_file(pixels, "PNG")
    lengths = []
    for conf in (0, 0.3, 0.8, 1):
        answer = (await client.post("/analyze", params={"conf": conf}, content=body)).json()
        assert answer == answer_of(model, pixels, conf)
        lengths.append(len(answer))
    assert lengths[0] == 300
    assert lengths[0] > lengths[1] > lengths[2] > lengths[3] == 0


@pytest.mark.anyio
@pytest.mark.parametrize("query", ["conf=-0.1", "conf=1.1", "conf=nan", "conf=much", "confidence=0.5"])
async def test_a_query_that_cannot_be_used(service: tuple[httpx2.AsyncClient, YoloModel], query: str) -> None:
    client, _ = service
    response = await client.post(f"/analyze?{query}", content=as_file(blocks(32, 32), "PNG"))
    problem = assert_problem(response, 422, "invalid_request")
    assert problem["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.anyio
async def test_a_body_that_is_no_picture(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, _ = service
    assert_problem(await client.post("/analyze", content=b"GIF89 not really"), 415, "unsupported_media_type")
    assert_problem(await client.post("/analyze"), 422, "invalid_image")


@pytest.mark.anyio
async def test_answers_under_load_are_those_of_single_requests(
    service: tuple[httpx2.AsyncClient, YoloModel],
) -> None:
    client, model = service
    pictures = [blocks(160 + 32 * (i % 3), 320, i) for i in range(8)]
    wanted = [(i % 8, (0.1, 0.4, 0.7)[i % 3]) for i in range(48)]
    expected = {(i, conf): answer_of(model, pictures[i], conf) for i, conf in set(wanted)}
    assert len({str(answer) for answer in expected.values()}) == len(expected)  # a mix-up would be seen
    answers: dict[int, Any] = {}

    async def ask(number: int) -> None:
        i, conf = wanted[number]
        body = as_file(pictures[i], "PPM")
        response = await client.post(
            "/analyze", params={"conf": conf}, content=body, headers={"content-type": PPM_TYPE}
        )
        answers[number] = response.json()

    async with anyio.create_task_group() as group:
        for number in range(len(wanted)):
            group.start_soon(ask, number)
    for number, key in enumerate(wanted):
        assert answers[number] == expected[key]


@pytest.mark.anyio
async def test_readyz_names_the_model(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, _ = service
    state = (await client.get("/readyz")).json()
    assert state == {"status": "ok", "model": "blocks.pt", "device": "cpu", "precision": "fp32"}


# --- the process --------------------------------------------------------------------------------------------------


def start(port: int, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)]
    settings = {"DEVICE": "cpu", "PRECISION": "fp32", "THREADS": "1", "LOG_FORMAT": "console"} | environment
    return subprocess.Popen(command, cwd=YOLO_FOLDER, env=os.environ | settings, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_main_serves_the_checkpoint_of_its_environment(checkpoint: Path) -> None:
    port = free_port()
    process = start(port, YOLO_MODEL=str(checkpoint))
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            deadline = time.monotonic() + 100
            while True:
                assert process.poll() is None
                assert time.monotonic() < deadline
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                time.sleep(0.05)
            answer = client.post("/analyze", content=as_file(blocks(SIDE, SIDE), "PNG")).json()
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode in (0, -15)
    before = torch.get_num_threads()
    model = YoloModel(YoloSettings(yolo_model=str(checkpoint), device="cpu", precision="fp32", threads=1))
    model.load()
    expected = answer_of(model, blocks(SIDE, SIDE), 0.25)
    torch.set_num_threads(before)
    assert [Detection(**found).class_name for found in answer] == [found["class"] for found in expected]
    assert len(answer) > 5


def test_main_ends_with_one_clear_line_when_there_is_no_such_checkpoint(tmp_path: Path) -> None:
    process = start(free_port(), YOLO_MODEL="no-such-model.pt")
    _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    [line] = [line for line in log.splitlines() if "[error" in line]
    assert "YOLO_MODEL=no-such-model.pt is neither a file nor the name of a checkpoint" in line
    assert "Traceback" not in log
